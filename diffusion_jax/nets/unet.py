"""The U-Net of DDPM (arXiv:2006.11239, appendix B), for spatial rank 1, 2 or 3; dimension key B *S C, channels last.

Options make it ADM's (arXiv:2105.05233) or the latent, text-conditional one of Stable Diffusion (arXiv:2112.10752).
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from diffusion_jax.errors import UserError
from diffusion_jax.nets import layers, rematerialization, transformer
from diffusion_jax.nets.attention import check_choice
from diffusion_jax.nets.conv import upsample_nearest
from diffusion_jax.nets.embedding import EmbeddingSizes, embed_vectors
from diffusion_jax.nets.layers import ZERO, Conv, Downsample, GroupNorm, ResBlock, SelfAttention, Upsample
from diffusion_jax.nets.network import Network, TensorRule, check_shapes
from diffusion_jax.nets.transformer import SpatialTransformer
from diffusion_jax.ranges import BELOW_1, EACH_FROM_0, EACH_FROM_1, FROM_0, FROM_1, POSITIVE, Range


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


def check_sizes(x: Array, t: Array, multipliers: tuple[int, ...], attention: tuple[int, ...]) -> None:
    """Raises UserError where x and t do not fit the levels, or attention is not at one of them."""
    check_shapes(x, t)
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


class UNet(Network):
    """DDPM's U-Net: level i works at size S / 2^i with channels * multipliers[i] channels. The output starts at zero.

    The defaults are its CIFAR-10 net, but for the dropout of 0.1 there.
    """

    channels: int = 128
    """Of level 0, times each of `multipliers` at the levels."""
    multipliers: tuple[int, ...] = (1, 2, 2, 2)
    """One for each level; every level after the first has half the height and width, which must be divisible by it."""
    blocks: int = 2
    """Residual blocks of an encoder level; a decoder level has one more."""
    attention: tuple[int, ...] = (2,)
    """Downsampling factors at which attention follows every block, as in ADM: 2 is 16 x 16 for 32 x 32 images."""
    heads: int = 1
    """Of every attention, unless `head_channels` says otherwise."""
    groups: int = 32
    """Of the group norms; divides every number of channels."""
    dropout: float = 0.0
    """Probability that a residual block drops a value in training."""
    remat: str = "none"
    """What is computed again for the gradient, to hold less: "none", "attention", "dots", "offload" or "blocks"
    (`rematerialization.CHOICES`); the results differ by rounding alone."""
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
    pooled_text: bool = False
    """Whether cond["text_pooled"] [B, D], one vector for the text, is projected and added to the time embedding too
    (GLIDE, arXiv:2112.10741, section 4)."""
    number_waves: int = 256
    """Sinusoids of each number that is embedded beside the time (`numbers`): of sizes and crops, in SDXL."""
    depth: int = 1
    """Transformer layers of each spatial transformer."""
    depths: tuple[int, ...] = ()
    """Transformer layers at each level, the middle being as the last, in place of `depth`: (1, 2, 10) in SDXL. What is
    said of a level without attention has no effect."""
    places: bool = False
    """Whether spatial transformers know where each position lies; without it, from the zeros at the edges alone. It is
    what "left of" is learned by."""
    text_alone: tuple[int, ...] = ()
    """Downsampling factors, of `attention`, at which positions attend to the text twice and never to each other, as in
    the x4 upscaler of Stable Diffusion 2."""
    level_rows: int = 0
    """Rows of a table that embeds each of `levels`, which are then whole numbers below it; 0: by sinusoids, as t is."""
    attention_kernel: str = "auto"
    """What computes attention, "auto", "xla" or "flash" (`attention.attend`); the results differ by rounding alone."""

    tensor_rules: ClassVar[tuple[TensorRule, ...]] = layers.TENSOR_RULES + transformer.TENSOR_RULES
    outer_layers: ClassVar[tuple[str, ...]] = ("embedding", "conv_in", "conv_out")
    float32_layers: ClassVar[tuple[str, ...]] = ("conv_out",)
    splits_tokens: ClassVar[bool] = True
    rematerializations: ClassVar[tuple[str, ...]] = rematerialization.CHOICES
    ranges: ClassVar[Mapping[str, Range]] = {
        "channels": FROM_1,
        "multipliers": EACH_FROM_1,
        "blocks": FROM_0,
        "attention": EACH_FROM_1,
        "heads": FROM_1,
        "groups": FROM_1,
        "dropout": BELOW_1,
        "head_channels": FROM_0,
        "patch": FROM_1,
        "number_waves": FROM_1,
        "depth": FROM_1,
        "depths": EACH_FROM_0,
        "text_alone": EACH_FROM_1,
        "level_rows": FROM_0,
        "epsilon": POSITIVE,
    }

    @property
    def pools_text(self) -> bool:
        """As `pooled_text` says."""
        return self.pooled_text

    @property
    def size_unit(self) -> int:
        """As `Network`; with `places`, 0."""
        return 0 if self.places else self.patch * 2 ** (len(self.multipliers) - 1)

    @nn.compact
    def __call__(self, x: Array, t: Array, cond: Mapping[str, Array] | None = None, *, train: bool = False) -> Array:
        """As `Network`; spatial transformers, in place of the attention, attend to the text (latent diffusion)."""
        cond = cond or {}
        self._check(x, cond)
        joined = layers.to_patches(jnp.concatenate([x, *(cond[name] for name in self.concat)], axis=-1), self.patch)
        check_sizes(joined, t, self.multipliers, self.attention)
        block = partial(
            rematerialization.of_block(ResBlock, self.remat, static_argnums=(3,)),
            groups=self.groups,
            dropout=self.dropout,
            scale_shift=self.scale_shift,
            epsilon=self.epsilon,
            dtype=self.dtype,
        )
        text = () if self.text_features is None else (cond["text"], cond.get("text_mask"))
        last = len(self.multipliers) - 1

        sizes = EmbeddingSizes(4 * self.channels, self.channels, self.sinusoids, self.number_waves, self.level_rows)
        emb = embed_vectors(self, t, cond, sizes)  # [B, 4 channels]
        x = Conv(self.channels, dtype=self.dtype, name="conv_in")(joined)
        skips = [x]
        for i, multiplier in enumerate(self.multipliers):
            channels = self.channels * multiplier
            x, more = Down(
                blocks=self.blocks,
                block=partial(block, channels),
                attention=self._attention(i) if 2**i in self.attention else None,
                downsample=self._downsample(partial(block, channels)) if i < last else None,
                name=f"down_{i}",
            )(x, emb, train, text)
            skips += more
        x = Mid(partial(block, x.shape[-1]), self._attention(last, bottleneck=True), name="mid")(x, emb, train, text)
        for i, multiplier in reversed(list(enumerate(self.multipliers))):
            channels = self.channels * multiplier
            read = self.blocks + 1
            x = Up(
                block=partial(block, channels),
                attention=self._attention(i) if 2**i in self.attention else None,
                upsample=self._upsample(partial(block, channels)) if i else None,
                name=f"up_{i}",
            )(x, skips[-read:], emb, train, text)
            del skips[-read:]
        x = nn.silu(GroupNorm(self.groups, self.epsilon, dtype=self.dtype, name="norm_out")(x))
        pixels = self.patch ** (x.ndim - 2)
        x = Conv(self.out_channels * pixels, kernel_init=ZERO, name="conv_out")(x.astype(jnp.float32))
        return layers.from_patches(x, self.patch)

    def _attention(self, level: int, *, bottleneck: bool = False) -> Callable[..., nn.Module]:
        channels = self.channels * self.multipliers[level]
        heads = layers.attention_heads(channels, self.heads, self.head_channels)
        if self.text_features is None:
            attention = rematerialization.of_attention(SelfAttention, self.remat)
            return partial(attention, heads, self.groups, self.epsilon, self.attention_kernel, dtype=self.dtype)
        layer = rematerialization.of_attention(SpatialTransformer, self.remat)
        depth, alone = self.depths[level] if self.depths else self.depth, 2**level in self.text_alone and not bottleneck
        own = {"text_alone": alone, "dtype": self.dtype}
        return partial(layer, heads, self.groups, depth, self.places, self.attention_kernel, **own)

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
        if self.depths and len(self.depths) != len(self.multipliers):
            raise UserError(f"depths has one number for each of the {len(self.multipliers)} levels; got {self.depths}")
        check_choice(self.attention_kernel)
        rematerialization.check_choice(self.remat)
        if absent := set(self.text_alone) - (set(self.attention) if self.text_features is not None else set()):
            raise UserError(f"text_alone is at factors of attention, in a net with text; got {sorted(absent)}")
        if self.places and self.text_features is None:
            raise UserError("places are told to spatial transformers, which a net without text does not have")
        self.check_cond(x, cond)
