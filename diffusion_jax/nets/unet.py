"""The U-Net of DDPM (arXiv:2006.11239, appendix B), for spatial rank 1, 2 or 3; dimension key B *S C, channels last."""

from collections.abc import Callable, Mapping
from functools import partial

import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike

from diffusion_jax.errors import UserError
from diffusion_jax.nets.layers import ZERO, Conv, Dense, Downsample, GroupNorm, ResBlock, SelfAttention, Upsample
from diffusion_jax.nets.layers import time_embedding as sinusoids


class Down(nn.Module):
    """One level of the encoder; gives its output and what the decoder reads: every block's output and the halved."""

    blocks: int
    block: Callable[..., nn.Module]
    attention: Callable[..., nn.Module] | None
    downsample: Callable[..., nn.Module] | None

    @nn.compact
    def __call__(self, x: Array, emb: Array, train: bool) -> tuple[Array, list[Array]]:
        """x [B, *S, C], emb [B, E] -> x [B, *(S / 2), C'], skips."""
        skips = []
        for i in range(self.blocks):
            x = self.block(name=f"block_{i}")(x, emb, train)
            if self.attention:
                x = self.attention(name=f"attention_{i}")(x)
            skips.append(x)
        if self.downsample:
            x = self.downsample(name="downsample")(x)
            skips.append(x)
        return x, skips


class Mid(nn.Module):
    """The bottleneck: block, attention, block."""

    block: Callable[..., nn.Module]
    attention: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: Array, emb: Array, train: bool) -> Array:
        """x [B, *S, C], emb [B, E] -> [B, *S, C]."""
        x = self.block(name="block_0")(x, emb, train)
        x = self.attention(name="attention")(x)
        return self.block(name="block_1")(x, emb, train)


class Up(nn.Module):
    """One level of the decoder; every block reads one skip, the encoder's last first, beside its input."""

    block: Callable[..., nn.Module]
    attention: Callable[..., nn.Module] | None
    upsample: Callable[..., nn.Module] | None

    @nn.compact
    def __call__(self, x: Array, skips: list[Array], emb: Array, train: bool) -> Array:
        """x [B, *S, C], skips each [B, *S, ...], emb [B, E] -> [B, *(2 S), C']."""
        for i, skip in enumerate(reversed(skips)):
            x = self.block(name=f"block_{i}")(jnp.concatenate([x, skip], axis=-1), emb, train)
            if self.attention:
                x = self.attention(name=f"attention_{i}")(x)
        return self.upsample(name="upsample")(x) if self.upsample else x


class UNet(nn.Module):
    """DDPM's U-Net: level i works at size S / 2^i with channels * multipliers[i] channels. The output starts at zero.

    The defaults are its CIFAR-10 net, but for the dropout of 0.1 there.
    """

    out_channels: int
    channels: int = 128
    multipliers: tuple[int, ...] = (1, 2, 2, 2)
    blocks: int = 2
    """Residual blocks of an encoder level; a decoder level has one more."""
    attention: tuple[int, ...] = (2,)
    """Downsampling factors at which attention follows every block, as in ADM: 2 is 16 x 16 for 32 x 32 images."""
    heads: int = 1
    groups: int = 32
    dropout: float = 0.0
    num_classes: int | None = None
    """None is unconditional; otherwise labels are in [0, num_classes], and num_classes itself is the null class."""
    dtype: DTypeLike = jnp.float32
    """Of the computation: parameters and output are float32 always."""
    remat: bool = False
    """Keeps no activation inside a residual block for the gradient: less memory, one more forward pass of the block."""

    @nn.compact
    def __call__(self, x: Array, t: Array, cond: Mapping[str, Array] | None = None, *, train: bool = False) -> Array:
        """x [B, *S, C], t [B] the schedule's conditioning value, cond["label"] [B] int32 -> [B, *S, out_channels].

        Randomness "dropout" where train and dropout > 0. Raises UserError where the sizes or cond do not fit the net.
        """
        cond = cond or {}
        self._check(x, t, cond)
        block = partial(
            nn.remat(ResBlock, static_argnums=(3,)) if self.remat else ResBlock,
            groups=self.groups,
            dropout=self.dropout,
            dtype=self.dtype,
        )
        attention = partial(SelfAttention, heads=self.heads, groups=self.groups, dtype=self.dtype)
        last = len(self.multipliers) - 1

        emb = sinusoids(t, self.channels)  # [B, channels]
        emb = Dense(4 * self.channels, dtype=self.dtype, name="time_0")(emb)
        emb = Dense(4 * self.channels, dtype=self.dtype, name="time_1")(nn.silu(emb))
        if self.num_classes is not None:
            table = nn.Embed(self.num_classes + 1, 4 * self.channels, dtype=self.dtype, name="label")
            emb += table(cond["label"])  # [B, 4 channels]

        x = Conv(self.channels, dtype=self.dtype, name="conv_in")(x)
        skips = [x]
        for i, multiplier in enumerate(self.multipliers):
            x, more = Down(
                blocks=self.blocks,
                block=partial(block, self.channels * multiplier),
                attention=attention if 2**i in self.attention else None,
                downsample=partial(Downsample, dtype=self.dtype) if i < last else None,
                name=f"down_{i}",
            )(x, emb, train)
            skips += more
        x = Mid(partial(block, x.shape[-1]), attention, name="mid")(x, emb, train)
        for i, multiplier in reversed(list(enumerate(self.multipliers))):
            read = self.blocks + 1
            x = Up(
                block=partial(block, self.channels * multiplier),
                attention=attention if 2**i in self.attention else None,
                upsample=partial(Upsample, dtype=self.dtype) if i else None,
                name=f"up_{i}",
            )(x, skips[-read:], emb, train)
            del skips[-read:]
        x = nn.silu(GroupNorm(self.groups, dtype=self.dtype, name="norm_out")(x))
        return Conv(self.out_channels, kernel_init=ZERO, name="conv_out")(x.astype(jnp.float32))

    def _check(self, x: Array, t: Array, cond: Mapping[str, Array]) -> None:
        """Raises UserError where x, t and cond do not fit the net."""
        if not 3 <= x.ndim <= 5:
            raise UserError(f"x is [B, *spatial, C] with one to three spatial axes; got shape {x.shape}")
        if t.shape != x.shape[:1]:
            raise UserError(f"t holds one value for each of {x.shape[0]} examples, shape {x.shape[:1]}; got {t.shape}")
        factors = [2**i for i in range(len(self.multipliers))]
        size, least = x.shape[1:-1], factors[-1]
        if any(n % least for n in size):
            raise UserError(
                f"{len(factors)} levels halve the image {len(factors) - 1} times, so every side must be a multiple of "
                f"{least}; got {' x '.join(map(str, size))}; the nearest that fits is "
                f"{' x '.join(str(max(round(n / least), 1) * least) for n in size)}"
            )
        if absent := set(self.attention) - set(factors):
            raise UserError(f"attention is at downsampling factors of the levels, {factors}; got {sorted(absent)}")
        wanted = [] if self.num_classes is None else ["label"]
        if sorted(cond) != wanted:
            raise UserError(
                f"a net with num_classes={self.num_classes} takes {f'cond {wanted}' if wanted else 'no cond'}; "
                f"got {sorted(cond) or 'none'}"
            )
