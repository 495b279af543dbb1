"""LPIPS, the perceptual distance of arXiv:1801.03924, on the features of VGG16; images [B, H, W, 3] in [-1, 1]."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike

from diffusion_jax.errors import UserError
from diffusion_jax.nets.layers import Conv

WIDTHS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
"""Channels of VGG16's convolutions, level by level (arXiv:1409.1556, table 1, D)."""

SHIFT = np.array([-0.030, -0.088, -0.188], np.float32)
SCALE = np.array([0.458, 0.448, 0.450], np.float32)
"""ImageNet's mean and std of the channels, for pixels in [-1, 1]."""


class LPIPS(nn.Module):
    """sum_l mean_hw sum_c w_lc (f_lc(x) - f_lc(y))^2, f_l the features of level l, each pixel's of length 1: eq. 1.

    The levels are relu1_2, relu2_2, relu3_3, relu4_3 and relu5_3 of VGG16. `interop.lpips_weights` reads the weights.
    """

    dtype: DTypeLike = jnp.float32
    """Of the features; the distance is float32."""

    @nn.compact
    def __call__(self, x: Array, y: Array) -> Array:
        """x, y [B, H, W, 3] -> [B], 0 where equal; sides of at least 16 pixels, or UserError."""
        if x.shape != y.shape or x.shape[-1] != 3 or min(x.shape[1:3]) < 16:
            raise UserError(
                f"LPIPS compares images of one shape [B, H, W, 3], at least 16 x 16; got {x.shape} and {y.shape}"
            )
        h = (jnp.concatenate([x, y]).astype(jnp.float32) - SHIFT) / SCALE  # [2 B, H, W, 3]
        distance = jnp.zeros(len(x), jnp.float32)
        for k, widths in enumerate(WIDTHS):
            if k:
                h = nn.max_pool(h, (2, 2), (2, 2))
            for i, width in enumerate(widths):
                h = nn.relu(Conv(width, dtype=self.dtype, name=f"conv_{k}_{i}")(h))
            f = _unit(h.astype(jnp.float32))
            weight = self.param(f"head_{k}", nn.initializers.constant(1 / widths[-1]), (widths[-1],), jnp.float32)
            squares = jnp.square(f[: len(x)] - f[len(x) :])  # [B, h, w, C]
            distance += jnp.sum(squares * weight, axis=-1).mean(axis=(1, 2))
        return distance


def shapes() -> dict[str, Any]:
    """The shapes of LPIPS's params, whatever the images' size."""
    x = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)
    params: dict[str, Any] = jax.eval_shape(LPIPS().init, jax.random.key(0), x, x)["params"]
    return params


def _unit(h: Array) -> Array:
    """Each pixel's features over their length plus 1e-10; where the squares are all 0 the gradient is finite."""
    square = jnp.sum(h * h, axis=-1, keepdims=True)
    return h / (jnp.sqrt(jnp.where(square > 0, square, 1.0)) + 1e-10)
