"""The names of arrays in a file of the original Stable Diffusion code, as diffusers and transformers name them.

`model.diffusion_model.` is the U-Net, `first_stage_model.` the autoencoder and `cond_stage_model.` the text encoder:
CLIP as transformers names it in 1.x, and in 2.x OpenCLIP, whose last layer is not read.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

UNET = "model.diffusion_model."

AUTOENCODER = "first_stage_model."

CLIP = "cond_stage_model.transformer."

OPEN_CLIP = "cond_stage_model.model."

LEFT_OUT = (
    r"model_ema\.|[a-z0-9_]+$"  # averages beside the parameters; the schedule's tables
    r"|(first_stage_model\.)?(loss|model_ema)\."
    r"|conditioner\.embedders\.\d\.(.*\.position_ids$|(model\.)?(logit_scale|attn_mask)$)"
    r"|cond_stage_model\.(.*\.position_ids$|logit_scale$|model\.(text_projection|logit_scale|attn_mask)$)"
)
"""The arrays that are knowingly not read."""

_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}

_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
"""Of the autoencoder."""

_LAYER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
"""Of OpenCLIP's transformer."""


class Source(NamedTuple):
    """Where an array stands in the file."""

    name: str
    third: int | None = None  # of an array that has query, key and value one below the other
    transposed: bool = False


class Renamed(Mapping[str, np.ndarray]):
    """{name: array} under other names; an array is read when it is looked up."""

    def __init__(self, stored: Mapping[str, np.ndarray], sources: Mapping[str, Source]):
        self._stored, self._sources = stored, sources

    def __getitem__(self, name: str) -> np.ndarray:
        """The array, its third, or the array transposed."""
        source = self._sources[name]
        value = self._stored[source.name]
        if source.transposed:
            return np.ascontiguousarray(value.T)
        return value if source.third is None else np.split(value, 3)[source.third]

    def __iter__(self) -> Iterator[str]:
        return iter(self._sources)

    def __len__(self) -> int:
        return len(self._sources)


def unet_names(names: Iterable[str], *, blocks: int) -> dict[str, Source]:
    """{name in a `UNet2DConditionModel`: where it stands}; blocks are the residual blocks of an encoder's level."""
    return {_unet_name(name.removeprefix(UNET), blocks): Source(name) for name in names if name.startswith(UNET)}


def autoencoder_names(names: Iterable[str], *, prefix: str, levels: int) -> dict[str, Source]:
    """{name in an `AutoencoderKL`: where it stands}, of the names that begin with prefix and are read."""
    ours = [name for name in names if name.startswith(prefix) and not re.match(LEFT_OUT, name)]
    return {_autoencoder_name(name.removeprefix(prefix), levels): Source(name) for name in ours}


def text_names(names: Iterable[str], *, layers: int) -> dict[str, Source]:
    """{name in a `CLIPTextModel`: where it stands}; layers are those of OpenCLIP that are read."""
    found: dict[str, Source] = {}
    for name in names:
        if re.match(LEFT_OUT, name):
            continue
        if name.startswith(CLIP):
            found[name.removeprefix(CLIP)] = Source(name)
        elif name.startswith(OPEN_CLIP):
            found |= open_clip_names(name, OPEN_CLIP, layers)
    return found


def _unet_name(name: str, blocks: int) -> str:
    match name.split("."):
        case ["time_embed", index, leaf]:
            return f"time_embedding.linear_{1 if index == '0' else 2}.{leaf}"
        case ["label_emb", "0", index, leaf]:
            return f"add_embedding.linear_{1 if index == '0' else 2}.{leaf}"
        case ["input_blocks", "0", "0", leaf]:
            return f"conv_in.{leaf}"
        case ["out", index, leaf]:
            return f"{'conv_norm_out' if index == '0' else 'conv_out'}.{leaf}"
        case ["middle_block", "1", *rest]:
            return ".".join(["mid_block.attentions.0", *rest])
        case ["middle_block", index, *rest]:
            return f"mid_block.resnets.{int(index) // 2}.{_resnet(rest)}"
        case ["input_blocks", number, _, "op", leaf]:
            return f"down_blocks.{(int(number) - 1) // (blocks + 1)}.downsamplers.0.conv.{leaf}"
        case ["input_blocks", number, index, *rest]:
            level, place = divmod(int(number) - 1, blocks + 1)
            return _part(f"down_blocks.{level}", place, index, rest)
        case ["output_blocks", number, _, "conv", leaf]:
            return f"up_blocks.{int(number) // (blocks + 1)}.upsamplers.0.conv.{leaf}"
        case ["output_blocks", number, index, *rest]:
            level, place = divmod(int(number), blocks + 1)
            return _part(f"up_blocks.{level}", place, index, rest)
    return name


def _part(level: str, place: int, index: str, rest: list[str]) -> str:
    """A residual block, or the attention that follows it."""
    if index == "0":
        return f"{level}.resnets.{place}.{_resnet(rest)}"
    return ".".join([f"{level}.attentions.{place}", *rest])


def _resnet(rest: list[str]) -> str:
    *layer, leaf = rest
    return f"{_RESNET.get('.'.join(layer), '.'.join(layer))}.{leaf}"


def _autoencoder_name(name: str, levels: int) -> str:
    match name.split("."):
        case [side, "norm_out", leaf]:
            return f"{side}.conv_norm_out.{leaf}"
        case [side, "mid", "attn_1", layer, leaf]:
            return f"{side}.mid_block.attentions.0.{_ATTENTION.get(layer, layer)}.{leaf}"
        case [side, "mid", ("block_1" | "block_2") as block, *layers]:
            return f"{side}.mid_block.resnets.{int(block[-1]) - 1}.{_shortcut(layers)}"
        case [side, ("down" | "up") as way, level, kind, *rest]:
            number = int(level) if way == "down" else levels - 1 - int(level)
            where = f"{side}.{way}_blocks.{number}"
            match kind, rest:
                case "block", [place, *layers]:
                    return f"{where}.resnets.{place}.{_shortcut(layers)}"
                case "attn", [place, layer, leaf]:
                    return f"{where}.attentions.{place}.{_ATTENTION.get(layer, layer)}.{leaf}"
                case _, ["conv", leaf]:
                    return f"{where}.{way}samplers.0.conv.{leaf}"
    return name


def _shortcut(rest: list[str]) -> str:
    return ".".join(rest).replace("nin_shortcut", "conv_shortcut")


def open_clip_names(name: str, prefix: str, layers: int) -> dict[str, Source]:
    """{name in a `CLIPTextModel`: where it stands} of one array of OpenCLIP; {} of a layer that is not read."""
    outer = {
        "token_embedding.weight": "embeddings.token_embedding.weight",
        "positional_embedding": "embeddings.position_embedding.weight",
        "ln_final.weight": "final_layer_norm.weight",
        "ln_final.bias": "final_layer_norm.bias",
    }
    short = name.removeprefix(prefix)
    if short in outer:
        return {f"text_model.{outer[short]}": Source(name)}
    if not (found := re.match(r"transformer\.resblocks\.(\d+)\.(.*?)[._](weight|bias)$", short)):
        return {short: Source(name)}
    index, layer, leaf = found.groups()
    if int(index) >= layers:
        return {}
    where = f"text_model.encoder.layers.{index}"
    if layer == "attn.in_proj":
        return {
            f"{where}.self_attn.{part}_proj.{leaf}": Source(name, third) for third, part in enumerate(("q", "k", "v"))
        }
    return {f"{where}.{_LAYER.get(layer, layer)}.{leaf}": Source(name)}
