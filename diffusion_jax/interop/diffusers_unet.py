"""Weights of diffusers' `UNet2DModel` and `UNet2DConditionModel` in and out of `nets.unet.UNet`, as {name: array}.

Theirs are channels first, kernels [out, in, *S]; ours channels last, kernels [*S, in, out]. Theirs computes what ours
does where the configs say the same:

| theirs | ours |
|---|---|
| flip_sin_to_cos False, freq_shift 1 | sinusoids "ddpm" |
| flip_sin_to_cos True, freq_shift 0 | sinusoids "adm" |
| downsample_padding 0 or 1 | padding "end" or "both" |
| norm_eps | epsilon |
| resnet_time_scale_shift "scale_shift", with attn_norm_num_groups = norm_num_groups | scale_shift True |
| `Resnet(Down|Up)sampleBlock2D`, or downsample_type and upsample_type "resnet" | resample "block" |
| attention_head_dim of `UNet2DModel`; None | head_channels; heads 1 |
| attention_head_dim of `UNet2DConditionModel`, a number of heads | heads; in Stable Diffusion 2 head_channels 64 |
| cross_attention_dim, transformer_layers_per_block | text_features, depth or depths |
| addition_embed_type "text_time", addition_time_embed_dim | numbers and pooled_text, number_waves |
| use_linear_projection | either: it is the same map, of which `to_diffusers` is told the layout |
| num_class_embeds | num_classes + 1 |
| class_embed_type "timestep" | levels with one name |
| num_class_embeds of a pipeline whose classes are levels of noise | level_rows, with one level |
| only_cross_attention at a level | text_alone |
"""

import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from diffusion_jax.errors import UserError
from diffusion_jax.interop.arrays_by_name import Naming, Path, Place, arrays

PARTS = {
    "conv_in": "conv_in",
    "conv_out": "conv_out",
    "norm_out": "conv_norm_out",
    "time_0": "time_embedding.linear_1",
    "time_1": "time_embedding.linear_2",
    "added_0": "add_embedding.linear_1",
    "added_1": "add_embedding.linear_2",
    "label": "class_embedding",
    "mid": "mid_block",
    "attention": "attentions.0",
    "downsample": "downsamplers.0",
    "upsample": "upsamplers.0",
    "conv": "conv",
    "norm": "group_norm",
    "query": "to_q",
    "key": "to_k",
    "value": "to_v",
    "out": "to_out.0",
    "norm1": "norm1",
    "conv1": "conv1",
    "emb": "time_emb_proj",
    "norm2": "norm2",
    "conv2": "conv2",
    "shortcut": "conv_shortcut",
    "norm_in": "norm",
    "project_in": "proj_in",
    "project_out": "proj_out",
    "norm_self": "norm1",
    "norm_cross": "norm2",
    "norm_feed": "norm3",
    "self_attention": "attn1",
    "cross_attention": "attn2",
    "feed_forward": "ff",
    "linear": "net.0.proj",
    "gate": "net.0.proj",
    "project": "net.2",
    "kernel": "weight",
    "scale": "weight",
    "embedding": "weight",
    "bias": "bias",
}

DENSE = ("shortcut", "project_in", "project_out")
"""Dense layers that are 1 x 1 convolutions there; the projections only without use_linear_projection."""

BEFORE_0_12 = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Names of the attention's layers in weights published before diffusers 0.12, DDPM's among them."""


def from_diffusers(
    state: Mapping[str, np.ndarray],
    like: Mapping[str, Any],
    place: Place = np.ascontiguousarray,
) -> dict[str, Any]:
    """The tree of `like`, a net's params or their shapes, with the values of their state dict as float32.

    place and errors are those of `arrays_by_name.arrays`.
    """
    flat = _flatten(like)
    shapes = {path: leaf.shape for path, leaf in flat.items()}
    return _unflatten(arrays(state, _names(flat), shapes, Naming("network", _renamed, _ours), place))


def to_diffusers(params: Mapping[str, Any], *, linear_projection: bool = False) -> dict[str, np.ndarray]:
    """The state dict of their model that computes what a rank 2 `UNet` with these params does; float32.

    `linear_projection` is their use_linear_projection: True for Stable Diffusion 2, False for 1.
    """
    flat = _flatten(params)
    state = {}
    for path, name in _names(flat).items():
        value = np.asarray(flat[path])
        if path[-2] == "linear":
            value = np.concatenate([value, flat[*path[:-2], "gate", path[-1]]], axis=-1)
        if path[-2] != "gate":
            state[name] = _theirs(path, value, linear_projection)
    return state


def _names(flat: Mapping[Path, Any]) -> dict[Path, str]:
    """Their name of every path; the two matrices of a GEGLU share one."""
    embedded = sorted(
        {path[0].removesuffix("_0").removesuffix("_1") for path in flat if path[0].startswith(("label", "level_"))}
    )
    if len(embedded) > 1:
        raise UserError(f"diffusers' U-Net embeds one label or level beside t; this net embeds {embedded}")
    levels = len({path[0] for path in flat if path[0].startswith("down_")})
    return {path: _name(path, levels) for path in flat}


def _name(path: Path, levels: int) -> str:
    """("down_0", "block_1", "conv1", "kernel") -> "down_blocks.0.resnets.1.conv1.weight"; they count the decoder up."""
    parts = []
    for part in path:
        kind, _, index = part.rpartition("_")
        match kind:
            case "down":
                parts.append(f"down_blocks.{index}")
            case "up":
                parts.append(f"up_blocks.{levels - 1 - int(index)}")
            case "block":
                parts.append(f"resnets.{index}")
            case "attention":
                parts.append(f"attentions.{index}")
            case "layer":
                parts.append(f"transformer_blocks.{index}")
            case _ if part.startswith("level_") and not index.isdigit():
                parts.append("class_embedding")  # a table
            case _ if kind.startswith("level_"):
                parts.append(f"class_embedding.linear_{int(index) + 1}")
            case _:
                parts.append(PARTS[part])
    return ".".join(parts)


def _renamed(name: str) -> str:
    return re.sub(r"(attentions\.\d+\.)(\w+)", lambda m: m[1] + BEFORE_0_12.get(m[2], m[2]), name)


def _ours(path: Path, value: np.ndarray) -> np.ndarray:
    value = np.asarray(value, np.float32)
    if path[-1] == "kernel":
        value = np.moveaxis(value, (0, 1), (-1, -2))
    if path[-2] in DENSE and set(value.shape[:-2]) == {1}:
        value = value.reshape(value.shape[-2:])
    if path[-2] in ("linear", "gate"):
        value = np.split(value, [value.shape[-1] // 2], axis=-1)[path[-2] == "gate"]
    return value


def _theirs(path: Path, value: np.ndarray, linear_projection: bool) -> np.ndarray:
    if path[-1] == "kernel":
        value = np.moveaxis(value, (-1, -2), (0, 1))
        if path[-2] in DENSE and not (linear_projection and path[-2] != "shortcut"):
            value = value[:, :, None, None]
    return np.ascontiguousarray(value, np.float32)


def _flatten(tree: Mapping[str, Any]) -> dict[Path, Any]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {tuple(entry.key for entry in path): leaf for path, leaf in leaves}


def _unflatten(flat: Mapping[Path, np.ndarray | jax.Array]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        node = tree
        for part in path[:-1]:
            node = node.setdefault(part, {})
        node[path[-1]] = value
    return tree
