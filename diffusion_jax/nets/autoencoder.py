"""The autoencoder of latent diffusion (arXiv:2112.10752, section 3.1, appendix G), for spatial rank 1 to 3; B *S C."""

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike

from diffusion_jax.core.autoencoding import sample_posterior
from diffusion_jax.errors import UserError
from diffusion_jax.nets import layers
from diffusion_jax.nets.layers import ZERO, Conv, Dense, Downsample, GroupNorm, SelfAttention, Upsample
from diffusion_jax.nets.network import TensorRule

Layer = Callable[..., nn.Module]


class Block(nn.Module):
    """DDPM's residual block with no embedding: twice (norm, SiLU, conv), plus the input.

    The second convolution starts at zero, so the block starts as its shortcut: the identity, or a dense layer where the
    number of channels changes.
    """

    channels: int
    groups: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, *S, C] -> [B, *S, channels]."""
        h = nn.silu(GroupNorm(self.groups, dtype=self.dtype, name="norm1")(x))
        h = Conv(self.channels, dtype=self.dtype, name="conv1")(h)
        h = nn.silu(GroupNorm(self.groups, dtype=self.dtype, name="norm2")(h))
        h = Conv(self.channels, dtype=self.dtype, kernel_init=ZERO, name="conv2")(h)
        if x.shape[-1] != self.channels:
            x = Dense(self.channels, dtype=self.dtype, name="shortcut")(x)
        return x + h


class Level(nn.Module):
    """The blocks of one resolution, each followed by attention if any, then a change of resolution if any."""

    blocks: int
    block: Layer
    attention: Layer | None
    resample: Layer | None
    """Makes `Downsample` or `Upsample`."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, *S, C] -> [B, *S', C']."""
        for i in range(self.blocks):
            x = self.block(name=f"block_{i}")(x)
            if self.attention:
                x = self.attention(name=f"attention_{i}")(x)
        return self.resample()(x) if self.resample else x


class Mid(nn.Module):
    """The lowest resolution: block, attention if any, block."""

    block: Layer
    attention: Layer | None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, *S, C] -> [B, *S, C]."""
        x = self.block(name="block_0")(x)
        if self.attention:
            x = self.attention(name="attention")(x)
        return self.block(name="block_1")(x)


class Encoder(nn.Module):
    """Level i works at size S / 2^i with channels * multipliers[i] channels; `attention` is by downsampling factor."""

    out_channels: int
    channels: int
    multipliers: tuple[int, ...]
    blocks: int
    attention: tuple[int, ...]
    mid_attention: bool
    groups: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, *S, C] -> [B, *(S / f), out_channels], float32."""
        block = partial(Block, groups=self.groups, dtype=self.dtype)
        attention = partial(SelfAttention, heads=1, groups=self.groups, dtype=self.dtype)
        downsample = partial(Downsample, dtype=self.dtype, name="downsample")
        x = Conv(self.channels, dtype=self.dtype, name="conv_in")(x)
        for i, multiplier in enumerate(self.multipliers):
            x = Level(
                blocks=self.blocks,
                block=partial(block, self.channels * multiplier),
                attention=attention if 2**i in self.attention else None,
                resample=downsample if i < len(self.multipliers) - 1 else None,
                name=f"down_{i}",
            )(x)
        x = Mid(partial(block, x.shape[-1]), attention if self.mid_attention else None, name="mid")(x)
        x = nn.silu(GroupNorm(self.groups, dtype=self.dtype, name="norm_out")(x))
        return Conv(self.out_channels, name="conv_out")(x.astype(jnp.float32))


class Decoder(nn.Module):
    """The encoder's mirror: level i works at size f h / 2^i; a level has one more block than the encoder's."""

    out_channels: int
    channels: int
    multipliers: tuple[int, ...]
    blocks: int
    attention: tuple[int, ...]
    mid_attention: bool
    groups: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, z: Array) -> Array:
        """[B, *h, C] -> [B, *(f h), out_channels], float32."""
        block = partial(Block, groups=self.groups, dtype=self.dtype)
        attention = partial(SelfAttention, heads=1, groups=self.groups, dtype=self.dtype)
        upsample = partial(Upsample, dtype=self.dtype, name="upsample")
        x = Conv(self.channels * self.multipliers[-1], dtype=self.dtype, name="conv_in")(z)
        x = Mid(partial(block, x.shape[-1]), attention if self.mid_attention else None, name="mid")(x)
        for i, multiplier in reversed(list(enumerate(self.multipliers))):
            x = Level(
                blocks=self.blocks + 1,
                block=partial(block, self.channels * multiplier),
                attention=attention if 2**i in self.attention else None,
                resample=upsample if i else None,
                name=f"up_{i}",
            )(x)
        x = nn.silu(GroupNorm(self.groups, dtype=self.dtype, name="norm_out")(x))
        return Conv(self.out_channels, name="conv_out")(x.astype(jnp.float32))


class AutoencoderKL(nn.Module):
    """q(z | x) = N(mean, exp(logvar)) and x' = decode(z), z smaller than x by f = 2^(levels - 1) along every side.

    The defaults are Stable Diffusion's (f = 8, 83,653,863 parameters with 3 channels in). Latents leave and enter as
    they are: the factor that gives them unit variance (appendix G, 0.18215 there) is the diffusion model's.
    """

    out_channels: int = 3
    latent_channels: int = 4
    channels: int = 128
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    blocks: int = 2
    """Residual blocks of an encoder level; a decoder level has one more."""
    attention: tuple[int, ...] = ()
    """Downsampling factors at which attention follows every block."""
    mid_attention: bool = True
    groups: int = 32
    quant_convs: bool = True
    """A dense layer after the encoder and one before the decoder, as in Stable Diffusion 1, 2 and XL; 3 has neither."""
    dtype: DTypeLike = jnp.float32
    """Of the computation: parameters and outputs are float32 always."""

    tensor_rules: ClassVar[tuple[TensorRule, ...]] = layers.TENSOR_RULES
    outer_layers: ClassVar[tuple[str, ...]] = ("conv_in", "conv_out")

    def setup(self) -> None:
        """The parts; flax makes them when they are first used."""
        sizes: dict[str, Any] = {
            "channels": self.channels,
            "multipliers": self.multipliers,
            "blocks": self.blocks,
            "attention": self.attention,
            "mid_attention": self.mid_attention,
            "groups": self.groups,
            "dtype": self.dtype,
        }
        self.encoder = Encoder(2 * self.latent_channels, **sizes)
        self.decoder = Decoder(self.out_channels, **sizes)
        if self.quant_convs:
            self.quant = Dense(2 * self.latent_channels)
            self.post_quant = Dense(self.latent_channels)

    @property
    def factor(self) -> int:
        """f: the side of an image over that of its latents."""
        return 2 ** (len(self.multipliers) - 1)

    def encode(self, x: Array) -> tuple[Array, Array]:
        """x [B, *S, C] in [-1, 1] -> mean, logvar in [-30, 20], each [B, *(S / f), latent_channels].

        Raises UserError where f does not divide the sides.
        """
        self._check(x)
        moments = self.encoder(x)  # [B, *(S / f), 2 latent_channels]
        if self.quant_convs:
            moments = self.quant(moments)
        mean, logvar = jnp.split(moments, 2, axis=-1)
        return mean, jnp.clip(logvar, -30.0, 20.0)

    def decode(self, z: Array) -> Array:
        """z [B, *h, latent_channels] -> [B, *(f h), out_channels]; UserError where z has other channels."""
        if z.shape[-1] != self.latent_channels:
            raise UserError(f"latents have {self.latent_channels} channels, last; got shape {z.shape}")
        return self.decoder(self.post_quant(z) if self.quant_convs else z)

    def __call__(self, x: Array, noise: Array | None = None) -> tuple[Array, Array, Array]:
        """x' of z = mean + exp(logvar / 2) noise, or of the mean where noise is None, then mean and logvar."""
        mean, logvar = self.encode(x)
        return self.decode(mean if noise is None else sample_posterior(mean, logvar, noise)), mean, logvar

    def _check(self, x: Array) -> None:
        """Raises UserError where x does not fit the net."""
        if not 3 <= x.ndim <= 5:
            raise UserError(f"x is [B, *spatial, C] with one to three spatial axes; got shape {x.shape}")
        size, f = x.shape[1:-1], self.factor
        if any(n % f for n in size):
            raise UserError(
                f"{len(self.multipliers)} levels halve the image {len(self.multipliers) - 1} times, so every side must "
                f"be a multiple of {f}; got {' x '.join(map(str, size))}; the nearest that fits is "
                f"{' x '.join(str(max(round(n / f), 1) * f) for n in size)}"
            )
        factors = [2**i for i in range(len(self.multipliers))]
        if absent := set(self.attention) - set(factors):
            raise UserError(f"attention is at downsampling factors of the levels, {factors}; got {sorted(absent)}")
