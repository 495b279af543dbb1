"""Text encoders of Hugging Face folders into `nets.text`: CLIP's text tower and BERT.

A folder holds config.json, model.safetensors and a tokenizer's files; beside a diffusers pipeline's `text_encoder` lies
its `tokenizer`. Their matrices are [out, in], ours [in, out]. Nothing is unpickled.
"""

import re
from collections.abc import Mapping
from pathlib import Path as File
from typing import Any, NamedTuple

import jax  # noqa: F401  with it numpy knows bfloat16, in which weights may be stored
import numpy as np
from safetensors import SafetensorError, safe_open

from diffusion_jax.errors import UserError
from diffusion_jax.interop.json_file import read_json

Path = tuple[str, ...]

WEIGHTS = "model.safetensors"

GIVE_FOLDER = "give the folder of a text encoder"

LEFT_OUT = (
    r".*\bposition_ids$"  # a constant that old files store
    r"|(vision_model|visual_projection|text_projection)\.|logit_scale$"  # CLIP's other tower, and what joins the two
    r"|pooler\.|(cls|classifier|qa_outputs)\."  # BERT's pooler and heads
)
"""The arrays that are knowingly not read; any other that the network lacks is refused."""

ACTIVATIONS = {"quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}


class Family(NamedTuple):
    """How one family of text encoders is written by transformers."""

    name: str  # in nets.text.TEXT_ENCODERS
    prefix: str  # of every array's name, in the files of a larger model
    config: Mapping[str, tuple[str, Any]]  # our argument: (their key, what an absent one means)
    only: Mapping[str, Any]  # their keys of which we compute one value
    layer: str  # what stands for layer_{i}
    parts: Mapping[str, str]  # what stands for a part, within a layer or outside


CLIP = Family(
    "clip",
    "text_model.",
    {
        "vocabulary": ("vocab_size", 49408),
        "width": ("hidden_size", 512),
        "layers": ("num_hidden_layers", 12),
        "heads": ("num_attention_heads", 8),
        "hidden": ("intermediate_size", 2048),
        "length": ("max_position_embeddings", 77),
        "activation": ("hidden_act", "quick_gelu"),
        "epsilon": ("layer_norm_eps", 1e-5),
        "eos": ("eos_token_id", 49407),
    },
    {},
    "encoder.layers.",
    {
        "token": "embeddings.token_embedding",
        "position": "embeddings.position_embedding",
        "norm": "final_layer_norm",
        "norm1": "layer_norm1",
        "norm2": "layer_norm2",
        "query": "self_attn.q_proj",
        "key": "self_attn.k_proj",
        "value": "self_attn.v_proj",
        "out": "self_attn.out_proj",
        "up": "mlp.fc1",
        "down": "mlp.fc2",
        "projection": "text_projection",
    },
)

BERT = Family(
    "bert",
    "bert.",
    {
        "vocabulary": ("vocab_size", 30522),
        "width": ("hidden_size", 768),
        "layers": ("num_hidden_layers", 12),
        "heads": ("num_attention_heads", 12),
        "hidden": ("intermediate_size", 3072),
        "length": ("max_position_embeddings", 512),
        "types": ("type_vocab_size", 2),
        "activation": ("hidden_act", "gelu"),
        "epsilon": ("layer_norm_eps", 1e-12),
        "pad": ("pad_token_id", 0),
        "dropout": ("hidden_dropout_prob", 0.1),
    },
    {"position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False},
    "encoder.layer.",
    {
        "token": "embeddings.word_embeddings",
        "position": "embeddings.position_embeddings",
        "type": "embeddings.token_type_embeddings",
        "norm": "embeddings.LayerNorm",
        "norm1": "attention.output.LayerNorm",
        "norm2": "output.LayerNorm",
        "query": "attention.self.query",
        "key": "attention.self.key",
        "value": "attention.self.value",
        "out": "attention.output.dense",
        "up": "intermediate.dense",
        "down": "output.dense",
    },
)

FAMILIES = {"clip": CLIP, "clip_text_model": CLIP, "bert": BERT}
"""By the model_type of config.json."""


class TextEncoder(NamedTuple):
    """A published text encoder: `nets.text.TEXT_ENCODERS[family](**arguments)`, its params and its tokenizer."""

    family: str
    arguments: dict[str, Any]
    params: dict[str, Any]  # float32
    tokenizer: str  # the folder of its files, for data.tokens.from_folder


def load(folder: str, *, projection: bool = False) -> TextEncoder:
    """The text encoder in a folder: what config.json says of the network, every array by its name, the tokenizer.

    projection reads the matrix by which CLIP multiplies what is pooled, too, as `CLIPTextModelWithProjection` has it.
    Raises UserError where the folder lacks one of them or holds another model, where arrays are missing, left over or
    of another shape (all are named), and where the tokenizer has more tokens than the network embeds.
    """
    root = File(folder)
    config = read_json(root / "config.json", GIVE_FOLDER)
    family = FAMILIES.get(str(config.get("model_type")))
    if family is None:
        raise UserError(
            f"{folder} holds a model of type {config.get('model_type')!r}; the text encoders read here are of type "
            f"{', '.join(FAMILIES)}"
        )
    if "text_config" in config:
        config = config["text_config"]
    arguments = _arguments(family, config, f"{folder}/config.json")
    if projection:
        arguments["projection"] = int(config.get("projection_dim", 512))
    params = _read(root, family, _shapes(arguments))
    tokenizer = _tokenizer(root)
    if (tokens := _vocabulary(tokenizer)) > arguments["vocabulary"]:
        raise UserError(
            f"the tokenizer in {tokenizer} has {tokens} tokens but the network in {folder} embeds "
            f"{arguments['vocabulary']}; take the two from one model"
        )
    return TextEncoder(family.name, arguments, params, str(tokenizer))


def _arguments(family: Family, config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The network's arguments, as config.json says them."""
    for key, value in family.only.items():
        if config.get(key, value) != value:
            raise UserError(f"{where}: only {key} {value!r} is computed here; got {config[key]!r}")
    arguments = {}
    for name, (key, default) in family.config.items():
        value = config.get(key, default)
        if type(value) not in ((int, float) if isinstance(default, float) else (type(default),)):
            raise UserError(f"{where}: {key} must be a value such as {default!r}; got {value!r}")
        arguments[name] = value
    if arguments["activation"] not in ACTIVATIONS:
        raise UserError(f"{where}: hidden_act is one of {', '.join(ACTIVATIONS)}; got {arguments['activation']!r}")
    arguments["activation"] = ACTIVATIONS[arguments["activation"]]
    if arguments.get("eos") == 2:
        # The configs of OpenAI's own weights say 2 and mean the highest token.
        arguments["eos"] = None
    return arguments


def _shapes(arguments: Mapping[str, Any]) -> dict[Path, tuple[int, ...]]:
    """The shape of each of the network's params."""
    width, hidden = arguments["width"], arguments["hidden"]
    tables = {"token": arguments["vocabulary"], "position": arguments["length"]}
    if "types" in arguments:
        tables["type"] = arguments["types"]
    shapes: dict[Path, tuple[int, ...]] = {(name, "embedding"): (rows, width) for name, rows in tables.items()}
    if "projection" in arguments:
        shapes["projection", "kernel"] = (width, arguments["projection"])
    layers = [f"layer_{i}" for i in range(arguments["layers"])]
    norms = [("norm",), *((layer, norm) for layer in layers for norm in ("norm1", "norm2"))]
    shapes |= {(*norm, kind): (width,) for norm in norms for kind in ("scale", "bias")}
    for layer in layers:
        dense: dict[Path, tuple[int, ...]] = {
            (layer, "attention", name): (width, width) for name in ("query", "key", "value", "out")
        }
        dense |= {(layer, "up"): (width, hidden), (layer, "down"): (hidden, width)}
        shapes |= {(*path, "kernel"): shape for path, shape in dense.items()}
        shapes |= {(*path, "bias"): shape[1:] for path, shape in dense.items()}
    return shapes


def _name(family: Family, path: Path) -> str:
    """("layer_1", "attention", "query", "kernel") -> "encoder.layers.1.self_attn.q_proj.weight"."""
    layer = f"{family.layer}{path[0].removeprefix('layer_')}." if path[0].startswith("layer_") else ""
    return f"{layer}{family.parts[path[-2]]}.{'bias' if path[-1] == 'bias' else 'weight'}"


def _read(root: File, family: Family, shapes: Mapping[Path, tuple[int, ...]]) -> dict[str, Any]:
    """The tree of params, float32, each array by its name."""
    file = root / WEIGHTS
    if not file.is_file():
        raise UserError(_no_weights(root))
    try:
        with safe_open(file, "numpy") as arrays:
            listed = list(arrays.keys())
            stored = {_bare(family, name): name for name in listed}
            if twice := sorted(set(listed) - set(stored.values())):
                raise UserError(f"{file} has arrays twice, under an old name and a new one: {twice}; fetch it anew")
            names = {path: _name(family, path) for path in shapes}
            missing = sorted(set(names.values()) - set(stored))
            extra = sorted(stored[name] for name in set(stored) - set(names.values()) if not re.match(LEFT_OUT, name))
            if missing or extra:
                raise UserError(f"{file} is not of the network in config.json: missing {missing}; left over {extra}")
            params = {path: _ours(path, arrays.get_tensor(stored[name])) for path, name in names.items()}
    except SafetensorError as error:
        raise UserError(f"{file} cannot be read ({error}); fetch it anew") from None
    wrong = [
        f"{names[path]} {params[path].shape}, not {shape}"
        for path, shape in shapes.items()
        if params[path].shape != shape
    ]
    if wrong:
        raise UserError(f"{file} is of a network of other sizes than config.json's ([in, out]): {'; '.join(wrong)}")
    return _tree(params)


def _bare(family: Family, name: str) -> str:
    """An array's name without the larger model's prefix; BERT's old files call a norm's scale gamma, its bias beta."""
    name = name.removeprefix(family.prefix)
    return re.sub(r"LayerNorm\.(gamma|beta)$", lambda m: f"LayerNorm.{'weight' if m[1] == 'gamma' else 'bias'}", name)


def _ours(path: Path, value: np.ndarray) -> np.ndarray:
    if value.dtype.name not in ("float64", "float32", "float16", "bfloat16"):
        raise UserError(f"{'/'.join(path)} is stored as {value.dtype.name}; weights are read from float files alone")
    value = value.astype(np.float32)
    return np.ascontiguousarray(value.T) if path[-1] == "kernel" else value


def _tree(flat: Mapping[Path, np.ndarray]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        node = tree
        for part in path[:-1]:
            node = node.setdefault(part, {})
        node[path[-1]] = value
    return tree


def _no_weights(root: File) -> str:
    """What to do where there is no model.safetensors."""
    others = sorted(file.name for pattern in ("*.bin", "*.safetensors*") for file in root.glob(pattern))
    convert = (
        f"write it with transformers, which unpickles: AutoModel.from_pretrained({str(root)!r}).save_pretrained("
        f"{str(root)!r}, max_shard_size='1TB')"
    )
    return f"{root} has no {WEIGHTS} but {', '.join(others)}; {convert}" if others else f"{root} has no {WEIGHTS}"


def _tokenizer(root: File) -> File:
    """The folder of the tokenizer: this one, or the one that a diffusers pipeline has beside it."""
    folders = [root]
    if root.resolve().name.startswith("text_encoder"):
        folders.append(root.resolve().parent / root.resolve().name.replace("text_encoder", "tokenizer"))
    for folder in folders:
        if any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json", "vocab.txt")):
            return folder
    raise UserError(
        f"there is no tokenizer in {' or '.join(map(str, folders))}: add tokenizer.json, or vocab.json and merges.txt "
        f"(CLIP), or vocab.txt (BERT)"
    )


def _vocabulary(folder: File) -> int:
    """One more than the tokenizer's highest id."""
    ids: list[int] = []
    if (folder / "tokenizer.json").is_file():
        saved = read_json(folder / "tokenizer.json")
        words = saved.get("model", {}).get("vocab", {})
        ids += words.values() if isinstance(words, dict) else range(len(words))
        ids += [token["id"] for token in saved.get("added_tokens", [])]
    elif (folder / "vocab.json").is_file():
        ids += read_json(folder / "vocab.json").values()
    else:
        ids += range(len((folder / "vocab.txt").read_text(encoding="utf-8").rstrip("\n").split("\n")))
    if (folder / "added_tokens.json").is_file():
        ids += read_json(folder / "added_tokens.json").values()
    if (folder / "tokenizer_config.json").is_file():
        ids += map(int, read_json(folder / "tokenizer_config.json").get("added_tokens_decoder", {}))
    return max(ids, default=-1) + 1
