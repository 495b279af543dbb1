"""The spatial transformer of latent diffusion (arXiv:2112.10752, appendix E.2.1): positions attend to text.

Dimension key B *S C and N tokens of width D. Its parameters carry the names that Megatron's pairing of matrices needs:
`*_attention/{query,key,value}` before `out`, and `feed_forward/{gate,linear}` before `project`.
"""

import math
from functools import partial

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike

from diffusion_jax.nets.context import split_tokens
from diffusion_jax.nets.dense import ZERO, Dense
from diffusion_jax.nets.geglu import FeedForward
from diffusion_jax.nets.layers import GroupNorm, attention_heads
from diffusion_jax.nets.multi_head import multi_head
from diffusion_jax.nets.rematerialization import product

TENSOR_RULES: tuple[tuple[str, int], ...] = (
    (r"feed_forward/(linear|gate)/(kernel|bias)$", -1),
    (r"feed_forward/project/kernel$", -2),
)
"""As `layers.TENSOR_RULES`, of the feed-forward layers here."""


class Attention(nn.Module):
    """Multi-head attention of x to a context; query, key and value have no bias: [B, N, C] -> [B, N, C]."""

    heads: int
    kernel: str = "auto"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, context: Array, mask: Array | None = None) -> Array:
        """x [B, N, C], context [B, M, D], mask [B, M] True where it may be attended to -> [B, N, C]."""
        return multi_head(x, context, self.heads, mask=mask, bias=False, kernel=self.kernel, dtype=self.dtype)


class TransformerLayer(nn.Module):
    """Self-attention, attention to the text, feed-forward; each after a layer norm and added to its input."""

    heads: int
    kernel: str = "auto"
    text_alone: bool = False
    """Whether the self-attention's place is taken by another attention to the text."""
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, text: Array, mask: Array | None = None) -> Array:
        """x [B, N, C], text [B, M, D], mask [B, M] -> [B, N, C]."""

        def norm(name: str, x: Array) -> Array:
            return nn.LayerNorm(1e-5, dtype=self.dtype, use_fast_variance=False, name=name)(x)

        h = norm("norm_self", x)
        attention = partial(Attention, self.heads, self.kernel, dtype=self.dtype)
        first = attention(name="self_attention")
        x = product(x + (first(h, text, mask) if self.text_alone else first(h, h)))
        x = product(x + attention(name="cross_attention")(norm("norm_cross", x), text, mask))
        return x + FeedForward(self.kernel, dtype=self.dtype, name="feed_forward")(norm("norm_feed", x))


PLACE = 4.0
"""The amplitude of `place_embedding` among states of unit variance: where the noise is high these are little but noise,
and a query that is to ask for what lies on the left must know its own place in spite of it."""


def place_embedding(size: tuple[int, ...], features: int) -> np.ndarray:
    """Sines and cosines of where each position lies: [prod(size), features], float32.

    Along each axis the middles of the n positions are u = (2 i + 1) / n - 1, and features are sin and cos of
    pi u 10^(-j / k), j < k = features // (2 rank), whatever the size of an image; the features that are left are 0.
    """
    rank = len(size)
    count = features // (2 * rank)
    places = np.meshgrid(*((2 * np.arange(n) + 1) / n - 1 for n in size), indexing="ij")
    frequencies = math.pi * 10.0 ** (-np.arange(count) / max(count, 1))
    angles = np.stack(places, axis=-1).reshape(-1, rank, 1) * frequencies  # [N, rank, k]
    waves = np.concatenate([np.sin(angles), np.cos(angles)], axis=-1).reshape(len(angles), -1)
    return np.pad(waves, ((0, 0), (0, features - waves.shape[1]))).astype(np.float32)


class SpatialTransformer(nn.Module):
    """`depth` transformer layers over the positions of x, between two projections, added to x: [B, *S, C] -> like x.

    The last projection starts at zero, so the block starts as the identity. Stable Diffusion 1 writes the projections
    as 1 x 1 convolutions, 2 as dense layers; they are the same map.
    """

    heads: int
    groups: int
    depth: int = 1
    places: bool = False
    """Whether `place_embedding` is added to the states: attention itself does not know where a position lies."""
    kernel: str = "auto"
    text_alone: bool = False
    """As `TransformerLayer`."""
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, text: Array, mask: Array | None = None) -> Array:
        """x [B, *S, C], text [B, M, D], mask [B, M] True where a token counts -> [B, *S, C]."""
        batch, channels = x.shape[0], x.shape[-1]
        heads = attention_heads(channels, self.heads)
        h = GroupNorm(self.groups, 1e-6, dtype=self.dtype, name="norm_in")(x).reshape(batch, -1, channels)
        h = Dense(channels, dtype=self.dtype, name="project_in")(h)  # [B, N, C]
        if self.places:
            h += jnp.asarray(PLACE * place_embedding(x.shape[1:-1], channels), self.dtype)
        h = split_tokens(h)
        for i in range(self.depth):
            layer = TransformerLayer(heads, self.kernel, self.text_alone, dtype=self.dtype, name=f"layer_{i}")
            h = layer(h, text, mask)
        h = Dense(channels, dtype=self.dtype, kernel_init=ZERO, name="project_out")(h)
        return x + h.reshape(x.shape)
