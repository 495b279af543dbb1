"""What spatial conditions are made of, against Pillow."""

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from diffusion_jax.core import conditions
from diffusion_jax.errors import UserError


def images(n=4, height=16, width=24, channels=3):
    return np.random.default_rng(0).uniform(-1, 1, (n, height, width, channels)).astype(np.float32)


def pillow(x, height, width, method):
    """Each channel resampled by Pillow, in float."""
    planes = [
        [np.asarray(Image.fromarray(image[..., c]).resize((width, height), method)) for c in range(image.shape[-1])]
        for image in x
    ]
    return np.moveaxis(np.asarray(planes), 1, -1)


@pytest.mark.parametrize("factor", [2, 4])
def test_shrinking_and_enlarging_are_pillows_box_and_bicubic(factor):
    x = images()
    low = conditions.shrunk(x, factor)
    np.testing.assert_allclose(low, pillow(x, 16 // factor, 24 // factor, Image.Resampling.BOX), atol=1e-6)
    large = pillow(np.asarray(low), 16, 24, Image.Resampling.BICUBIC).clip(-1, 1)
    np.testing.assert_allclose(conditions.enlarged(low, factor), large, atol=3e-6)


def test_repeated_pixels_are_shrunk_to_themselves():
    """So a small image that a user gives becomes the same condition as in training."""
    low = images(height=4, width=6)
    np.testing.assert_allclose(conditions.shrunk(low.repeat(4, 1).repeat(4, 2), 4), low, atol=1e-6)


def test_leaving_out_takes_all_of_an_example_or_nothing():
    entries = {"a": jnp.ones((5, 2, 2, 3)), "level": jnp.ones(5), "mask": jnp.ones((5, 4), bool)}
    null = {"a": jnp.full((5, 2, 2, 3), 7.0), "level": jnp.zeros(5), "mask": jnp.zeros((1, 4), bool)}
    where = np.array([True, False, False, True, False])
    out = conditions.left_out(jnp.asarray(where), entries, null)
    np.testing.assert_array_equal(out["level"], ~where)
    np.testing.assert_array_equal(out["a"], np.broadcast_to(np.where(where, 7, 1).reshape(-1, 1, 1, 1), (5, 2, 2, 3)))
    np.testing.assert_array_equal(out["mask"], np.broadcast_to(~where[:, None], (5, 4)))


def test_an_image_that_cannot_be_shrunk_is_said():
    with pytest.raises(UserError, match="6 x 8 pixels cannot be shrunk 4 times"):
        conditions.shrunk(jnp.zeros((1, 6, 8, 3)), 4)
