"""CLIP's image tower, and what joins it with the text tower (arXiv:2103.00020); B, N patches, D features.

The text tower is `nets.text.ClipText`. Published weights are read by `interop.huggingface_clip`. For inference.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike

from diffusion_jax.errors import UserError
from diffusion_jax.nets.text import ACTIVATIONS, NORMAL, Layer, layer_norm

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Of the pixels in [0, 1] that CLIP was trained on, by channel."""

PRECISION = jax.lax.Precision.HIGHEST


class ClipVision(nn.Module):
    """CLIP's vision transformer (arXiv:2010.11929), normalized first; the defaults are ViT-B/32's."""

    side: int = 224
    patch: int = 32
    width: int = 768
    layers: int = 12
    heads: int = 12
    hidden: int = 3072
    activation: str = "quick_gelu"
    epsilon: float = 1e-5
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """`preprocess`ed images [B, side, side, 3] -> the class token's state, normalized, [B, width] float32."""
        if x.shape[1:] != (self.side, self.side, 3):
            raise UserError(f"CLIP's image tower takes images {self.side} x {self.side} x 3; got {x.shape[1:]}")
        if self.side % self.patch:
            raise UserError(f"patches of {self.patch} pixels do not fill a side of {self.side}")
        if self.activation not in ACTIVATIONS:
            raise UserError(f"the activation is one of {', '.join(ACTIVATIONS)}; got {self.activation!r}")
        n = self.side // self.patch
        kernel = self.param("patch_kernel", NORMAL, (self.patch**2 * 3, self.width))
        x = x.reshape(-1, n, self.patch, n, self.patch, 3).swapaxes(2, 3).reshape(-1, n * n, self.patch**2 * 3)
        x = jnp.matmul(x.astype(self.dtype), kernel.astype(self.dtype))  # [B, N, D]
        token = self.param("class", NORMAL, (self.width,)).astype(self.dtype)
        x = jnp.concatenate([jnp.broadcast_to(token, (len(x), 1, self.width)), x], axis=1)
        x += self.param("position", NORMAL, (n * n + 1, self.width)).astype(self.dtype)
        x = layer_norm(self.epsilon, self.dtype, "pre_norm")(x)
        mask = jnp.ones(x.shape[:2], bool)
        for i in range(self.layers):
            x = Layer(
                self.heads, self.hidden, self.activation, True, False, self.epsilon, dtype=self.dtype, name=f"layer_{i}"
            )(x, mask, False)
        return layer_norm(self.epsilon, jnp.float32, "norm")(x[:, 0])


def preprocess(images: Array, side: int) -> Array:
    """Bytes [B, H, W, 1 or 3] as the image tower takes them, [B, side, side, 3].

    The shorter side is resized to `side` as Pillow's bicubic filter does: a = -1/2, wider where it shrinks, rounded to
    bytes after the columns and after the rows; the middle is cut out; the pixels are standardized. Gray is repeated
    over the channels.
    """
    if images.dtype != jnp.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise UserError(f"CLIP takes gray or RGB images of bytes; got {images.dtype} {images.shape}")
    b, h, w, _ = images.shape
    scale = side / min(h, w)
    height, width = max(side, int(h * scale)), max(side, int(w * scale))
    x = jnp.broadcast_to(images, (b, h, w, 3)).astype(jnp.float32)
    for shape in ((b, h, width, 3), (b, height, width, 3)):
        x = jnp.clip(jnp.rint(jax.image.resize(x, shape, "cubic", antialias=True, precision=PRECISION)), 0, 255)
    top, left = (height - side) // 2, (width - side) // 2
    x = x[:, top : top + side, left : left + side]
    return (x / 255 - np.asarray(MEAN, np.float32)) / np.asarray(STD, np.float32)


def clip_score(image: Array, text: Array) -> Array:
    """100 max(cos(image, text), 0), CLIPScore (arXiv:2104.08718, eq. 1) with w = 100: [B, D] and [B, D] -> [B]."""
    norm = jnp.linalg.norm(image, axis=-1) * jnp.linalg.norm(text, axis=-1)
    return 100 * jnp.maximum(jnp.sum(image * text, axis=-1) / norm, 0.0)
