"""The caption of an image, through a text encoder."""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import chex
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffusion_jax.data.readers import Captions, Reader
from diffusion_jax.data.tokens import Tokenizer
from diffusion_jax.errors import UserError
from diffusion_jax.models.conditions.condition import NEGATIVE, BatchEntry, Condition, Entries
from diffusion_jax.models.conditions.request import RequestSetting, SampleRequest
from diffusion_jax.models.text import NO_CAPTION, Text
from diffusion_jax.nets.text import OUTER_LAYERS, TENSOR_RULES
from diffusion_jax.train.state import Params

_FEATURES = ("text", "text_mask", "text_pooled")


@dataclasses.dataclass(frozen=True)
class Caption(Condition):
    """A caption as tokens [B, N], which the encoder turns into text [B, N, D], text_mask [B, N] and text_pooled [B, D].

    text_pooled is there if pooled is true. The encoder is trained with the network, or it is published and frozen. A
    batch may have the features of a frozen encoder in place of tokens.
    """

    encoder: Text
    pooled: bool = False  # whether the network gets one vector for the whole text too

    name: ClassVar[str] = "text"
    takes: ClassVar[Mapping[str, str]] = {"prompts": "--prompt", "negative_prompt": "--negative_prompt"}
    encodes = ("tokens",)
    names = ("tokens", *_FEATURES)
    tensor_rules = TENSOR_RULES
    outer_layers = OUTER_LAYERS
    shown_by_example = False

    @property
    def text_encoder(self) -> Text:
        """As `Condition`."""
        return self.encoder

    @property
    def text_features(self) -> int:
        """The encoder's width."""
        return self.encoder.width

    def network_entries(self, x_shape: tuple[int, ...]) -> Entries:
        """As `Condition`."""
        found = {"text": jnp.zeros((1, self.encoder.length, self.encoder.width))}
        return found | ({"text_pooled": jnp.zeros((1, self._pooled_width))} if self.pooled else {})

    @property
    def _pooled_width(self) -> int:
        return self.encoder.pooled_width or self.encoder.width

    def reader(self, tokenizer: Tokenizer | None = None) -> Reader:
        """Without a tokenizer, captions are read and no entry is made of them."""
        return Captions(partial(self.encoder.encode, tokenizer) if tokenizer else None)

    def batch(self, shape: tuple[int, ...]) -> dict[str, BatchEntry]:
        """As `Condition`."""
        return {"tokens": BatchEntry((self.encoder.ids,), jnp.int32, 0, self.encoder.vocabulary - 1)}

    def entries(self, batch: Mapping[str, chex.Array]) -> Entries:
        """The features of captions, where they were precomputed; else tokens."""
        names = [name for name in _FEATURES if name in batch] or ["tokens"]
        return {name: jnp.asarray(batch[name]) for name in names}

    def null(self, entries: Entries, weights: Params | None = None) -> Entries:
        """No caption, encoded by weights where entries are features."""
        if "tokens" in entries:
            return {"tokens": jnp.broadcast_to(self.encoder.null, entries["tokens"].shape)}
        return self.encode(weights, {"tokens": jnp.asarray(self.encoder.null)[None]})

    def encode(self, weights: Params, entries: Entries, dropout: Array | None = None) -> Entries:
        """As `Condition`."""
        rngs = None if dropout is None else {"dropout": dropout}
        tokens = entries["tokens"]
        told = tokens[:, 0] != NO_CAPTION  # [B]
        if self.encoder.zero_null:
            tokens = jnp.maximum(tokens, 0)
        encoded: Any = self.encoder.network.apply({"params": weights}, tokens, train=dropout is not None, rngs=rngs)
        hidden, pooled = encoded.hidden, encoded.pooled
        if self.encoder.zero_null:
            hidden, pooled = jnp.where(told[:, None, None], hidden, 0), jnp.where(told[:, None], pooled, 0)
        return {"text": hidden, "text_mask": encoded.mask} | ({"text_pooled": pooled} if self.pooled else {})

    def init(self, key: Array) -> Params | None:
        """As `Condition`."""
        if not self.trained:
            return None
        return self.encoder.network.init(key, jnp.zeros((1, self.encoder.ids), jnp.int32))["params"]

    @property
    def trained(self) -> bool:
        """As `Condition`."""
        return self.encoder.trained

    @property
    def pretrained(self) -> Params | None:
        """As `Condition`."""
        return self.encoder.params

    @property
    def features(self) -> dict[str, BatchEntry]:
        """As `Condition`; {} for an encoder that is trained."""
        if self.trained:
            return {}
        length, width = self.encoder.length, self.encoder.width
        found = {"text": BatchEntry((length, width), jnp.float32), "text_mask": BatchEntry((length,), jnp.bool_, 0, 1)}
        return found | ({"text_pooled": BatchEntry((self._pooled_width,), jnp.float32)} if self.pooled else {})

    def request(self, request: SampleRequest, setting: RequestSetting) -> dict[str, np.ndarray]:
        """As `Condition`: the tokens of the prompts in turn, and those of the negative prompt."""
        assert setting.tokenizer is not None
        if not request.prompts:
            raise UserError("this model is told captions; give --prompt=TEXT, or --prompt= for none")
        prompts, negative, count = request.prompts, request.negative_prompt, len(setting.seeds)
        if negative is not None and setting.guidance == 1:
            raise UserError("--negative_prompt is what guidance leads away from; give a --guidance other than 1")
        # Each text once, so that of those that are too long each is counted once.
        texts = list(dict.fromkeys([*prompts, *([] if negative is None else [negative])]))
        row, ids = {each: i for i, each in enumerate(texts)}, self.encoder.encode(setting.tokenizer, texts)
        cond = {"tokens": ids[[row[prompts[i % len(prompts)]] for i in range(count)]]}
        return cond if negative is None else cond | {f"{NEGATIVE}tokens": ids[[row[negative]] * count]}

    @classmethod
    def refusal(cls, field: str, told: tuple[Condition, ...]) -> str:
        """As `Condition`."""
        return f"{cls.takes[field]} needs a model that is told captions; this one has no text encoder"
