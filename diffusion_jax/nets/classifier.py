"""ADM's classifier of noisy images (arXiv:2105.05233, section 4): the encoder half of its U-Net."""

import math
from collections.abc import Callable
from functools import partial
from typing import ClassVar

import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike

from diffusion_jax.errors import UserError
from diffusion_jax.nets import layers
from diffusion_jax.nets.embedding import EmbeddingSizes, embed_level
from diffusion_jax.nets.layers import Conv, Dense, GroupNorm, ResBlock, SelfAttention
from diffusion_jax.nets.multi_head import multi_head
from diffusion_jax.nets.network import TensorRule
from diffusion_jax.nets.unet import Down, Mid, check_sizes


class AttentionPool(nn.Module):
    """CLIP's attention pooling (arXiv:2103.00020, section 2.4): the mean of all positions attends to it and to them.

    Each of these N + 1 tokens has a learned position, so the parameters are of one image size. The result is float32.
    """

    features: int
    heads: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, *S, C] -> [B, features]; UserError where S has another number of positions than at initialization."""
        batch, channels = x.shape[0], x.shape[-1]
        x = x.reshape(batch, -1, channels)  # [B, N, C]
        tokens = jnp.concatenate([x.mean(axis=1, keepdims=True), x], axis=1)  # [B, N + 1, C]
        if self.has_variable("params", "position"):
            positions: int = self.get_variable("params", "position").shape[0]
            if positions != tokens.shape[1]:
                raise UserError(
                    f"this classifier pools {positions - 1} positions at its lowest resolution; got {x.shape[1]}; "
                    "give it images of the size it was made for"
                )
        init = nn.initializers.normal(1 / math.sqrt(channels))
        tokens += self.param("position", init, tokens.shape[1:], jnp.float32).astype(tokens.dtype)
        pooled = multi_head(tokens[:, :1], tokens, self.heads, out=None, dtype=self.dtype)[:, 0].astype(jnp.float32)
        self.sow("intermediates", "pooled", pooled)  # [B, C]: features, for whoever asks for intermediates
        return Dense(self.features, name="out")(pooled)


class Classifier(nn.Module):
    """Logits of p(class | x_t): level i works at size S / 2^i with channels * multipliers[i] channels.

    The residual blocks have adaptive group norm and resample inside. The defaults are those of ADM's code for 64 x 64
    images.
    """

    num_classes: int
    channels: int = 128
    multipliers: tuple[int, ...] = (1, 2, 3, 4)
    blocks: int = 4
    attention: tuple[int, ...] = (2, 4, 8)
    """Downsampling factors at which attention follows every block, as for `UNet`."""
    head_channels: int = 64
    groups: int = 32
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32
    """Of the computation: parameters and logits are float32 always."""

    tensor_rules: ClassVar[tuple[TensorRule, ...]] = layers.TENSOR_RULES
    outer_layers: ClassVar[tuple[str, ...]] = ("conv_in",)

    @nn.compact
    def __call__(self, x: Array, t: Array, *, train: bool = False) -> Array:
        """x [B, *S, C], t [B] the schedule's conditioning value -> logits [B, num_classes] float32.

        Randomness "dropout" where train and dropout > 0. Raises UserError where the sizes do not fit the net.
        """
        check_sizes(x, t, self.multipliers, self.attention)

        def block(channels: int) -> Callable[..., nn.Module]:
            return partial(ResBlock, channels, self.groups, self.dropout, True, epsilon=1e-5, dtype=self.dtype)

        def attention(channels: int) -> Callable[..., nn.Module]:
            return partial(SelfAttention, heads(channels), self.groups, 1e-5, dtype=self.dtype)

        def heads(channels: int) -> int:
            return layers.attention_heads(channels, 1, self.head_channels)

        last = len(self.multipliers) - 1
        sizes = EmbeddingSizes(4 * self.channels, self.channels, "adm")
        emb = embed_level(t, sizes, self.dtype, "time")  # [B, 4 channels]
        x = Conv(self.channels, dtype=self.dtype, name="conv_in")(x)
        for i, multiplier in enumerate(self.multipliers):
            channels = self.channels * multiplier
            x, _ = Down(
                blocks=self.blocks,
                block=block(channels),
                attention=attention(channels) if 2**i in self.attention else None,
                downsample=partial(block(channels), resample=layers.average_pool) if i < last else None,
                name=f"down_{i}",
            )(x, emb, train)
        x = Mid(block(channels), attention(channels), name="mid")(x, emb, train)
        x = nn.silu(GroupNorm(self.groups, 1e-5, dtype=self.dtype, name="norm_out")(x))
        return AttentionPool(self.num_classes, heads(channels), dtype=self.dtype, name="attention_pool")(x)
