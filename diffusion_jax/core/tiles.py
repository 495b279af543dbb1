"""Decoding latents that are larger than the memory for them allows: tile by tile, with faded seams."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffusion_jax.errors import UserError


def decode_tiled(decode: Callable[[Array], Array], z: Array, tile: int, overlap: int) -> Array:
    """decode(z), computed tile by tile so that the activations of one tile are all that is held in memory.

    decode maps latents [B, h, w, C] to images [B, f h, f w, C'] with some whole f; so does this function for z
    [B, h, w, C]. Tiles have tile x tile latents, or the whole side where that is shorter, are evenly spaced, and share
    at least `overlap` latents with the next. There one tile fades linearly into the other. Where the tiles agree their
    common value comes out to the last bit, so a decoder that sees only the latent at each place gives decode(z).
    Normalization and attention over the image see a single tile.

    Raises UserError unless 0 <= overlap < tile, and for a decoder whose f is not a whole number.
    """
    if not 0 <= overlap < tile:
        raise UserError(f"tiles of {tile} latents overlap by 0 to {tile - 1}; got {overlap}")
    sides = z.shape[1:3]
    if max(sides) <= tile:
        return decode(z)
    height, width = (min(tile, side) for side in sides)
    tops, lefts = (_starts(side, tile, overlap) for side in sides)
    tiles = jnp.stack([z[:, i : i + height, j : j + width] for i in tops for j in lefts])  # [N, B, height, width, C]
    # `map` compiles the decoder once and runs it on one tile after another.
    decoded = jax.lax.map(decode, tiles)  # [N, B, f height, f width, C']
    (down, odd), (right, odd_too) = divmod(decoded.shape[2], height), divmod(decoded.shape[3], width)
    if odd or odd_too:
        raise UserError(
            f"a decoder multiplies the sides of its latents by a whole number; this one made "
            f"{decoded.shape[2]} x {decoded.shape[3]} of {height} x {width}"
        )
    rows = decoded.reshape(len(tops), len(lefts), *decoded.shape[1:])
    strips = [_fade([*row], [right * left for left in lefts], axis=2) for row in rows]
    return _fade(strips, [down * top for top in tops], axis=1)


def _starts(side: int, tile: int, overlap: int) -> list[int]:
    """The first latent of each of the fewest tiles that cover a side, evenly spaced."""
    gaps = max(-(-(side - tile) // (tile - overlap)), 0)
    return [0] + [i * (side - tile) // gaps for i in range(1, gaps + 1)]


def _fade(parts: list[Array], starts: list[int], axis: int) -> Array:
    """The parts joined along axis, part i beginning at starts[i].

    Where two parts overlap, the weight of the later one rises linearly from 0 to 1.
    """
    out = parts[0]
    for start, part in zip(starts[1:], parts[1:], strict=True):
        shared = out.shape[axis] - start
        alone, before = jnp.split(out, [start], axis)
        after, rest = jnp.split(part, [shared], axis)
        ramp = (np.arange(shared) + 0.5) / max(shared, 1)
        weight = jnp.asarray(np.expand_dims(ramp, [i for i in range(out.ndim) if i != axis]), out.dtype)
        # Written so that equal values stay as they are, to the last bit.
        out = jnp.concatenate([alone, before + weight * (after - before), rest], axis)
    return out
