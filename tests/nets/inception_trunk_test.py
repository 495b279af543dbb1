"""What of InceptionV3 can be known without its weights: resize, pools, sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.errors import UserError
from diffusion_jax.nets.inception import ConvNorm, InceptionV3, average, maximum, resize


def shapes(images):
    return jax.eval_shape(InceptionV3().init_with_output, jax.random.key(0), images)


def test_sizes_are_the_graphs():
    features, variables = shapes(jnp.zeros((2, 64, 48, 3), jnp.uint8))
    assert {name: f.shape for name, f in features.items()} == {
        "2048": (2, 2048),
        "logits": (2, 1008),
        "logits_unbiased": (2, 1008),
        "spatial": (2, 2023),  # of ADM's mu_s
    }
    sizes = {"/".join(k.key for k in p): x.size for p, x in jax.tree_util.tree_leaves_with_path(variables["params"])}
    # Keras counts 23,851,784 for 1,000 classes, without the scales of its 94 norms.
    scales = [n for name, n in sizes.items() if name.endswith("/scale")]
    assert len(scales) == 94
    assert sum(sizes.values()) == 23_851_784 + sum(scales) + 8 * 2049


def test_an_image_of_299_is_not_resized():
    x = np.random.default_rng(0).integers(0, 256, (1, 299, 299, 3), np.uint8)
    np.testing.assert_array_equal(resize(x), x)


def test_resize_is_linear_between_corners_that_are_kept():
    """Pixel i of H is output i 299 / H; a ramp stays one until the last pixel, which is repeated beyond its place."""
    side = 12
    ramp = np.arange(4, dtype=np.uint8)
    expected = np.minimum(np.arange(side) * 4 / side, 3)
    rows = np.broadcast_to(ramp[None, :, None, None], (1, 4, 5, 1))
    np.testing.assert_allclose(resize(rows, side)[0, :, 7, 0], expected, rtol=1e-6)
    np.testing.assert_allclose(resize(rows.swapaxes(1, 2), side)[0, 7, :, 0], expected, rtol=1e-6)


def test_the_average_leaves_padding_out_and_the_maximum_is_below_zero():
    x = -1 - np.random.default_rng(0).random((1, 4, 5, 2), np.float32)
    inside = [[x[0, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2] for j in range(5)] for i in range(4)]
    means = [[cell.mean(axis=(0, 1)) for cell in row] for row in inside]
    greatest = [[cell.max(axis=(0, 1)) for cell in row] for row in inside]
    np.testing.assert_allclose(average(x)[0], means, rtol=1e-6)
    np.testing.assert_array_equal(maximum(x)[0], greatest)


def test_the_norm_uses_its_own_statistics():
    """An identity kernel and moments of 2 and 9 - 1e-3: relu(gamma (x - 2) / 3 + beta)."""
    params = {
        "kernel": jnp.ones((1, 1, 1, 1)),
        "scale": jnp.array([6.0]),
        "bias": jnp.array([0.5]),
        "mean": jnp.array([2.0]),
        "var": jnp.array([9 - 1e-3]),
    }
    x = jnp.array([1.0, 2.0, 4.0]).reshape(1, 3, 1, 1)
    out = ConvNorm(1, (1, 1)).apply({"params": params}, x)
    np.testing.assert_allclose(out.ravel(), [0, 0.5, 4.5], rtol=1e-6)


@pytest.mark.parametrize("images", [np.zeros((1, 8, 8, 3), np.float32), np.zeros((1, 8, 8, 1), np.uint8)])
def test_other_images_are_refused(images):
    with pytest.raises(UserError, match=r"images of bytes, uint8 \[B, H, W, 3\].* got"):
        shapes(images)
