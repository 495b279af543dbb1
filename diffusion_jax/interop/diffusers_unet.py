"""Weights of diffusers' `UNet2DModel` in and out of `nets.unet.UNet`, as {name: array} of numpy.

Theirs are channels first, kernels [out, in, *S]; ours channels last, kernels [*S, in, out]. A `UNet2DModel` computes
what our net does where its config says downsample_padding 0, flip_sin_to_cos False, freq_shift 1, norm_eps 1e-6 and
attention_head_dim None (one head), as DDPM's published weights do; its class embedding has our num_classes + 1 rows.
"""

import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from diffusion_jax.errors import UserError

Path = tuple[str, ...]

PARTS = {
    "conv_in": "conv_in",
    "conv_out": "conv_out",
    "norm_out": "conv_norm_out",
    "time_0": "time_embedding.linear_1",
    "time_1": "time_embedding.linear_2",
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
    "kernel": "weight",
    "scale": "weight",
    "embedding": "weight",
    "bias": "bias",
}

BEFORE_0_12 = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Names of the attention's layers in weights published before diffusers 0.12, DDPM's among them."""


def from_diffusers(state: Mapping[str, np.ndarray], like: Mapping[str, Any]) -> dict[str, Any]:
    """The tree of `like`, a net's params or their shapes, with the values of a `UNet2DModel` state dict as float32.

    Raises UserError, naming all of them, where arrays are missing, left over or of another shape.
    """
    state = {_renamed(name): value for name, value in state.items()}
    flat = _flatten(like)
    names = {path: _name(path, _levels(flat)) for path in flat}
    missing = sorted(set(names.values()) - set(state))
    extra = sorted(set(state) - set(names.values()))
    if missing or extra:
        raise UserError(f"the weights are of another network: missing {missing}; left over {extra}")
    params = {path: _ours(path, state[name]) for path, name in names.items()}
    wrong = [f"{names[p]} {params[p].shape}, not {flat[p].shape}" for p in flat if params[p].shape != flat[p].shape]
    if wrong:
        raise UserError(f"the weights are of a network of other sizes (shapes channels last): {'; '.join(wrong)}")
    return _unflatten(params)


def to_diffusers(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The state dict of the `UNet2DModel` that computes what a rank 2 `UNet` with these params does; float32."""
    flat = _flatten(params)
    return {_name(path, _levels(flat)): _theirs(path, np.asarray(value)) for path, value in flat.items()}


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
            case _:
                parts.append(PARTS[part])
    return ".".join(parts)


def _renamed(name: str) -> str:
    return re.sub(r"(attentions\.\d+\.)(\w+)", lambda m: m[1] + BEFORE_0_12.get(m[2], m[2]), name)


def _ours(path: Path, value: np.ndarray) -> np.ndarray:
    value = np.asarray(value, np.float32)
    if path[-1] != "kernel":
        return value
    value = np.moveaxis(value, (0, 1), (-1, -2))
    # Their 1 x 1 convolution is a dense layer here.
    return value.reshape(value.shape[-2:]) if path[-2] == "shortcut" else value


def _theirs(path: Path, value: np.ndarray) -> np.ndarray:
    if path[-1] == "kernel":
        value = np.moveaxis(value, (-1, -2), (0, 1))
    if path[-2:] == ("shortcut", "kernel"):
        value = value[:, :, None, None]
    return np.ascontiguousarray(value, np.float32)


def _levels(flat: Mapping[Path, Any]) -> int:
    return len({path[0] for path in flat if path[0].startswith("down_")})


def _flatten(tree: Mapping[str, Any]) -> dict[Path, Any]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {tuple(entry.key for entry in path): leaf for path, leaf in leaves}


def _unflatten(flat: Mapping[Path, np.ndarray]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        node = tree
        for part in path[:-1]:
            node = node.setdefault(part, {})
        node[path[-1]] = value
    return tree
