"""Tiled decoding against decoding at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.core.tiles import decode_tiled
from diffusion_jax.errors import UserError


def normal(*shape, seed=0, scale=1.0):
    return np.asarray(scale * np.random.default_rng(seed).standard_normal(shape), np.float32)


def local(z):
    """Every latent becomes 2 x 3 pixels of its own."""
    pixels = jnp.repeat(jnp.repeat(z, 2, axis=1), 3, axis=2)
    inside = jnp.arange(pixels.shape[1])[:, None] % 2 + 2.0 * (jnp.arange(pixels.shape[2]) % 3)
    return pixels[..., :2] ** 2 + pixels[..., 1:] * inside[..., None]


@pytest.mark.parametrize(
    ("side", "tile", "overlap"),
    [((8, 8), 5, 2), ((7, 13), 4, 1), ((4, 11), 5, 4), ((9, 6), 3, 0), ((12, 7), 7, 3)],
    ids=["square", "uneven", "short_side_and_triple_cover", "no_overlap", "one_column"],
)
def test_tiles_of_a_local_decoder_are_the_plain_decode_to_the_last_bit(side, tile, overlap):
    z = normal(2, *side, 3)
    seen = []

    def decode(z):
        seen.append(z.shape)
        return local(z)

    got = jax.jit(lambda z: decode_tiled(decode, z, tile, overlap))(z)
    np.testing.assert_array_equal(got, jax.jit(local)(z))
    # Compiled once, for a tile.
    assert set(seen) == {(2, min(tile, side[0]), min(tile, side[1]), 3)}


def test_one_tile_that_covers_everything_is_the_plain_decode():
    z = normal(2, 6, 8, 3)
    np.testing.assert_array_equal(decode_tiled(lambda z: z - z.mean(), z, 8, 2), z - z.mean())


def test_tiles_fade_linearly_into_each_other():
    """A decoder that paints a tile with its first latent: the seam is a straight line between the two."""

    def decode(z):
        return jnp.broadcast_to(z[:, :1, :1], (len(z), 2 * z.shape[1], 2 * z.shape[2], z.shape[-1]))

    z = np.arange(8, dtype=np.float32).reshape(1, 1, 8, 1)  # tiles [0, 5) and [3, 8): values 0 and 3
    got = np.asarray(decode_tiled(decode, z, 5, 2))
    row = np.interp(np.arange(16) + 0.5, [6, 10], [0, 3])
    np.testing.assert_allclose(got[0, :, :, 0], np.stack([row, row]), rtol=1e-6)
    np.testing.assert_array_equal(decode_tiled(decode, z.swapaxes(1, 2), 5, 2), got.swapaxes(1, 2))


@pytest.mark.parametrize("overlap", [4, -1])
def test_an_overlap_of_a_whole_tile_is_refused(overlap):
    with pytest.raises(UserError, match=f"overlap by 0 to 3; got {overlap}"):
        decode_tiled(local, jnp.zeros((1, 8, 8, 3)), 4, overlap)


def test_a_decoder_of_no_whole_factor_is_refused():
    with pytest.raises(UserError, match="made 3 x 3 of 4 x 4"):
        decode_tiled(lambda z: z[:, 1:, 1:], jnp.zeros((1, 8, 8, 3)), 4, 1)
