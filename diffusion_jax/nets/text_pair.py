"""Two CLIP text towers side by side, as Stable Diffusion XL reads a text (arXiv:2307.01952, section 2.1)."""

from collections.abc import Mapping

import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike

from diffusion_jax.errors import UserError
from diffusion_jax.nets.text import ClipText, Encoded

TowerOptions = Mapping[str, int | float | str | bool | None]
"""The arguments of a `ClipText`."""


class ClipPair(nn.Module):
    """The states of both towers, one beside the other, and the pooled state of the second."""

    first: TowerOptions
    second: TowerOptions
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, tokens: Array, mask: Array | None = None, *, train: bool = False) -> Encoded:
        """tokens [B, 2 N] int32, the first tower's and then the second's -> hidden [B, N, D1 + D2], pooled [B, D'].

        Raises UserError for a mask: both towers see the padding, as in Stable Diffusion.
        """
        if mask is not None or tokens.shape[-1] % 2:
            raise UserError(f"two text towers take tokens [B, 2 N] and no mask; got {tokens.shape}")
        first, second = jnp.split(tokens, 2, axis=-1)
        one, other = (
            ClipText(**options, dtype=self.dtype, name=name)(ids)  # type: ignore[arg-type]
            for name, options, ids in (("first", self.first, first), ("second", self.second, second))
        )
        return Encoded(jnp.concatenate([one.hidden, other.hidden], axis=-1), one.mask, other.pooled)
