"""Functions of which conditions are made: of images [B, H, W, C] in [-1, 1], and of named entries [B, ...]."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax import Array

from diffusion_jax.errors import UserError


def shrunk(x: Array, factor: int) -> Array:
    """The means over squares of factor x factor pixels: [B, H, W, C] -> [B, H / factor, W / factor, C].

    Raises UserError where factor does not divide the sides.
    """
    b, h, w, c = x.shape
    if h % factor or w % factor:
        raise UserError(f"an image of {h} x {w} pixels cannot be shrunk {factor} times; its sides must be divisible")
    return x.reshape(b, h // factor, factor, w // factor, factor, c).mean(axis=(2, 4))


def enlarged(x: Array, factor: int) -> Array:
    """The bicubic enlargement, clipped to [-1, 1]: [B, h, w, C] -> [B, factor h, factor w, C].

    It is the baseline of super-resolution.
    """
    b, h, w, c = x.shape
    return jnp.clip(jax.image.resize(x, (b, factor * h, factor * w, c), "cubic"), -1.0, 1.0)


def noised(key: Array, x: Array, level: Array) -> Array:
    """sqrt(1 - s^2) x + s z with s = level [B] and standard normal z, for x [B, ...]."""
    s = level.reshape(-1, *(1,) * (x.ndim - 1))
    return jnp.sqrt(1 - s**2) * x + s * jax.random.normal(key, x.shape)


def left_out(where: Array, entries: Mapping[str, Array], null: Mapping[str, Array]) -> dict[str, Array]:
    """The entries [B, ...], replaced by those of null, which broadcast to them, in the examples where [B] is True."""
    return {name: jnp.where(where.reshape(-1, *(1,) * (a.ndim - 1)), null[name], a) for name, a in entries.items()}
