"""Where each position of a network attends in a text, read from outside while the network runs.

The maps of words are those of DAAM (arXiv:2210.04885, section 3), of probabilities: its scores before the softmax are
not compared between tokens. Dimension key B batch, N positions, M tokens, H heads, D features of one.
"""

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from diffusion_jax.nets.dense import Dense
from diffusion_jax.nets.transformer import Attention


@contextlib.contextmanager
def text_attention() -> Iterator[dict[str, Array]]:
    """The probabilities [B, H, N, M] of each attention to a text that is traced in the block, by its layer's path.

    They are of the layer's own queries and keys, and fill the dict while a `UNet` is applied. Layers know nothing
    of it: a network that is applied outside of the block has the program that it has anyway. Values do not come out of
    layers that are rematerialized, so the network is one of remat "none".
    """
    found: dict[str, Array] = {}
    projected: dict[tuple[str, ...], Array] = {}

    def note(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        out, module = call(*args, **kwargs), context.module
        if isinstance(module, Dense) and module.name in ("query", "key"):
            projected[module.path] = out
        elif isinstance(module, Attention) and args[0] is not args[1]:  # else a self-attention
            q, k = (projected[*module.path, name] for name in ("query", "key"))
            q, k = (a.reshape(*a.shape[:2], module.heads, -1) for a in (q, k))
            found["/".join(module.path)] = probabilities(q, k, args[2])
        return out

    with nn.intercept_methods(note):
        yield found


def probabilities(q: Array, k: Array, mask: Array | None) -> Array:
    """softmax(q k^T / sqrt(D)) in float32, over the keys that mask [B, M] has: q [B, N, H, D], k [B, M, H, D] ->
    [B, H, N, M].
    """
    logits = jnp.einsum("bnhd,bmhd->bhnm", q.astype(jnp.float32), k.astype(jnp.float32)) / math.sqrt(q.shape[-1])
    if mask is None:
        return jax.nn.softmax(logits, axis=-1)
    attended = mask[:, None, None]  # [B, 1, 1, M]
    return jnp.where(attended, jax.nn.softmax(jnp.where(attended, logits, -jnp.inf), axis=-1), 0)


def mean_map(layers: Mapping[str, Array], size: tuple[int, int]) -> Array:
    """The mean of layers' probabilities [B, H, N, M] over heads and layers, each enlarged to size: [B, h, w, M].

    N positions are those of size over a whole factor. Enlarging is bilinear, so that tokens sum to 1 everywhere.
    """
    maps = []
    for each in layers.values():
        batch, _, positions, tokens = each.shape
        factor = math.isqrt(math.prod(size) // positions)
        small = each.mean(axis=1).reshape(batch, size[0] // factor, size[1] // factor, tokens)
        maps.append(jax.image.resize(small, (batch, *size, tokens), "linear"))
    return jnp.mean(jnp.stack(maps), axis=0)
