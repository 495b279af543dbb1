"""The PatchGAN discriminator that judges an autoencoder's images patch by patch; dimension key B H W C."""

from typing import ClassVar

import jax.numpy as jnp
from flax import linen as nn
from jax import Array, lax
from jax.typing import DTypeLike

from diffusion_jax.errors import UserError
from diffusion_jax.nets.layers import ZERO, GroupNorm

INIT = nn.initializers.normal(0.02)
"""Of pix2pix (arXiv:1611.07004, appendix 6.2)."""


class Conv4(nn.Module):
    """A convolution of 4 x 4 with one zero around the image."""

    features: int
    stride: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, H, W, C] -> [B, (H - 2) // stride + 1, (W - 2) // stride + 1, features] of `dtype`."""
        kernel = self.param("kernel", INIT, (4, 4, x.shape[-1], self.features), jnp.float32)
        bias = self.param("bias", ZERO, (self.features,), jnp.float32)
        strides, pads, dims = (self.stride, self.stride), ((1, 1), (1, 1)), ("NHWC", "HWIO", "NHWC")
        y = lax.conv_general_dilated(
            x.astype(self.dtype), kernel.astype(self.dtype), strides, pads, dimension_numbers=dims
        )
        return y + bias.astype(self.dtype)


class PatchDiscriminator(nn.Module):
    """A logit for every patch, 70 x 70 pixels where layers is 3: the discriminator of pix2pix, VQGAN and LDM.

    Where theirs has batch normalization, this has group normalization, or none where groups is None: the logits of an
    image then depend on no other image of the batch, nor on how the batch is split over devices.
    """

    channels: int = 64
    layers: int = 3
    """Convolutions of stride 2; each after the first has twice the channels, up to 8 times."""
    groups: int | None = 32
    dtype: DTypeLike = jnp.float32
    """Of the computation: parameters and output are float32 always."""

    outer_layers: ClassVar[tuple[str, ...]] = ("conv_out",)

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x [B, H, W, C] in [-1, 1] -> logits [B, H / 2^layers - 2, W / 2^layers - 2], positive for real.

        Raises UserError where the image is too small for one patch.
        """
        least = 3 * 2**self.layers
        if min(x.shape[1:3]) < least:
            raise UserError(
                f"a discriminator of {self.layers} layers judges images of at least {least} x {least} pixels; "
                f"got {x.shape[1]} x {x.shape[2]}; use fewer layers"
            )
        x = nn.leaky_relu(Conv4(self.channels, 2, self.dtype, name="conv_0")(x), 0.2)
        for i in range(1, self.layers + 1):
            width = self.channels * min(2**i, 8)
            x = Conv4(width, 2 if i < self.layers else 1, self.dtype, name=f"conv_{i}")(x)
            if self.groups is not None:
                x = GroupNorm(self.groups, epsilon=1e-5, dtype=self.dtype, name=f"norm_{i}")(x)
            x = nn.leaky_relu(x, 0.2)
        return Conv4(1, 1, name="conv_out")(x.astype(jnp.float32))[..., 0]
