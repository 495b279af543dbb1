"""Spatial conditions: what they are made of, against Pillow, and what is random about them."""

import jax
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


def test_low_resolution_says_how_noisy_it_is():
    condition = conditions.low_resolution(factor=4, noise=0.5)
    x = images(2000, 4, 4, 1)
    clean = condition.parts({"image": jnp.asarray(x)})
    noisy = condition.augment(jax.random.key(0), clean)
    level = np.asarray(noisy["low_resolution_level"])
    assert level.min() >= 0
    assert level.max() < 0.5
    assert level.mean() == pytest.approx(0.25, abs=0.01)
    scale = np.sqrt(1 - level**2).reshape(-1, 1, 1, 1)
    z = (noisy["low_resolution"] - scale * clean["low_resolution"]) / level.reshape(-1, 1, 1, 1)
    assert float(jnp.mean(z)) == pytest.approx(0, abs=0.02)
    assert float(jnp.std(z)) == pytest.approx(1, abs=0.02)
    assert condition.levels == ("low_resolution_level",)
    assert not conditions.low_resolution(factor=4).levels


def test_inpainting_sees_the_mask_and_nothing_of_what_it_hides():
    condition = conditions.inpaint()
    x, mask = images(), np.random.default_rng(1).random((4, 16, 24)) < 0.5
    parts = condition.parts({"image": jnp.asarray(x), "mask": jnp.asarray(mask)})
    np.testing.assert_array_equal(parts["mask"][..., 0], mask)
    np.testing.assert_array_equal(parts["known"], np.where(mask[..., None], 0, x))
    assert {name: a.shape[-1] for name, a in parts.items()} == condition.channels(3)


def test_a_map_is_one_channel_a_class():
    condition = conditions.semantic_map(classes=5)
    classes = np.random.default_rng(0).integers(0, 5, (2, 8, 8)).astype(np.int32)
    parts = condition.parts({"map": jnp.asarray(classes)})
    np.testing.assert_array_equal(jnp.argmax(parts["map"], axis=-1), classes)
    np.testing.assert_array_equal(parts["map"].sum(axis=-1), 1)


def test_dropping_leaves_out_all_of_an_example_or_nothing():
    parts = {"a": jnp.ones((1000, 2, 2, 3)), "level": jnp.ones(1000)}
    out = conditions.dropped(jax.random.key(0), parts, 0.3)
    kept = np.asarray(out["level"])
    assert 1 - kept.mean() == pytest.approx(0.3, abs=0.05)
    np.testing.assert_array_equal(out["a"], np.broadcast_to(kept.reshape(-1, 1, 1, 1), (1000, 2, 2, 3)))
    assert conditions.dropped(jax.random.key(0), parts, 0.0) is parts


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: conditions.low_resolution(factor=1), "factor of at least 2"),
        (lambda: conditions.low_resolution(noise=1.0), r"noise in \[0, 1\)"),
        (lambda: conditions.inpaint(dropout=1.0), r"inpaint takes a dropout in \[0, 1\)"),
        (lambda: conditions.semantic_map(classes=0), "number of its classes"),
        (lambda: conditions.shrunk(jnp.zeros((1, 6, 8, 3)), 4), "6 x 8 pixels cannot be shrunk 4 times"),
    ],
)
def test_what_cannot_be_is_said(build, said):
    with pytest.raises(UserError, match=said):
        build()
