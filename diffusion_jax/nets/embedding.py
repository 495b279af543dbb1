"""Embeddings of a time, a class, a text's vector and noise levels, as diffusion networks share them.

The functions make layers of the module that calls them, under the names that they say.
"""

import dataclasses
from collections.abc import Mapping

import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike

from diffusion_jax.nets import layers
from diffusion_jax.nets.layers import Dense
from diffusion_jax.nets.network import Network


@dataclasses.dataclass(frozen=True)
class EmbeddingSizes:
    """The sizes of the embeddings of one network."""

    width: int
    """Of an embedding."""
    waves: int
    """Sinusoids of a time or level, of which the embedding is made."""
    form: str
    """Of the sinusoids, as `layers.time_embedding`."""
    number_waves: int = 256
    """Sinusoids of each of the numbers that are embedded together."""
    level_rows: int = 0
    """Of a table for each level, which is a whole number in [0, level_rows); 0: levels have sinusoids, as t does."""


def embed_level(level: Array, sizes: EmbeddingSizes, dtype: DTypeLike, name: str) -> Array:
    """Sinusoids of level [B] through two dense layers, name_0 and name_1: [B, width]."""
    emb = layers.time_embedding(level, sizes.waves, sizes.form)  # [B, waves]
    emb = Dense(sizes.width, dtype=dtype, name=f"{name}_0")(emb)
    return Dense(sizes.width, dtype=dtype, name=f"{name}_1")(nn.silu(emb))


def embed_numbers(numbers: Array, pooled: Array | None, sizes: EmbeddingSizes, dtype: DTypeLike) -> Array:
    """numbers [B, K] and the text's vector [B, D], through two dense layers, added_0 and added_1: [B, width].

    The sinusoids of all numbers follow the vector (SDXL, arXiv:2307.01952, section 2.2).
    """
    waves = layers.time_embedding(numbers.reshape(-1), sizes.number_waves, sizes.form)  # [B K, waves]
    waves = waves.reshape(len(numbers), -1)
    emb = waves if pooled is None else jnp.concatenate([pooled, waves], axis=-1)  # [B, D + K waves]
    emb = Dense(sizes.width, dtype=dtype, name="added_0")(emb)
    return Dense(sizes.width, dtype=dtype, name="added_1")(nn.silu(emb))


def embed_vectors(net: Network, t: Array, cond: Mapping[str, Array], sizes: EmbeddingSizes) -> Array:
    """The sum of the embeddings of all that net is told in one vector or number: [B, width].

    Layers time_0 and time_1; label, a table of num_classes + 1 rows; text_pooled; level_NAME_0 and level_NAME_1, or
    level_NAME, a table; of numbers and the text's vector together, in place of text_pooled, added_0 and added_1.
    """
    width, dtype = sizes.width, net.dtype
    emb = embed_level(t, sizes, dtype, "time")
    if net.num_classes is not None:
        emb += nn.Embed(net.num_classes + 1, width, dtype=dtype, name="label")(cond["label"])
    if net.numbers:
        numbers = jnp.concatenate([cond[name] for name in net.numbers], axis=-1)
        emb += embed_numbers(numbers, cond["text_pooled"] if net.pools_text else None, sizes, dtype)
    elif net.pools_text:
        emb += Dense(width, dtype=dtype, name="text_pooled")(cond["text_pooled"])
    for name in net.levels:
        if sizes.level_rows:
            table = nn.Embed(sizes.level_rows, width, dtype=dtype, name=f"level_{name}")
            emb += table(cond[name].astype(jnp.int32))
            continue
        emb += embed_level(net.level_scale * cond[name], sizes, dtype, f"level_{name}")
    return jnp.asarray(emb)
