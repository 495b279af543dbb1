"""A whole CLIP model of a Hugging Face folder, both towers and their projections, into `nets.clip` and `nets.text`."""

from collections.abc import Mapping
from pathlib import Path as File
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

from diffusion_jax.errors import UserError
from diffusion_jax.interop import huggingface_text
from diffusion_jax.interop.huggingface_text import CLIP, GIVE_FOLDER, Family, Path
from diffusion_jax.interop.json_file import read_json

VISION = Family(
    "clip_vision",
    "vision_model.",
    {
        "side": ("image_size", 224),
        "patch": ("patch_size", 32),
        "width": ("hidden_size", 768),
        "layers": ("num_hidden_layers", 12),
        "heads": ("num_attention_heads", 12),
        "hidden": ("intermediate_size", 3072),
        "activation": ("hidden_act", "quick_gelu"),
        "epsilon": ("layer_norm_eps", 1e-5),
    },
    {"num_channels": 3},
    "encoder.layers.",
    dict(CLIP.parts) | {"norm": "post_layernorm", "pre_norm": "pre_layrnorm"},  # so spelled in their files
)


class Clip(NamedTuple):
    """`nets.clip.ClipVision(**vision)` and `nets.text.ClipText(**text)`, and what each output is multiplied by."""

    vision: dict[str, Any]
    text: dict[str, Any]
    params: dict[str, Any]  # "vision", "text", "vision_projection" and "text_projection" [D, features], float32
    tokenizer: str  # the folder of its files


def load(folder: str) -> Clip:
    """The CLIP model in a folder: config.json, model.safetensors and a tokenizer's files, as transformers writes them.

    Raises UserError where one of them lacks, where it is another model or one tower alone, and for arrays of its image
    tower that are missing, left over or of another shape, which are all named.
    """
    root = File(folder)
    config = read_json(root / "config.json", GIVE_FOLDER)
    if config.get("model_type") != "clip" or not isinstance(config.get("vision_config"), dict):
        raise UserError(
            f"{folder} holds a model of type {config.get('model_type')!r}; a whole CLIP model, of type 'clip' with a "
            "vision_config, is needed"
        )
    text = huggingface_text.load(folder)
    where = f"{folder}/config.json (vision_config)"
    vision = huggingface_text._arguments(VISION, config["vision_config"], where)
    features = config.get("projection_dim", 512)
    file = root / huggingface_text.WEIGHTS
    shapes = _shapes(vision)
    names = {path: _name(path) for path in shapes}
    projections = {"vision_projection": "visual_projection.weight", "text_projection": "text_projection.weight"}
    try:
        with safe_open(file, "numpy") as arrays:
            stored = {name for name in arrays.keys() if name.startswith(VISION.prefix)}  # noqa: SIM118
            stored -= {f"{VISION.prefix}embeddings.position_ids"}  # a constant that old files store
            missing = sorted(set(names.values()) - stored) + sorted(set(projections.values()) - set(arrays.keys()))
            if extra := sorted(stored - set(names.values())) or missing:
                raise UserError(
                    f"{file} is not of the network in config.json: missing {missing}; left over "
                    f"{[] if extra is missing else extra}"
                )
            flat = {path: _ours(path, arrays.get_tensor(name)) for path, name in names.items()}
            joined = {name: arrays.get_tensor(theirs).astype(np.float32).T for name, theirs in projections.items()}
    except SafetensorError as error:
        raise UserError(f"{file} cannot be read ({error}); fetch it anew") from None
    shapes |= {("vision_projection",): (vision["width"], features)}
    shapes |= {("text_projection",): (text.arguments["width"], features)}
    found = flat | {(name,): np.ascontiguousarray(a) for name, a in joined.items()}
    if wrong := [f"{'/'.join(p)} {found[p].shape}, not {s}" for p, s in shapes.items() if found[p].shape != s]:
        raise UserError(f"{file} is of a network of other sizes than config.json's: {'; '.join(wrong)}")
    params = {"vision": huggingface_text._tree(flat), "text": text.params}
    return Clip(vision, text.arguments, params | {name: found[(name,)] for name in projections}, text.tokenizer)


_OWN: dict[Path, str] = {
    ("class",): "embeddings.class_embedding",
    ("patch_kernel",): "embeddings.patch_embedding.weight",
    ("position",): "embeddings.position_embedding.weight",
}


def _shapes(vision: Mapping[str, Any]) -> dict[Path, tuple[int, ...]]:
    """Of the image tower: those of the layers and their norms are a text tower's."""
    width, patches = vision["width"], (vision["side"] // vision["patch"]) ** 2
    layers = huggingface_text._shapes(dict(vision) | {"vocabulary": 1, "length": 1})
    shapes: dict[Path, tuple[int, ...]] = {p: s for p, s in layers.items() if p[0] not in ("token", "position")}
    shapes |= {("pre_norm", "scale"): (width,), ("pre_norm", "bias"): (width,), ("class",): (width,)}
    return shapes | {("patch_kernel",): (3 * vision["patch"] ** 2, width), ("position",): (patches + 1, width)}


def _name(path: Path) -> str:
    return VISION.prefix + (_OWN.get(path) or huggingface_text._name(VISION, path))


def _ours(path: Path, value: np.ndarray) -> np.ndarray:
    if path == ("patch_kernel",):  # [D, 3, p, p], ours [p p 3, D]
        return np.ascontiguousarray(value.astype(np.float32).transpose(2, 3, 1, 0).reshape(-1, len(value)))
    return huggingface_text._ours(path, value)
