"""Text encoders, one transformer (arXiv:1706.03762) in three arrangements; dimension key B, N tokens, D features.

`ClipText` is the text tower of CLIP (arXiv:2103.00020), `Bert` the encoder of BERT (arXiv:1810.04805), whose published
weights `interop.huggingface_text` reads; `TextTransformer` is trained from scratch with the net that it conditions.
Parameters, layer norms' statistics, softmax and results are float32 whatever the `dtype` of the computation.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike

from diffusion_jax.errors import UserError
from diffusion_jax.nets.attention import attend
from diffusion_jax.nets.layers import Conv, Dense, dropout
from diffusion_jax.nets.network import TensorRule

TENSOR_RULES: tuple[TensorRule, ...] = (
    (r"attention/(query|key|value)/(kernel|bias)$", -1),
    (r"attention/out/kernel$", -2),
    (r"layer_\d+/up/(kernel|bias)$", -1),
    (r"layer_\d+/down/kernel$", -2),
)
"""As `layers.TENSOR_RULES`, of the layers here."""

OUTER_LAYERS = ("embedding",)
"""As `network.Network.outer_layers`, of every encoder here."""

NORMAL = nn.initializers.normal(0.02)
"""BERT's initialization of embeddings and matrices (arXiv:1810.04805's code); CLIP's, whose weights are read, too."""

LECUN = nn.initializers.lecun_normal()
UNIT = nn.initializers.normal(1.0)
OF_EACH = nn.initializers.variance_scaling(3.0, "fan_in", "normal")
"""`TextTransformer`'s of matrices, embeddings and the convolution. An embedding is as large as what a layer adds to it:
among embeddings of 0.02, the first attention's mean of all tokens drowns each token's own, and with it the order of the
words, which a net then takes long to learn. The convolution adds each of its three tokens at the size of an embedding.
"""

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),  # OpenAI's CLIP
}


class Encoded(NamedTuple):
    """Encoded text: what a net attends to, and one vector for the whole text."""

    hidden: Array  # [B, N, D] float32
    mask: Array  # [B, N] bool: which tokens may be attended to
    pooled: Array  # [B, D] float32: the state at the token that stands for the text


class Attention(nn.Module):
    """Multi-head self-attention, section 3.2 of arXiv:1706.03762, the softmax in float32."""

    heads: int
    dtype: DTypeLike = jnp.float32
    kernel_init: nn.initializers.Initializer = NORMAL

    @nn.compact
    def __call__(self, x: Array, mask: Array, causal: bool) -> Array:
        """x [B, N, D], mask [B, N], False where no token may look -> [B, N, D]; causal: none looks ahead."""
        width = x.shape[-1]
        if width % self.heads:
            raise UserError(f"a width of {width} cannot be split over {self.heads} heads; heads must divide it")
        dense = partial(Dense, width, dtype=self.dtype, kernel_init=self.kernel_init)

        def project(name: str) -> Array:
            return dense(name=name)(x).reshape(*x.shape[:-1], self.heads, -1)  # [B, N, heads, D / heads]

        h = attend(project("query"), project("key"), project("value"), mask[:, None, None], kernel="xla", causal=causal)
        return dense(name="out")(h.reshape(x.shape))


class Layer(nn.Module):
    """Attention, then a two-layer perceptron, each added to its input.

    Normalized before each (as GPT-2 and CLIP) or after each sum (as arXiv:1706.03762 and BERT).
    """

    heads: int
    hidden: int
    activation: str
    norm_first: bool
    causal: bool
    epsilon: float
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32
    kernel_init: nn.initializers.Initializer = NORMAL

    @nn.compact
    def __call__(self, x: Array, mask: Array, train: bool) -> Array:
        """x [B, N, D], mask [B, N] -> [B, N, D]; randomness "dropout" where train."""
        width = x.shape[-1]
        norm1, norm2 = (layer_norm(self.epsilon, self.dtype, name) for name in ("norm1", "norm2"))
        attention = Attention(self.heads, self.dtype, self.kernel_init, name="attention")
        up = Dense(self.hidden, dtype=self.dtype, kernel_init=self.kernel_init, name="up")
        down = Dense(width, dtype=self.dtype, kernel_init=self.kernel_init, name="down")

        def perceptron(h: Array) -> Array:
            return down(ACTIVATIONS[self.activation](up(h)))  # [B, N, hidden] between

        def drop(h: Array) -> Array:
            return dropped(self, h, self.dropout, train)

        if self.norm_first:
            x += drop(attention(norm1(x), mask, self.causal))
            return x + drop(perceptron(norm2(x)))
        x = norm1(x + drop(attention(x, mask, self.causal)))
        return norm2(x + drop(perceptron(x)))


class ClipText(nn.Module):
    """CLIP's text tower: causal, normalized first; the defaults are ViT-L's, which Stable Diffusion 1 reads."""

    vocabulary: int = 49408
    width: int = 768
    layers: int = 12
    heads: int = 12
    hidden: int = 3072
    length: int = 77
    """The number of positions: the longest text."""
    activation: str = "quick_gelu"
    epsilon: float = 1e-5
    eos: int | None = None
    """The token at which a text is pooled, its first; None is the row's highest token, as in OpenAI's code."""
    penultimate: bool = False
    """Hidden is of the last layer but one, through the final norm; pooled is of the last. Stable Diffusion 2 reads
    OpenCLIP's ViT-H so, but its published folder already lacks the last layer: there, leave this False."""
    normed: bool = True
    """Whether hidden goes through the final norm, which Stable Diffusion XL's does not; pooled always does."""
    projection: int = 0
    """Features D' of pooled after a matrix, as CLIP compares it with images; 0: no matrix."""
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, tokens: Array, mask: Array | None = None, *, train: bool = False) -> Encoded:
        """tokens [B, N] int32 -> hidden [B, N, width]. No mask lets a net see the padding, as Stable Diffusion does."""
        check(tokens, mask, self.length, self.activation)
        del train  # CLIP is trained without dropout
        mask = jnp.ones(tokens.shape, bool) if mask is None else mask
        x = embed("token", self.vocabulary, self.width, self.dtype)(tokens)
        x += embed("position", self.length, self.width, self.dtype)(jnp.arange(tokens.shape[1]))
        states = [x]  # [B, N, D] each
        for i in range(self.layers):
            layer = Layer(
                self.heads, self.hidden, self.activation, True, True, self.epsilon, dtype=self.dtype, name=f"layer_{i}"
            )
            states.append(layer(states[-1], mask, False))
        norm = layer_norm(self.epsilon, jnp.float32, "norm")
        last = norm(states[-1])
        end = jnp.argmax(tokens if self.eos is None else tokens == self.eos, axis=1)  # [B]
        pooled = jnp.take_along_axis(last, end[:, None, None], axis=1)[:, 0]
        if self.projection:
            pooled = Dense(self.projection, kernel_init=NORMAL, bias=False, name="projection")(pooled)
        state = states[-2] if self.penultimate else states[-1]
        return Encoded(norm(state) if self.normed else state.astype(jnp.float32), mask, pooled)


class Bert(nn.Module):
    """BERT's encoder: normalized last, every token sees every other; the defaults are the base model's, uncased."""

    vocabulary: int = 30522
    width: int = 768
    layers: int = 12
    heads: int = 12
    hidden: int = 3072
    length: int = 512
    """The number of positions: the longest text."""
    types: int = 2
    activation: str = "gelu"
    epsilon: float = 1e-12
    pad: int = 0
    dropout: float = 0.1
    """Of the embeddings and of what each half of a layer adds; the attention's weights are never dropped."""
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, tokens: Array, mask: Array | None = None, *, types: Array | None = None, train: bool = False
    ) -> Encoded:
        """tokens [B, N] int32 -> hidden [B, N, width], pooled at the first token.

        No mask leaves out the padding; types [B, N] int32 are the token types, 0 where not given.
        """
        check(tokens, mask, self.length, self.activation)
        mask = tokens != self.pad if mask is None else mask
        x = embed("token", self.vocabulary, self.width, self.dtype)(tokens)
        x += embed("position", self.length, self.width, self.dtype)(jnp.arange(tokens.shape[1]))
        x += embed("type", self.types, self.width, self.dtype)(jnp.zeros_like(tokens) if types is None else types)
        x = dropped(self, layer_norm(self.epsilon, self.dtype, "norm")(x), self.dropout, train)  # [B, N, D]
        for i in range(self.layers):
            x = Layer(
                self.heads,
                self.hidden,
                self.activation,
                norm_first=False,
                causal=False,
                epsilon=self.epsilon,
                dropout=self.dropout,
                dtype=self.dtype,
                name=f"layer_{i}",
            )(x, mask, train)
        x = x.astype(jnp.float32)
        return Encoded(x, mask, x[:, 0])


class TextTransformer(nn.Module):
    """A small encoder to train from scratch: normalized first, every token sees every other, learned positions.

    It is latent diffusion's text encoder (arXiv:2112.10752, appendix E.2.1, "transformer"), at a size of choice, but
    for a convolution of width 3, added to the embeddings: which noun a colour belongs to, which attention is slow to
    learn, each state then knows from the start.
    """

    vocabulary: int
    width: int = 256
    layers: int = 4
    heads: int = 4
    length: int = 77
    """The number of positions: the longest text."""
    pad: int = 0
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, tokens: Array, mask: Array | None = None, *, train: bool = False) -> Encoded:
        """tokens [B, N] int32 -> hidden [B, N, width], 0 where masked, pooled at the first token.

        No mask leaves out the padding. Randomness "dropout" where train and dropout > 0.
        """
        check(tokens, mask, self.length, "gelu")
        mask = tokens != self.pad if mask is None else mask
        x = embed("token", self.vocabulary, self.width, self.dtype, UNIT)(tokens)
        x += embed("position", self.length, self.width, self.dtype, UNIT)(jnp.arange(tokens.shape[1]))
        x += Conv(self.width, dtype=self.dtype, kernel_init=OF_EACH, name="neighbours")(x * mask[..., None])
        x = dropped(self, x, self.dropout, train)  # [B, N, D]
        for i in range(self.layers):
            x = Layer(
                self.heads,
                4 * self.width,
                "gelu",
                norm_first=True,
                causal=False,
                epsilon=1e-5,
                dropout=self.dropout,
                dtype=self.dtype,
                kernel_init=LECUN,
                name=f"layer_{i}",
            )(x, mask, train)
        x = layer_norm(1e-5, jnp.float32, "norm")(x) * mask[..., None]
        return Encoded(x, mask, x[:, 0])


TEXT_ENCODERS: dict[str, type[nn.Module]] = {"clip": ClipText, "bert": Bert, "transformer": TextTransformer}


def embed(name: str, rows: int, width: int, dtype: DTypeLike, init: nn.initializers.Initializer = NORMAL) -> nn.Embed:
    """A table of `rows` vectors; a token past its end reads as NaN, never as another."""
    return nn.Embed(rows, width, dtype=dtype, embedding_init=init, name=name)


def layer_norm(epsilon: float, dtype: DTypeLike, name: str) -> nn.LayerNorm:
    """Layer normalization (arXiv:1607.06450) over the features, its variance in two passes."""
    return nn.LayerNorm(epsilon, dtype=dtype, use_fast_variance=False, name=name)


def dropped(module: nn.Module, x: Array, rate: float, train: bool) -> Array:
    """`x` after dropout in training, x itself otherwise."""
    return dropout(module.make_rng("dropout"), x, rate) if train and rate else x


def check(tokens: Array, mask: Array | None, length: int, activation: str) -> None:
    """Raises UserError where the tokens, the mask or the activation do not fit the net."""
    if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise UserError(f"tokens are integers of shape [batch, tokens]; got {tokens.dtype} {tokens.shape}")
    if tokens.shape[1] > length:
        raise UserError(
            f"the text encoder has {length} positions but the texts {tokens.shape[1]} tokens; cut them to {length}"
        )
    if mask is not None and (mask.shape != tokens.shape or mask.dtype != bool):
        raise UserError(f"a mask of tokens is bool {tokens.shape}, as they are; got {mask.dtype} {mask.shape}")
    if activation not in ACTIVATIONS:
        raise UserError(f"the activation is one of {', '.join(ACTIVATIONS)}; got {activation!r}")
