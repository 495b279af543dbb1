"""Text encoders: how captions become tokens, and the network that encodes tokens."""

import dataclasses
import functools
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Required, TypedDict, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from diffusion_jax.data import tokens
from diffusion_jax.data.tokens import Cut, Tokenizer
from diffusion_jax.errors import UserError
from diffusion_jax.interop import huggingface_text, huggingface_text_pair
from diffusion_jax.nets.text import TEXT_ENCODERS, ClipText, TextTransformer
from diffusion_jax.nets.text_pair import ClipPair
from diffusion_jax.spec import from_spec
from diffusion_jax.train.state import Params

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


class CutNotice:
    """A notice on stderr, once for each model, that captions are longer than its text encoder reads."""

    def __init__(self) -> None:
        self.given = False

    def give(self, cut: Sequence[Cut], count: int, length: int) -> None:
        """Prints the notice, of the captions `cut` among count captions, unless it was printed before."""
        with _GIVING:
            given, self.given = self.given, True
        if not given:
            print(f"diffusion-jax: {cut_sentence(cut, count, length)}", file=sys.stderr, flush=True)


_GIVING = threading.Lock()  # for all notices: a lock in each would keep a model from being pickled for a worker

NO_CAPTION = -1
"""Every token of a row without a caption, where the features of no caption are zeros."""

_SHOWN = 80  # characters of a caption in a message


def cut_sentence(cut: Sequence[Cut], count: int, length: int) -> str:
    """A sentence that says how many captions are cut, and what the first of them loses."""
    text, lost = (part if len(part) <= _SHOWN else f"{part[:_SHOWN]} ..." for part in cut[0])
    return (
        f"{len(cut):,} of {count:,} captions are longer than the {length} tokens that the text encoder reads (two of "
        f"which mark the ends), and are cut; the first, {text!r}, loses {lost!r}"
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Text:
    """A text encoder: tokens [B, length] -> hidden states [B, length, width]."""

    network: nn.Module
    width: int
    length: int
    vocabulary: int
    params: Params | None = None  # of a published encoder, which is not trained; None: trained with the model
    folder: str = ""  # of the published encoder
    tokenizer: str = ""  # folder of the published tokenizer; "": one is learned from the captions
    second_tokenizer: str = ""  # that of the second tower of two, whose tokens follow
    pooled_width: int = 0  # of the vector for the whole text; 0: width
    zero_null: bool = False  # the features without a caption are zeros, and not those of the empty caption
    notice: CutNotice = dataclasses.field(default_factory=CutNotice)

    @property
    def ids(self) -> int:
        """The number of tokens of a text: `length` of each tower."""
        return self.length * (2 if self.second_tokenizer else 1)

    @functools.cached_property
    def null(self) -> np.ndarray:
        """The tokens of no caption, int32 [ids]: those of the empty one, or `NO_CAPTION`, whose features are zeros."""
        if self.zero_null:
            return np.full(self.ids, NO_CAPTION, np.int32)
        if self.tokenizer:
            return self.published_tokenizer().encode([""], self.length)[0]
        pad, bos, eos = (tokens.SPECIAL.index(name) for name in ("<pad>", "<bos>", "<eos>"))
        return np.asarray([bos, eos] + [pad] * (self.length - 2), np.int32)

    @property
    def trained(self) -> bool:
        """Whether its parameters are the model's own."""
        return self.params is None

    def learn_tokenizer(self, captions: Iterable[str]) -> Tokenizer:
        """The published tokenizer, or one learned from captions. Raises UserError for an encoder without weights."""
        if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(self.params)):
            raise UserError(
                "text='clip(...)' has sizes and no weights, so it can be planned and nothing else; train with "
                "text=\"huggingface(folder='...')\", the folder of its weights"
            )
        return self.published_tokenizer() if self.tokenizer else tokens.train(captions, self.vocabulary)

    def published_tokenizer(self) -> Tokenizer:
        """The tokenizer of the folder that it names, with the second's where there are two."""
        first = tokens.from_folder(self.tokenizer)
        second = tokens.from_folder(self.second_tokenizer) if self.second_tokenizer else None
        return dataclasses.replace(first, second=second)

    def encode(self, tokenizer: Tokenizer, texts: list[str]) -> np.ndarray:
        """The tokens int32 [B, ids] of texts. A text that is too long is cut, and the first time stderr says so.

        Raises UserError for a tokenizer with more tokens than the network embeds.
        """
        if tokenizer.vocabulary > self.vocabulary:
            raise UserError(
                f"the tokenizer has {tokenizer.vocabulary} tokens but the text encoder embeds {self.vocabulary}"
            )
        ids, cut = tokenizer.encode_and_cut(texts, self.length)
        if cut:
            self.notice.give(cut, len(texts), self.length)
        return ids


def transformer(
    length: int = 32, vocabulary: int = 1024, width: int = 128, layers: int = 2, heads: int = 4, dropout: float = 0.0
) -> Text:
    """A `TextTransformer` that is trained with the model, on tokens learned from the captions of the data."""
    return Text(TextTransformer(vocabulary, width, layers, heads, length, dropout=dropout), width, length, vocabulary)


def huggingface(folder: str, length: int = 77, penultimate: bool = False, dtype: str = "float32") -> Text:
    """The pretrained CLIP or BERT text encoder in a folder, with its tokenizer; penultimate is for CLIP alone."""
    if dtype not in DTYPES:
        raise UserError(f"huggingface takes a dtype of {' or '.join(DTYPES)}; got {dtype!r}")
    found = huggingface_text.load(folder)
    options = dict(found.arguments, dtype=DTYPES[dtype])
    if penultimate:
        if found.family != "clip":
            raise UserError(f"huggingface(penultimate=True) is of CLIP; {folder} holds a {found.family}")
        options["penultimate"] = True
    if length > options["length"]:
        raise UserError(f"the text encoder in {folder} has {options['length']} positions; got length={length}")
    network = TEXT_ENCODERS[found.family](**options)
    return Text(network, options["width"], length, options["vocabulary"], found.params, folder, found.tokenizer)


def clip_pair(folder: str, length: int = 77, zero_null: bool = True, dtype: str = "float32") -> Text:
    """Stable Diffusion XL's two CLIP text encoders, in the folder of its pipeline, their penultimate states joined.

    zero_null takes zeros for the features without a caption, as its pipeline's force_zeros_for_empty_prompt does.
    """
    if dtype not in DTYPES:
        raise UserError(f"clip_pair takes a dtype of {' or '.join(DTYPES)}; got {dtype!r}")
    found = huggingface_text_pair.load(folder)
    first, second = found.first, found.second
    if length > first["length"]:
        raise UserError(f"the text encoders in {folder} have {first['length']} positions; got length={length}")
    return Text(
        ClipPair(first, second, DTYPES[dtype]),
        found.width,
        length,
        min(first["vocabulary"], second["vocabulary"]),
        found.params,
        folder,
        *found.tokenizers,
        pooled_width=second["projection"],
        zero_null=zero_null,
    )


def clip(width: int = 768, layers: int = 12, heads: int = 12, length: int = 77, dtype: str = "float32") -> Text:
    """A pretrained CLIP text encoder given by its sizes alone, by default those of ViT-L.

    It has no weights, so it can be planned, before they have been downloaded, and not trained.
    """
    if dtype not in DTYPES:
        raise UserError(f"clip takes a dtype of {' or '.join(DTYPES)}; got {dtype!r}")
    network = ClipText(width=width, layers=layers, heads=heads, hidden=4 * width, length=length, dtype=DTYPES[dtype])
    tokens = jax.ShapeDtypeStruct((1, length), jnp.int32)
    params = jax.eval_shape(network.init, jax.random.key(0), tokens)["params"]
    return Text(network, width, length, network.vocabulary, params)


PUBLISHED: dict[str, Callable[..., Text]] = {"huggingface": huggingface, "clip_pair": clip_pair}
"""Those that are read from a folder."""

TEXTS: dict[str, Callable[..., Text]] = {"transformer": transformer, "clip": clip, **PUBLISHED}


class _PublishedOptions(TypedDict, total=False):
    """The arguments of `PUBLISHED`."""

    folder: Required[str]
    length: int
    penultimate: bool
    zero_null: bool
    dtype: str


def published_folder(spec: str) -> str:
    """The folder of the published encoder that a spec names; "" where it names none."""

    def named(make: Callable[..., Text]) -> Callable[..., str]:
        @functools.wraps(make)
        def folder(**options: Unpack[_PublishedOptions]) -> str:
            return options["folder"]

        return folder

    table: dict[str, Callable[..., Text | str]] = {**TEXTS, **{name: named(make) for name, make in PUBLISHED.items()}}
    found = from_spec(spec, table, "text") if spec else ""
    return found if isinstance(found, str) else ""


def text_encoder(spec: str, folder: str = "") -> Text | None:
    """The text encoder of a spec, None for "". A published encoder is read from folder instead, where one is given."""

    def moved(make: Callable[..., Text]) -> Callable[..., Text]:
        @functools.wraps(make)
        def from_copy(**options: Unpack[_PublishedOptions]) -> Text:
            options["folder"] = folder
            return make(**options)

        return from_copy

    copies = {name: moved(make) for name, make in PUBLISHED.items()} if folder else {}
    return from_spec(spec, TEXTS | copies, "text") if spec else None
