"""How much one image is like another: PSNR and SSIM.

Images are [B, H, W, C] in [-1, 1]. Each measure is one number an example, [B].
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffusion_jax.errors import UserError

DATA_RANGE = 2.0
"""Largest minus smallest value of a pixel."""

WINDOW, WINDOW_STD = 11, 1.5
"""Side and standard deviation of SSIM's Gaussian window in pixels: section III of the paper."""


def psnr(x: Array, y: Array) -> Array:
    """The peak signal-to-noise ratio in dB, 10 log10(2^2 / mean squared error): images x, y [B, H, W, C] -> [B].

    Infinite for equal images.
    """
    return 10.0 * jnp.log10(DATA_RANGE**2 / _mean((x.astype(jnp.float32) - y.astype(jnp.float32)) ** 2))


def ssim(x: Array, y: Array) -> Array:
    """The structural similarity of images x, y [B, H, W, C] -> [B], 1 for equal images: Wang et al. 2004, eq. 13.

    It is taken in each channel through a Gaussian window of 11 x 11 pixels and standard deviation 1.5, with K1 = 0.01
    and K2 = 0.03, and averaged over channels and over all places where the window lies inside the image. Raises
    UserError for images smaller than the window.
    """
    if min(x.shape[1:3]) < WINDOW:
        raise UserError(f"SSIM looks through {WINDOW} x {WINDOW} pixels; got images of {x.shape[1]} x {x.shape[2]}")
    x, y = x.astype(jnp.float32), y.astype(jnp.float32)
    # A shift changes no variance. With a mean near 0, E[x^2] - E[x]^2 loses no precision.
    shift_x, shift_y = (v.mean(axis=(1, 2), keepdims=True) for v in (x, y))  # [B, 1, 1, C]
    x, y = x - shift_x, y - shift_y
    mean_x, mean_y, square_x, square_y, product = _window(jnp.stack([x, y, x * x, y * y, x * y]))
    variances = square_x - mean_x**2 + square_y - mean_y**2
    covariance = product - mean_x * mean_y
    mean_x, mean_y = mean_x + shift_x, mean_y + shift_y
    c1, c2 = (0.01 * DATA_RANGE) ** 2, (0.03 * DATA_RANGE) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return _mean(luminance * (2 * covariance + c2) / (variances + c2))


def _window(v: Array) -> Array:
    """Means through the window: [..., H, W, C] -> [..., H - 10, W - 10, C].

    They are sums of slices, for a convolution on a TPU would round to bfloat16.
    """
    offsets = np.arange(WINDOW) - WINDOW // 2
    weights = np.exp(-(offsets**2) / (2 * WINDOW_STD**2))
    weights /= weights.sum()
    for axis in (-3, -2):
        length = v.shape[axis] - WINDOW + 1
        slices = [float(w) * jax.lax.slice_in_dim(v, i, i + length, axis=axis) for i, w in enumerate(weights)]
        v = sum(slices[1:], slices[0])
    return v


def _mean(v: Array) -> Array:
    """[B, ...] -> [B]."""
    return jnp.mean(v.reshape(len(v), -1), axis=1)
