"""The U-Net of DDPM (arXiv:2006.11239, appendix B), for spatial rank 1, 2 or 3; dimension key B *S C, channels last.

Options make it ADM's (arXiv:2105.05233) or the latent, text-conditional one of Stable Diffusion (arXiv:2112.10752).
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike

from diffusion_jax.errors import UserError
from diffusion_jax.nets import layers
from diffusion_jax.nets.conv import upsample_nearest
from diffusion_jax.nets.layers import ZERO, Conv, Dense, Downsample, GroupNorm, ResBlock, SelfAttention, Upsample
from diffusion_jax.nets.transformer import SpatialTransformer


class Down(nn.Module):
    """One level of the encoder; gives its output and what the decoder reads: every block's output and the halved."""

    blocks: int
    block: Callable[..., nn.Module]
    attention: Callable[..., nn.Module] | None
    downsample: Callable[..., nn.Module] | None

    @nn.compact
    def __call__(self, x: Array, emb: Array, train: bool, text: tuple[Any, ...] = ()) -> tuple[Array, list[Array]]:
        """x [B, *S, C], emb [B, E], text () or (tokens [B, N, D], mask [B, N] | None) -> x [B, *(S / 2), C'], skips."""
        skips = []
        for i in range(self.blocks):
            x = self.block(name=f"block_{i}")(x, emb, train)
            if self.attention:
                x = self.attention(name=f"attention_{i}")(x, *text)
            skips.append(x)
        if self.downsample:
            x = self.downsample(name="downsample")(x, emb, train)
            skips.append(x)
        return x, skips


class Mid(nn.Module):
    """The bottleneck: block, attention, block."""

    block: Callable[..., nn.Module]
    attention: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: Array, emb: Array, train: bool, text: tuple[Any, ...] = ()) -> Array:
        """x [B, *S, C], emb [B, E], text as for `Down` -> [B, *S, C]."""
        x = self.block(name="block_0")(x, emb, train)
        x = self.attention(name="attention")(x, *text)
        return self.block(name="block_1")(x, emb, train)


class Up(nn.Module):
    """One level of the decoder; every block reads one skip, the encoder's last first, beside its input."""

    block: Callable[..., nn.Module]
    attention: Callable[..., nn.Module] | None
    upsample: Callable[..., nn.Module] | None

    @nn.compact
    def __call__(self, x: Array, skips: list[Array], emb: Array, train: bool, text: tuple[Any, ...] = ()) -> Array:
        """x [B, *S, C], skips each [B, *S, ...], emb [B, E], text as for `Down` -> [B, *(2 S), C']."""
        for i, skip in enumerate(reversed(skips)):
            x = self.block(name=f"block_{i}")(jnp.concatenate([x, skip], axis=-1), emb, train)
            if self.attention:
                x = self.attention(name=f"attention_{i}")(x, *text)
        return self.upsample(name="upsample")(x, emb, train) if self.upsample else x


def embed_level(level: Array, channels: int, form: str, dtype: DTypeLike, name: str) -> Array:
    """Sinusoids of level [B] through two dense layers of the calling module, name_0 and name_1: [B, 4 channels]."""
    emb = layers.time_embedding(level, channels, form)  # [B, channels]
    emb = Dense(4 * channels, dtype=dtype, name=f"{name}_0")(emb)
    return Dense(4 * channels, dtype=dtype, name=f"{name}_1")(nn.silu(emb))


def check_sizes(x: Array, t: Array, multipliers: tuple[int, ...], attention: tuple[int, ...]) -> None:
    """Raises UserError where x and t do not fit the levels, or attention is not at one of them."""
    if not 3 <= x.ndim <= 5:
        raise UserError(f"x is [B, *spatial, C] with one to three spatial axes; got shape {x.shape}")
    if t.shape != x.shape[:1]:
        raise UserError(f"t holds one value for each of {x.shape[0]} examples, shape {x.shape[:1]}; got {t.shape}")
    factors = [2**i for i in range(len(multipliers))]
    size, least = x.shape[1:-1], factors[-1]
    if any(n % least for n in size):
        raise UserError(
            f"{len(factors)} levels halve the image {len(factors) - 1} times, so every side must be a multiple of "
            f"{least}; got {' x '.join(map(str, size))}; the nearest that fits is "
            f"{' x '.join(str(max(round(n / least), 1) * least) for n in size)}"
        )
    if absent := set(attention) - set(factors):
        raise UserError(f"attention is at downsampling factors of the levels, {factors}; got {sorted(absent)}")


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
    """Keeps no activation inside a residual block or transformer for the gradient: less memory, one more forward pass
    of it."""
    scale_shift: bool = False
    """Adaptive group norm: the embedding scales and shifts, instead of being added (ADM)."""
    resample: str = "conv"
    """Between levels: "conv", or "block", a residual block that pools or repeats inside (ADM)."""
    head_channels: int = 0
    """Channels of an attention head, their number being channels / head_channels; 0 leaves it to `heads`."""
    epsilon: float = 1e-6
    """Of the group norms but the transformers', which is 1e-6; 1e-5 in ADM and Stable Diffusion."""
    sinusoids: str = "ddpm"
    """Form of the time embedding, "ddpm" or "adm", as `layers.time_embedding`; "adm" in Stable Diffusion too."""
    patch: int = 1
    """The side of the patches whose pixels the net takes as channels, and gives: a patch of 2 saves the costly level of
    the full size (section 2.2 of simple diffusion, arXiv:2301.11093). Level 0 then works at size S / patch."""
    padding: str = "end"
    """Of the stride-2 convolution: "end", or "both" sides in ADM and Stable Diffusion."""
    text_features: int | None = None
    """Width D of cond["text"] [B, N, D], to which spatial transformers in place of the attention attend (latent
    diffusion); the optional cond["text_mask"] [B, N] is True where a token counts. None: no text."""
    pooled_text: bool = False
    """Whether cond["text_pooled"] [B, D], one vector for the text, is projected and added to the time embedding too
    (GLIDE, arXiv:2112.10741, section 4)."""
    depth: int = 1
    """Transformer layers of each spatial transformer."""
    places: bool = False
    """Whether spatial transformers know where each position lies; without it, from the zeros at the edges alone. It is
    what "left of" is learned by."""
    concat: tuple[str, ...] = ()
    """Entries of cond, each [B, *S, C'], whose channels follow those of x, in this order."""
    levels: tuple[str, ...] = ()
    """Entries of cond, each [B], embedded as t is and added: levels of noise augmentation (arXiv:2106.15282)."""
    level_scale: float = 1.0
    """Times each of the levels before it is embedded: 1000 brings levels in [0, 1] to where sinusoids tell t apart."""

    @nn.compact
    def __call__(self, x: Array, t: Array, cond: Mapping[str, Array] | None = None, *, train: bool = False) -> Array:
        """x [B, *S, C], t [B] the schedule's conditioning value, cond["label"] [B] int32 -> [B, *S, out_channels].

        The fields `text_features`, `concat` and `levels` say what else cond holds. Randomness "dropout" where train and
        dropout > 0. Raises UserError where the sizes or cond do not fit the net.
        """
        cond = cond or {}
        self._check(x, cond)
        joined = layers.to_patches(jnp.concatenate([x, *(cond[name] for name in self.concat)], axis=-1), self.patch)
        check_sizes(joined, t, self.multipliers, self.attention)
        block = partial(
            nn.remat(ResBlock, static_argnums=(3,)) if self.remat else ResBlock,
            groups=self.groups,
            dropout=self.dropout,
            scale_shift=self.scale_shift,
            epsilon=self.epsilon,
            dtype=self.dtype,
        )
        text = () if self.text_features is None else (cond["text"], cond.get("text_mask"))
        last = len(self.multipliers) - 1

        emb = embed_level(t, self.channels, self.sinusoids, self.dtype, "time")  # [B, 4 channels]
        if self.num_classes is not None:
            table = nn.Embed(self.num_classes + 1, 4 * self.channels, dtype=self.dtype, name="label")
            emb += table(cond["label"])
        if self.pooled_text:
            emb += Dense(4 * self.channels, dtype=self.dtype, name="text_pooled")(cond["text_pooled"])
        for name in self.levels:
            level = self.level_scale * cond[name]
            emb += embed_level(level, self.channels, self.sinusoids, self.dtype, f"level_{name}")

        x = Conv(self.channels, dtype=self.dtype, name="conv_in")(joined)
        skips = [x]
        for i, multiplier in enumerate(self.multipliers):
            channels = self.channels * multiplier
            x, more = Down(
                blocks=self.blocks,
                block=partial(block, channels),
                attention=self._attention(channels) if 2**i in self.attention else None,
                downsample=self._downsample(partial(block, channels)) if i < last else None,
                name=f"down_{i}",
            )(x, emb, train, text)
            skips += more
        x = Mid(partial(block, x.shape[-1]), self._attention(x.shape[-1]), name="mid")(x, emb, train, text)
        for i, multiplier in reversed(list(enumerate(self.multipliers))):
            channels = self.channels * multiplier
            read = self.blocks + 1
            x = Up(
                block=partial(block, channels),
                attention=self._attention(channels) if 2**i in self.attention else None,
                upsample=self._upsample(partial(block, channels)) if i else None,
                name=f"up_{i}",
            )(x, skips[-read:], emb, train, text)
            del skips[-read:]
        x = nn.silu(GroupNorm(self.groups, self.epsilon, dtype=self.dtype, name="norm_out")(x))
        pixels = self.patch ** (x.ndim - 2)
        x = Conv(self.out_channels * pixels, kernel_init=ZERO, name="conv_out")(x.astype(jnp.float32))
        return layers.from_patches(x, self.patch)

    def _attention(self, channels: int) -> Callable[..., nn.Module]:
        heads = layers.attention_heads(channels, self.heads, self.head_channels)
        if self.text_features is None:
            return partial(SelfAttention, heads, self.groups, self.epsilon, dtype=self.dtype)
        transformer = nn.remat(SpatialTransformer) if self.remat else SpatialTransformer
        return partial(transformer, heads, self.groups, self.depth, self.places, dtype=self.dtype)

    def _downsample(self, block: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        if self.resample == "block":
            return partial(block, resample=layers.average_pool)
        return partial(Downsample, self.padding, dtype=self.dtype)

    def _upsample(self, block: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        if self.resample == "block":
            return partial(block, resample=upsample_nearest)
        return partial(Upsample, dtype=self.dtype)

    def _check(self, x: Array, cond: Mapping[str, Array]) -> None:
        """Raises UserError where the options, or cond, do not fit the net."""
        if self.resample not in ("conv", "block"):
            raise UserError(f"resample is 'conv' or 'block'; got {self.resample!r}")
        if self.places and self.text_features is None:
            raise UserError("places are told to spatial transformers, which a net without text does not have")
        # Of each entry of cond: its shape, None where a size is free.
        entries: dict[str, tuple[int | None, ...]] = {}
        options = [f"num_classes={self.num_classes}"]
        if self.num_classes is not None:
            entries["label"] = x.shape[:1]
        if self.text_features is not None:
            options.append(f"text_features={self.text_features}")
            entries["text"] = (x.shape[0], None, self.text_features)
        if self.pooled_text:
            options.append("pooled_text=True")
            entries["text_pooled"] = (x.shape[0], self.text_features)
        for name in self.concat:
            entries[name] = (*x.shape[:-1], None)
        for name in self.levels:
            entries[name] = x.shape[:1]
        options += [f"{n}={names}" for n, names in [("concat", self.concat), ("levels", self.levels)] if names]
        optional = {"text_mask"} if "text" in entries else set()
        missing, superfluous = sorted(set(entries) - set(cond)), sorted(set(cond) - set(entries) - optional)
        if missing or superfluous:
            raise UserError(
                f"a net with {', '.join(options)} takes {f'cond {sorted(entries)}' if entries else 'no cond'}; "
                f"got {sorted(cond) or 'none'}"
                + (f"; missing {missing}" if missing else "")
                + (f"; superfluous {superfluous}" if superfluous else "")
            )
        if "text_mask" in cond:
            entries["text_mask"] = cond["text"].shape[:2]
            if cond["text_mask"].dtype != bool:
                raise UserError(f"cond['text_mask'] is bool, True where a token counts; got {cond['text_mask'].dtype}")
        for name, shape in entries.items():
            got = cond[name].shape
            if len(got) != len(shape) or any(n not in (None, m) for n, m in zip(shape, got, strict=True)):
                wanted = ", ".join("any" if n is None else str(n) for n in shape)
                raise UserError(f"cond[{name!r}] must have shape ({wanted}); got {got}")
