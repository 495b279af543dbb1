"""Weights of diffusers' `AutoencoderKL` in and out of `nets.autoencoder.AutoencoderKL`, as {name: array} of numpy.

Theirs are channels first, kernels [out, in, *S]; ours channels last, kernels [*S, in, out], and 1 x 1 convolutions are
dense layers. quant_convs is their use_quant_conv and use_post_quant_conv, and their scaling_factor is no part of
either net.
"""

import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from diffusion_jax.interop.arrays_by_name import Naming, Path, Place, arrays

PARTS = {
    "quant": "quant_conv",
    "post_quant": "post_quant_conv",
    "norm_out": "conv_norm_out",
    "mid": "mid_block",
    "attention": "attentions.0",
    "downsample": "downsamplers.0",
    "upsample": "upsamplers.0",
    "norm": "group_norm",
    "query": "to_q",
    "key": "to_k",
    "value": "to_v",
    "out": "to_out.0",
    "shortcut": "conv_shortcut",
    "kernel": "weight",
    "scale": "weight",
}
"""Where a part of a name differs; the others are theirs as well."""

BEFORE_0_12 = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Names of the attention's layers in weights published before diffusers 0.12, Stable Diffusion 1 and 2 among them."""

POINTWISE = ("quant", "post_quant", "shortcut")
"""Dense layers that are 1 x 1 convolutions there; the attention's have been either."""


def from_diffusers(
    state: Mapping[str, np.ndarray],
    like: Mapping[str, Any],
    place: Place = np.ascontiguousarray,
) -> dict[str, Any]:
    """The tree of `like`, a net's params or their shapes, with the values of an `AutoencoderKL` state dict as float32.

    place and errors are those of `arrays_by_name.arrays`.
    """
    leaves, tree = jax.tree_util.tree_flatten_with_path(like)
    shapes = {tuple(entry.key for entry in path): leaf.shape for path, leaf in leaves}
    names = {path: _name(path, _levels(shapes)) for path in shapes}
    params = arrays(state, names, shapes, Naming("autoencoder", _renamed, _ours), place)
    return jax.tree_util.tree_unflatten(tree, list(params.values()))


def to_diffusers(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The state dict of the `AutoencoderKL` that computes what a rank 2 net with these params does; float32."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    flat = {tuple(entry.key for entry in path): leaf for path, leaf in leaves}
    return {_name(path, _levels(flat)): _theirs(path, np.asarray(value)) for path, value in flat.items()}


def _name(path: Path, levels: int) -> str:
    """("decoder", "up_0", "block_1", "conv1", "kernel") -> "decoder.up_blocks.3.resnets.1.conv1.weight" of 4 levels."""
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
            case _:
                parts.append(PARTS.get(part, part))
    return ".".join(parts)


def _renamed(name: str) -> str:
    return re.sub(r"(attentions\.\d+\.)(\w+)", lambda m: m[1] + BEFORE_0_12.get(m[2], m[2]), name)


def _ours(path: Path, value: np.ndarray) -> np.ndarray:
    value = np.asarray(value, np.float32)
    if path[-1] != "kernel":
        return value
    value = np.moveaxis(value, (0, 1), (-1, -2))
    dense = path[-2] in (*POINTWISE, "query", "key", "value", "out")
    return value.reshape(value.shape[-2:]) if dense and value.shape[:-2] == (1, 1) else value


def _theirs(path: Path, value: np.ndarray) -> np.ndarray:
    if path[-1] == "kernel":
        value = np.moveaxis(value, (-1, -2), (0, 1))
        if path[-2] in POINTWISE:
            value = value[:, :, None, None]
    return np.ascontiguousarray(value, np.float32)


def _levels(flat: Mapping[Path, Any]) -> int:
    return len({path[1] for path in flat if path[:1] == ("encoder",) and path[1].startswith("down_")})
