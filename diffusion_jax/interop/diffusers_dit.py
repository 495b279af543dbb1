"""Weights of diffusers' `DiTTransformer2DModel` in and out of a rank 2 `nets.dit.DiT`, as {name: array}.

Theirs are [out, in], and one array a layer; ours [in, out], the layers stacked. Every layer of theirs embeds time and
class anew, with weights that published files have alike in all of them; ours embeds once. Theirs computes what ours
does where the configs say the same:

| theirs | ours |
|---|---|
| num_attention_heads | heads |
| attention_head_dim | width / heads |
| num_layers | depth |
| patch_size, out_channels | patch, out_channels |
| num_embeds_ada_norm | num_classes |
| norm_eps 1e-6 | always; their default of 1e-5 is that of the second norm of a layer alone |

Their sinusoids are cosines first, with the frequencies of our "ddpm", which has sines first: with sinusoids="ddpm" the
rows of the layer that reads them change places, and outputs are equal. The published weights were trained with the
frequencies of "adm", which have no such place in diffusers: sinusoids="adm" takes the rows as they are, and computes
what was trained.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from diffusion_jax.errors import UserError

LAYER = {
    "modulation": "norm1.linear",
    "self_attention/query": "attn1.to_q",
    "self_attention/key": "attn1.to_k",
    "self_attention/value": "attn1.to_v",
    "self_attention/out": "attn1.to_out.0",
    "feed_forward/up": "ff.net.0.proj",
    "feed_forward/down": "ff.net.2",
}
"""Names within a layer."""

EMBEDDED = {
    "time_0": "norm1.emb.timestep_embedder.linear_1",
    "time_1": "norm1.emb.timestep_embedder.linear_2",
    "label": "norm1.emb.class_embedder.embedding_table",
}
"""Names within each layer of theirs of what ours has once."""

OUTER = {"patch_in": "pos_embed.proj", "modulation_out": "proj_out_1", "patch_out": "proj_out_2"}

LEAF = {"kernel": "weight", "bias": "bias", "embedding": "weight"}


def from_diffusers(state: Mapping[str, np.ndarray], like: Mapping[str, Any], *, sinusoids: str) -> dict[str, Any]:
    """The tree of `like`, a net's params or their shapes, with the values of their state dict as float32.

    sinusoids is the net's. Raises UserError, naming all of them, where arrays are missing, left over or of another
    shape, or where their layers embed time or class differently.
    """
    flat = _flatten(like)
    names = {path: _names(path, _depth(flat)) for path in flat}
    wanted = {name for each in names.values() for name in each}
    missing, extra = sorted(wanted - set(state)), sorted(set(state) - wanted)
    if missing or extra:
        raise UserError(f"the weights are of another network: missing {missing}; left over {extra}")
    params, wrong, unequal = {}, [], []
    for path, each in names.items():
        values = [_ours(path, np.asarray(state[name], np.float32), sinusoids) for name in each]
        if path.startswith("layers/"):
            if len({value.shape for value in values}) > 1:
                raise UserError(f"the weights have {path} in layers of unequal shapes, which cannot be stacked")
            params[path] = np.stack(values)
        else:
            params[path] = values[0]
            unequal += [name for name, v in zip(each, values, strict=True) if not np.array_equal(v, values[0])]
        if params[path].shape != flat[path].shape:
            wrong.append(f"{path} {params[path].shape}, not {flat[path].shape}")
    if wrong:
        raise UserError(f"the weights are of a network of other sizes (shapes as here): {'; '.join(wrong)}")
    if unequal:
        raise UserError(f"this DiT embeds time and class once, and these are not as in layer 0: {unequal}")
    return _unflatten(params)


def to_diffusers(params: Mapping[str, Any], *, patch: int, sinusoids: str) -> dict[str, np.ndarray]:
    """The state dict of their model that computes what a rank 2 `DiT` with these params does; float32.

    patch and sinusoids are the net's; its output is theirs with sinusoids="ddpm". Raises UserError for a net that has
    no classes, or is told more than time and class, which theirs cannot be.
    """
    flat = _flatten(params)
    if "label/embedding" not in flat:
        raise UserError("diffusers' DiT is told a class; this net has none")
    state: dict[str, np.ndarray] = {}
    for path, value in flat.items():
        names = _names(path, _depth(flat))
        layers = value if path.startswith("layers/") else [value] * len(names)
        state |= {n: _theirs(path, np.asarray(a), patch, sinusoids) for n, a in zip(names, layers, strict=True)}
    return state


def _names(path: str, depth: int) -> list[str]:
    """Their names of one of our arrays: one, or one for each layer."""
    layer, _, leaf = path.rpartition("/")
    if layer in OUTER:
        return [f"{OUTER[layer]}.{LEAF[leaf]}"]
    name = EMBEDDED.get(layer) or LAYER.get(layer.removeprefix("layers/"))
    if name is None:
        raise UserError(f"diffusers' DiT is told time and class alone; this net has {path} besides")
    return [f"transformer_blocks.{i}.{name}.{LEAF[leaf]}" for i in range(depth)]


def _depth(flat: Mapping[str, Any]) -> int:
    return int(flat["layers/modulation/bias"].shape[0])


def _ours(path: str, value: np.ndarray, sinusoids: str) -> np.ndarray:
    if path == "patch_in/kernel" and value.ndim == 4:  # [D, C, p, p]: pixels are rows first, channels last
        return value.transpose(2, 3, 1, 0).reshape(-1, len(value))
    if path.endswith("kernel"):
        value = value.T
    return _exchanged(value) if path == "time_0/kernel" and sinusoids == "ddpm" else value


def _theirs(path: str, value: np.ndarray, patch: int, sinusoids: str) -> np.ndarray:
    if path == "patch_in/kernel":
        value = value.reshape(patch, patch, -1, value.shape[-1]).transpose(3, 2, 0, 1)
    elif path.endswith("kernel"):
        value = (_exchanged(value) if path == "time_0/kernel" and sinusoids == "ddpm" else value).T
    return np.ascontiguousarray(value, np.float32)


def _exchanged(rows: np.ndarray) -> np.ndarray:
    """Rows of sines and rows of cosines in each other's place."""
    return np.roll(rows, len(rows) // 2, axis=0)


def _flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _unflatten(flat: Mapping[str, np.ndarray]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, leaf = path.split("/")
        node = tree
        for part in parents:
            node = node.setdefault(part, {})
        node[leaf] = value
    return tree
