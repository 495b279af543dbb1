"""DiT, the diffusion transformer (arXiv:2212.09748), for spatial rank 1, 2 or 3.

With text, each layer attends to its tokens too, between self-attention and feed-forward. Dimension key: B *S C,
channels last; N patches; D width.
"""

from collections.abc import Mapping
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike

from diffusion_jax.errors import UserError
from diffusion_jax.nets import layers, rematerialization
from diffusion_jax.nets.context import split_tokens
from diffusion_jax.nets.dense import INIT, ZERO, Dense
from diffusion_jax.nets.embedding import EmbeddingSizes, embed_vectors
from diffusion_jax.nets.layers import attention_heads
from diffusion_jax.nets.multi_head import multi_head
from diffusion_jax.nets.network import Network, TensorRule, check_shapes
from diffusion_jax.nets.rematerialization import product
from diffusion_jax.ranges import BELOW_1, FROM_1, POSITIVE, Range


def positions(size: tuple[int, ...], features: int) -> np.ndarray:
    """Sines and cosines of the place of each patch, which nothing trains: [prod(size), features], float32.

    One group of features for each axis, the last axis first as in the published weights: sin, then cos, of
    i 10000^(-j / k), where i is the patch's index along the axis and j < k = features // (2 rank). The features that
    are left are 0.
    """
    rank = len(size)
    count = features // (2 * rank)
    frequencies = 10000.0 ** (-np.arange(count) / count)
    indices = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), axis=-1).reshape(-1, rank)  # [N, rank]
    angles = indices[:, ::-1, None] * frequencies  # [N, rank, k]
    waves = np.concatenate([np.sin(angles), np.cos(angles)], axis=-1).reshape(len(angles), -1)
    return np.pad(waves, ((0, 0), (0, features - waves.shape[1]))).astype(np.float32)


def modulation(emb: Array, count: int, dtype: DTypeLike, name: str) -> list[Array]:
    """`count` vectors that are linear in SiLU(emb), zero at first: emb [B, D] -> each [B, 1, D].

    The dense layer of this name belongs to the compact module that calls this.
    """
    vectors = Dense(count * emb.shape[-1], dtype=dtype, kernel_init=ZERO, name=name)(nn.silu(emb))
    return jnp.split(vectors[:, None], count, axis=-1)


def normalize(x: Array) -> Array:
    """Zero mean and unit variance over the features of each patch: [B, N, D] -> like x; the statistics are float32."""
    norm = nn.LayerNorm(1e-6, dtype=x.dtype, use_bias=False, use_scale=False, use_fast_variance=False)
    return jnp.asarray(norm(x))


class Attention(nn.Module):
    """Multi-head attention of x to a context and the projection after it: [B, N, D] -> [B, N, D]."""

    heads: int
    kernel_init: nn.initializers.Initializer = INIT
    """Of the projection."""
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, context: Array, mask: Array | None = None) -> Array:
        """x [B, N, D], context [B, M, E], mask [B, M] True where it may be attended to -> [B, N, D]."""
        return multi_head(x, context, self.heads, mask=mask, out=self.kernel_init, dtype=self.dtype)


class FeedForward(nn.Module):
    """Two dense layers with a GELU between them, of the tanh form: [B, N, D] -> [B, N, D]."""

    hidden: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, N, D] -> [B, N, D]."""
        h = nn.gelu(Dense(self.hidden, dtype=self.dtype, name="up")(x), approximate=True)
        return Dense(x.shape[-1], dtype=self.dtype, name="down")(h)


class Layer(nn.Module):
    """Self-attention, attention to the text where there is one, feed-forward; each added to its input.

    adaLN-Zero (section 3.2): the embedding shifts and scales what self-attention and feed-forward read, and scales what
    they give. These start at zero, as does the projection after the attention to the text: the layer starts as the
    identity.
    """

    heads: int
    hidden: int
    """Width between the two dense layers of the feed-forward."""
    dropout: float
    remat: str = "none"
    """Of the attention: what else is computed again, the class around this one says."""
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, emb: Array, text: Array | None, mask: Array | None) -> tuple[Array, None]:
        """x [B, N, D], emb [B, D], text [B, M, E], mask [B, M] -> ([B, N, D], None): a carry and an output of a scan.

        Randomness "dropout" where dropout > 0.
        """

        def drop(h: Array) -> Array:
            return layers.dropout(self.make_rng("dropout"), h, self.dropout) if self.dropout else h

        attention = nn.remat(Attention, prevent_cse=False) if self.remat == "attention" else Attention
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = modulation(emb, 6, self.dtype, "modulation")
        h = normalize(x) * (1 + scale_1) + shift_1
        h = attention(self.heads, dtype=self.dtype, name="self_attention")(h, h)
        x = product(x + gate_1 * drop(h))
        if text is not None:
            h = attention(self.heads, ZERO, dtype=self.dtype, name="cross_attention")(normalize(x), text, mask)
            x = product(x + drop(h))
        h = normalize(x) * (1 + scale_2) + shift_2
        h = FeedForward(self.hidden, dtype=self.dtype, name="feed_forward")(h)
        return x + gate_2 * drop(h), None


class DiT(Network):
    """A transformer over patches, told time, class, levels and pooled text by adaLN-Zero. The output starts at zero.

    The defaults are DiT-XL/2. Its layers are scanned: they are compiled once, whatever the depth, and their parameters
    are stacked, [depth, ...].
    """

    patch: int = 2
    """Side of a patch; entries of `concat` are cut into patches together with x."""
    width: int = 1152
    """Features of a token."""
    depth: int = 28
    """Number of layers."""
    heads: int = 16
    """Of every attention; divides the width."""
    mlp_ratio: float = 4.0
    """Of the feed-forward's inner width to `width`."""
    waves: int = 256
    """Sines and cosines of t, and of each level, that are embedded."""
    sinusoids: str = "adm"
    """Their form, "ddpm" or "adm", as `layers.time_embedding`."""
    dropout: float = 0.0
    """Of what each attention and feed-forward gives."""
    remat: str = "none"
    """What is computed again for the gradient, to hold less: "none", "attention", "dots", "offload" or "blocks"
    (`rematerialization.CHOICES`); the results differ by rounding alone."""
    unroll: int = 1
    """Layers in one turn of the compiled loop: more take longer to compile, and the compiler may overlap them."""
    pooled_text: bool = False
    """Whether cond["text_pooled"] [B, D], one vector for the text, is projected and added to the time embedding."""

    tensor_rules: ClassVar[tuple[TensorRule, ...]] = (
        (r"layers/\w+_attention/(query|key|value)/(kernel|bias)$", -1),
        (r"layers/\w+_attention/out/kernel$", -2),
        (r"layers/feed_forward/up/(kernel|bias)$", -1),
        (r"layers/feed_forward/down/kernel$", -2),
    )
    # The modulation, a third of all parameters, is left to fsdp: split over `tensor` it would split what it scales, and
    # cost ten all-gathers of activations a layer.
    outer_layers: ClassVar[tuple[str, ...]] = ("embedding", "patch_in", "patch_out")
    stacked_layers: ClassVar[tuple[str, ...]] = ("layers",)
    float32_layers: ClassVar[tuple[str, ...]] = ("patch_out",)
    splits_tokens: ClassVar[bool] = True
    rematerializations: ClassVar[tuple[str, ...]] = rematerialization.CHOICES
    ranges: ClassVar[Mapping[str, Range]] = {
        "patch": FROM_1,
        "width": FROM_1,
        "depth": FROM_1,
        "heads": FROM_1,
        "mlp_ratio": POSITIVE,
        "waves": FROM_1,
        "dropout": BELOW_1,
        "unroll": FROM_1,
    }

    @property
    def pools_text(self) -> bool:
        """As `pooled_text` says."""
        return self.pooled_text

    @nn.compact
    def __call__(self, x: Array, t: Array, cond: Mapping[str, Array] | None = None, *, train: bool = False) -> Array:
        """x [B, *S, C], t [B] the schedule's conditioning value, cond as `Network` says -> [B, *S, out_channels].

        S is divisible by `patch`. Randomness "dropout" where train and dropout > 0. Raises UserError where the sizes or
        cond do not fit the net.
        """
        cond = cond or {}
        self._check(x, t, cond)
        x = layers.to_patches(jnp.concatenate([x, *(cond[name] for name in self.concat)], axis=-1), self.patch)
        batch, size = x.shape[0], x.shape[1:-1]

        emb = embed_vectors(self, t, cond, EmbeddingSizes(self.width, self.waves, self.sinusoids))  # [B, D]
        x = Dense(self.width, dtype=self.dtype, name="patch_in")(x).reshape(batch, -1, self.width)  # [B, N, D]
        x = split_tokens(x + jnp.asarray(positions(size, self.width), self.dtype))
        x, _ = self._stack(train)(x, emb, cond.get("text"), cond.get("text_mask"))
        shift, scale = modulation(emb, 2, self.dtype, "modulation_out")
        x = normalize(x) * (1 + scale) + shift
        pixels = self.patch ** len(size)
        x = Dense(pixels * self.out_channels, dtype=jnp.float32, kernel_init=ZERO, name="patch_out")(x)
        return layers.from_patches(x.reshape(batch, *size, -1), self.patch)

    def _stack(self, train: bool) -> nn.Module:
        """The layers one after another, of which each has its own parameters and randomness."""
        scanned = nn.scan(
            rematerialization.of_block(Layer, self.remat, prevent_cse=False),
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=nn.broadcast,  # every layer is given the same embedding and text
            length=self.depth,
            unroll=self.unroll,
        )
        hidden, dropout = int(self.mlp_ratio * self.width), self.dropout if train else 0.0
        return scanned(self.heads, hidden, dropout, self.remat, dtype=self.dtype, name="layers")

    def _check(self, x: Array, t: Array, cond: Mapping[str, Array]) -> None:
        """Raises UserError where x, t, cond or the options do not fit the net."""
        check_shapes(x, t)
        self.check_cond(x, cond)
        rematerialization.check_choice(self.remat)
        attention_heads(self.width, self.heads)
        if min(self.depth, self.unroll) < 1:
            raise UserError(f"depth and unroll count layers, from 1; got {self.depth} and {self.unroll}")
        if self.width < 2 * (x.ndim - 2):
            raise UserError(
                f"width is at least {2 * (x.ndim - 2)}, a sine and a cosine for each of {x.ndim - 2} spatial axes; "
                f"got {self.width}"
            )
