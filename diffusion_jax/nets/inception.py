"""InceptionV3 as FID means it: the TensorFlow graph of 2015-12-05, arXiv:1512.00567 with that graph's peculiarities.

They are its resize, its average pools that leave padding out of the mean, a max pool in the last block, and 1,008
classes. Names of the modules are those of its PyTorch ports (pytorch-fid, torch-fidelity), whose weights
`interop.inception_weights` reads. Images are bytes, [B, H, W, 3]. For inference: the statistics of the norms are
params, as constant as the rest.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from diffusion_jax.errors import UserError

SIDE = 299
EPSILON = 1e-3
PRECISION = jax.lax.Precision.HIGHEST
"""Accelerators would round float32 products to TF32 or bfloat16, and move FID by more than papers differ."""


def resize(images: Array, side: int = SIDE) -> Array:
    """TensorFlow 1's bilinear resize without aligned corners: output i is at i H / side, corners at pixel centres.

    [B, H, W, C] -> [B, side, side, C] float32 on the scale of the input; it does not smooth before it shrinks.
    """
    x = images.astype(jnp.float32)
    for axis in (2, 1):
        size = x.shape[axis]
        at = np.arange(side, dtype=np.float32) * np.float32(size / side)
        low = at.astype(np.int32)
        weight = np.expand_dims(at - low, tuple(range(1, x.ndim - axis)))  # [side, 1, ...] on the axes that follow
        below = jnp.take(x, low, axis, mode="clip")
        x = below + (jnp.take(x, np.minimum(low + 1, size - 1), axis, mode="clip") - below) * weight
    return x


class InceptionV3(nn.Module):
    """uint8 [B, H, W, 3] -> its features, float32, by name: 2048, logits, logits_unbiased, spatial.

    "2048" [B, 2048] is the pool that FID, KID and precision and recall take. "logits" [B, 1008] are of the classes;
    "logits_unbiased", without the last bias, are what the Inception score takes. "spatial" [B, 17 * 17 * 7], of sFID
    (arXiv:2103.03841), are the first 7 channels of the graph's mixed_6/conv, rows first.
    """

    @nn.compact
    def __call__(self, images: Array) -> dict[str, Array]:
        """Raises UserError for images of another type or shape."""
        if images.dtype != jnp.uint8 or images.ndim != 4 or images.shape[-1] != 3:
            raise UserError(
                f"InceptionV3 takes images of bytes, uint8 [B, H, W, 3], grey ones repeated over the channels; got "
                f"{images.dtype} {images.shape}"
            )
        x = (resize(images) - 128) / 128  # [B, 299, 299, 3]
        x = ConvNorm(32, (3, 3), 2, "VALID", name="Conv2d_1a_3x3")(x)  # [B, 149, 149, 32]
        x = ConvNorm(32, (3, 3), 1, "VALID", name="Conv2d_2a_3x3")(x)
        x = ConvNorm(64, (3, 3), name="Conv2d_2b_3x3")(x)
        x = nn.max_pool(x, (3, 3), (2, 2))  # [B, 73, 73, 64]
        x = ConvNorm(80, (1, 1), name="Conv2d_3b_1x1")(x)
        x = ConvNorm(192, (3, 3), 1, "VALID", name="Conv2d_4a_3x3")(x)
        x = nn.max_pool(x, (3, 3), (2, 2))  # [B, 35, 35, 192]
        for name, width in (("Mixed_5b", 32), ("Mixed_5c", 64), ("Mixed_5d", 64)):
            x = InceptionA(width, name=name)(x)  # [B, 35, 35, 224 + width]
        x = InceptionB(name="Mixed_6a")(x)  # [B, 17, 17, 768]
        for name, width in (("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160), ("Mixed_6e", 192)):
            x = InceptionC(width, name=name)(x)  # [B, 17, 17, 768]
            if name == "Mixed_6d":  # the graph counts blocks from 0: its mixed_6, whose first branch is `conv`
                spatial = x[..., :7].reshape(len(x), -1)
        x = InceptionD(name="Mixed_7a")(x)  # [B, 8, 8, 1280]
        x = InceptionE(average, name="Mixed_7b")(x)  # [B, 8, 8, 2048]
        x = InceptionE(maximum, name="Mixed_7c")(x)
        pool = x.mean(axis=(1, 2))  # [B, 2048]
        kernel = self.param("fc_kernel", nn.initializers.lecun_normal(), (pool.shape[-1], 1008), jnp.float32)
        bias = self.param("fc_bias", nn.initializers.zeros_init(), (1008,), jnp.float32)
        unbiased = jnp.matmul(pool, kernel, precision=PRECISION)
        return {"2048": pool, "logits": unbiased + bias, "logits_unbiased": unbiased, "spatial": spatial}


class ConvNorm(nn.Module):
    """A convolution without bias, the norm of a batch long gone, ReLU."""

    features: int
    kernel: tuple[int, int]
    stride: int = 1
    padding: str = "SAME"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, H, W, C] -> [B, H', W', features]."""
        shape = (*self.kernel, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.he_normal(), shape, jnp.float32)
        one, zero = nn.initializers.ones_init(), nn.initializers.zeros_init()
        scale, bias, mean, var = (
            self.param(name, init, (self.features,), jnp.float32)
            for name, init in (("scale", one), ("bias", zero), ("mean", zero), ("var", one))
        )
        x = jax.lax.conv_general_dilated(
            x,
            kernel,
            (self.stride, self.stride),
            self.padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=PRECISION,
        )
        return nn.relu((x - mean) * (scale / jnp.sqrt(var + EPSILON)) + bias)


def average(x: Array) -> Array:
    """The mean of the 3 x 3 pixels around each that lie within the image."""
    return nn.avg_pool(x, (3, 3), (1, 1), "SAME", count_include_pad=False)


def maximum(x: Array) -> Array:
    """The greatest of the 3 x 3 pixels around each."""
    return nn.max_pool(x, (3, 3), (1, 1), "SAME")


class InceptionA(nn.Module):
    """Figure 5 of arXiv:1512.00567, with a 5 x 5 branch."""

    pool: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, H, W, C] -> [B, H, W, 224 + pool]."""
        one = ConvNorm(64, (1, 1), name="branch1x1")(x)
        five = ConvNorm(48, (1, 1), name="branch5x5_1")(x)
        five = ConvNorm(64, (5, 5), name="branch5x5_2")(five)
        three = ConvNorm(64, (1, 1), name="branch3x3dbl_1")(x)
        three = ConvNorm(96, (3, 3), name="branch3x3dbl_2")(three)
        three = ConvNorm(96, (3, 3), name="branch3x3dbl_3")(three)
        pool = ConvNorm(self.pool, (1, 1), name="branch_pool")(average(x))
        return jnp.concatenate([one, five, three, pool], axis=-1)


class InceptionB(nn.Module):
    """To half the size, figure 10."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, H, W, C] -> [B, (H - 1) / 2, (W - 1) / 2, 480 + C]."""
        three = ConvNorm(384, (3, 3), 2, "VALID", name="branch3x3")(x)
        double = ConvNorm(64, (1, 1), name="branch3x3dbl_1")(x)
        double = ConvNorm(96, (3, 3), name="branch3x3dbl_2")(double)
        double = ConvNorm(96, (3, 3), 2, "VALID", name="branch3x3dbl_3")(double)
        return jnp.concatenate([three, double, nn.max_pool(x, (3, 3), (2, 2))], axis=-1)


class InceptionC(nn.Module):
    """7 x 7 as 1 x 7 after 7 x 1, figure 6."""

    width: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, H, W, C] -> [B, H, W, 768]."""
        one = ConvNorm(192, (1, 1), name="branch1x1")(x)
        seven = ConvNorm(self.width, (1, 1), name="branch7x7_1")(x)
        seven = ConvNorm(self.width, (1, 7), name="branch7x7_2")(seven)
        seven = ConvNorm(192, (7, 1), name="branch7x7_3")(seven)
        double = ConvNorm(self.width, (1, 1), name="branch7x7dbl_1")(x)
        double = ConvNorm(self.width, (7, 1), name="branch7x7dbl_2")(double)
        double = ConvNorm(self.width, (1, 7), name="branch7x7dbl_3")(double)
        double = ConvNorm(self.width, (7, 1), name="branch7x7dbl_4")(double)
        double = ConvNorm(192, (1, 7), name="branch7x7dbl_5")(double)
        pool = ConvNorm(192, (1, 1), name="branch_pool")(average(x))
        return jnp.concatenate([one, seven, double, pool], axis=-1)


class InceptionD(nn.Module):
    """To half the size again, with a 7 x 7 branch."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, H, W, C] -> [B, (H - 1) / 2, (W - 1) / 2, 512 + C]."""
        three = ConvNorm(192, (1, 1), name="branch3x3_1")(x)
        three = ConvNorm(320, (3, 3), 2, "VALID", name="branch3x3_2")(three)
        seven = ConvNorm(192, (1, 1), name="branch7x7x3_1")(x)
        seven = ConvNorm(192, (1, 7), name="branch7x7x3_2")(seven)
        seven = ConvNorm(192, (7, 1), name="branch7x7x3_3")(seven)
        seven = ConvNorm(192, (3, 3), 2, "VALID", name="branch7x7x3_4")(seven)
        return jnp.concatenate([three, seven, nn.max_pool(x, (3, 3), (2, 2))], axis=-1)


class InceptionE(nn.Module):
    """Branches that end in 1 x 3 beside 3 x 1, figure 7; `pool` is `average` or `maximum`."""

    pool: Callable[[Array], Array]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, H, W, C] -> [B, H, W, 2048]."""
        one = ConvNorm(320, (1, 1), name="branch1x1")(x)
        three = ConvNorm(384, (1, 1), name="branch3x3_1")(x)
        double = ConvNorm(448, (1, 1), name="branch3x3dbl_1")(x)
        double = ConvNorm(384, (3, 3), name="branch3x3dbl_2")(double)
        parts = [
            one,
            ConvNorm(384, (1, 3), name="branch3x3_2a")(three),
            ConvNorm(384, (3, 1), name="branch3x3_2b")(three),
            ConvNorm(384, (1, 3), name="branch3x3dbl_3a")(double),
            ConvNorm(384, (3, 1), name="branch3x3dbl_3b")(double),
            ConvNorm(192, (1, 1), name="branch_pool")(self.pool(x)),
        ]
        return jnp.concatenate(parts, axis=-1)
