"""PSNR and SSIM against their papers' formulas in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.signal import convolve2d

from diffusion_jax.core.similarity import psnr, ssim
from diffusion_jax.errors import UserError


def normal(*shape, seed=0, scale=1.0):
    return np.asarray(scale * np.random.default_rng(seed).standard_normal(shape), np.float32)


def ssim_float64(x, y):
    """Wang et al. 2004 read afresh: a dense window in two dimensions, moments about the window's own mean."""
    y_axis, x_axis = np.mgrid[-5:6, -5:6]
    window = np.exp(-(x_axis**2 + y_axis**2) / (2 * 1.5**2))
    window /= window.sum()

    def blur(v):
        return convolve2d(v, window, mode="valid")

    values = []
    for c in range(x.shape[-1]):
        a, b = x[..., c].astype(np.float64), y[..., c].astype(np.float64)
        mean_a, mean_b = blur(a), blur(b)
        var_a, var_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
        covariance = blur(a * b) - mean_a * mean_b
        c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
        top = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
        values.append(top / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)))
    return np.mean(values)


def pictures():
    """[3, 17, 14, 3]: noise, a smooth picture with noise, a bright flat one, where E[x^2] - E[x]^2 cancels."""
    ramp = np.broadcast_to(np.linspace(-1, 1, 14)[:, None], (17, 14, 3))
    x = np.stack([normal(17, 14, 3).clip(-1, 1), ramp, np.full((17, 14, 3), 0.97)]).astype(np.float32)
    noise = normal(3, 17, 14, 3, seed=1) * np.array([0.5, 0.1, 0.01], np.float32)[:, None, None, None]
    return x, (x + noise).clip(-1, 1)


def test_ssim_is_the_papers_in_float64_for_each_image():
    x, y = pictures()
    expected = [ssim_float64(a, b) for a, b in zip(x, y, strict=True)]
    assert max(expected) - min(expected) > 0.1
    np.testing.assert_allclose(jax.jit(ssim)(x, y), expected, atol=2e-6)
    np.testing.assert_allclose(ssim(x, x), 1.0, atol=1e-6)


def test_ssim_of_images_smaller_than_its_window_is_refused():
    with pytest.raises(UserError, match="11 x 11 pixels; got images of 10 x 20"):
        ssim(jnp.zeros((1, 10, 20, 3)), jnp.zeros((1, 10, 20, 3)))


def test_psnr_is_that_of_eight_bit_images():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (2, 4, 5, 6, 3)).astype(np.float64)
    expected = 10 * np.log10(255**2 / ((x - y) ** 2).mean(axis=(1, 2, 3)))
    scaled = [(v / 127.5 - 1).astype(np.float32) for v in (x, y)]
    np.testing.assert_allclose(psnr(*scaled), expected, rtol=1e-5)
    assert np.isposinf(psnr(scaled[0], scaled[0])).all()
