"""What a model is told: one object owns a condition's whole life, from an example of the data to a picture of it.

In training a condition's `reader` makes entries of a batch, and the condition makes of these the entries of the
network's cond, in this order:

    entries(batch) -> at the size of x -> augment(key) -> left out of some examples (`null`) -> encode(weights)

A sample's entries start from the user's `request` instead, and end with `encode`.
"""

import abc
import math
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import chex
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from diffusion_jax.data import transforms
from diffusion_jax.data.readers import Reader
from diffusion_jax.data.tokens import Tokenizer
from diffusion_jax.errors import UserError
from diffusion_jax.models.conditions.request import RequestSetting, SampleRequest
from diffusion_jax.models.text import Text
from diffusion_jax.nets.network import TensorRule
from diffusion_jax.train.state import Params

Entries = dict[str, Array]
"""Arrays by name; every one leads with B."""

NEGATIVE = "negative_"
"""What the name of an entry starts with that guidance is to lead away from, in place of a condition's `null`."""


class BatchEntry(NamedTuple):
    """One entry of a batch, without the leading B."""

    shape: tuple[int, ...]
    dtype: DTypeLike
    low: float = -math.inf
    """The least value that it may have."""
    high: float = math.inf


class Condition(abc.ABC):
    """One thing that a model is told. A concrete one is a frozen dataclass, whose fields are its arguments in a config.

    Dimension key: B batch, *S C an example of the data (H W C of an image), *S C' an entry at the size of x, which
    is an example or its latent.
    """

    name: ClassVar[str]
    """What it is called: among a model's conditions, in `SampleRequest.values`, and where its encoder's weights are."""
    takes: ClassVar[Mapping[str, str]] = {}
    """{field of `SampleRequest` that is its own: the command's flag}; {}: it takes `SampleRequest.values[name]`."""
    of_images: ClassVar[bool] = False
    """Whether it makes sense of images [H, W, C] alone."""

    # ---- what the network is given for it

    @property
    def num_classes(self) -> int:
        """Classes of the entry "label" [B]; 0: it has none."""
        return 0

    @property
    def text_features(self) -> int | None:
        """Width D of the entry "text" [B, N, D]; None: it has none."""
        return None

    def channels(self, c: int) -> dict[str, int]:
        """{entry [B, *S, C'] that is concatenated to x: its C'}, for x of c channels."""
        return {}

    @property
    def levels(self) -> tuple[str, ...]:
        """Entries [B] that are embedded as the time is."""
        return ()

    @property
    def images(self) -> tuple[str, ...]:
        """Those of `channels` that are images: a latent model is told their latents. Others are maps or masks."""
        return ()

    @property
    def names(self) -> tuple[str, ...]:
        """All entries that it may have, as `entries` or as `encode` gives them."""
        return (*self.channels(1), *self.levels)

    def network_entries(self, x_shape: tuple[int, ...]) -> Entries:
        """Zeros in the shapes of what the network is given for one example, x being x_shape = *S C."""
        found = {name: jnp.zeros((1, *x_shape[:-1], c)) for name, c in self.channels(x_shape[-1]).items()}
        return found | {name: jnp.zeros(1) for name in self.levels}

    # ---- from examples to a batch, on the host

    def reader(self, tokenizer: Tokenizer | None = None) -> Reader | None:
        """What reads it from an example; None where it is made of the image alone."""
        return None

    def batch(self, shape: tuple[int, ...]) -> dict[str, BatchEntry]:
        """The entries that the reader makes, for images H W C."""
        return {}

    @property
    def of_image(self) -> bool:
        """Whether it is made of the image that training draws: then latents cannot be computed beforehand."""
        return bool(self.channels(1))

    # ---- from a batch to what the network is told, on the device

    @abc.abstractmethod
    def entries(self, batch: Mapping[str, chex.Array]) -> Entries:
        """Its entries for every example of a batch, nothing left out; images at the size of the data, levels 0."""

    def augment(self, key: Array, entries: Entries) -> Entries:
        """The entries with what training adds at random; images are latents where the model works in those."""
        return entries

    @property
    def dropout(self) -> float | None:
        """The share of training examples that it is left out of; None: together with class and caption."""
        return None

    def null(self, entries: Entries, weights: Params | None = None) -> Entries:
        """Its entries where it is left out, in shapes that broadcast to entries.

        Guidance leads away from those of class and caption, or of every condition where a model is told neither.
        weights are its encoder's, where it has one that is not trained along.
        """
        return {name: jnp.zeros_like(a) for name, a in entries.items()}

    # ---- an encoder of its own

    @property
    def text_encoder(self) -> Text | None:
        """The text encoder of captions; None for a condition that is no caption."""
        return None

    @property
    def encodes(self) -> tuple[str, ...]:
        """Entries that `encode` replaces."""
        return ()

    def encode(self, weights: Params, entries: Entries, dropout: Array | None = None) -> Entries:
        """The entries as the network takes them, by its encoder; with a dropout key, as in training."""
        return entries

    def init(self, key: Array) -> Params | None:
        """Random parameters of its encoder, which are trained along; None where there are none."""
        return None

    @property
    def trained(self) -> bool:
        """Whether it has an encoder that is trained along."""
        return False

    @property
    def tensor_rules(self) -> tuple[TensorRule, ...]:
        """How the parameters of `init` are split over the mesh axis `tensor`, as `Network.tensor_rules`."""
        return ()

    @property
    def outer_layers(self) -> tuple[str, ...]:
        """Names in the paths of first and last layers of its encoder, which Muon leaves to Adam."""
        return ()

    @property
    def pretrained(self) -> Params | None:
        """Weights of its encoder that training leaves as they are, on the host; None where there are none."""
        return None

    @property
    def features(self) -> dict[str, BatchEntry]:
        """Entries that pretrained weights make and that can be computed once, in place of `batch`; {}: none."""
        return {}

    # ---- sampling

    @property
    def needs_request(self) -> bool:
        """Whether a sample cannot be drawn unless a user says what it is of."""
        return True

    @property
    def restores(self) -> bool:
        """Whether a sample is to look like the image that the condition was made of."""
        return False

    @abc.abstractmethod
    def request(self, request: SampleRequest, setting: RequestSetting) -> dict[str, np.ndarray]:
        """The entries [N, ...], as `entries` gives them, of what a user asks for; N are the setting's seeds.

        An entry of a name that starts with `NEGATIVE` is what guidance leads away from. Raises UserError for what it
        cannot be.
        """

    @classmethod
    def refusal(cls, field: str, told: tuple["Condition", ...]) -> str:
        """What a user is told who asks for it, by a field of `takes`, of a model that is told other conditions."""
        return f"{cls.takes[field]} is of a model trained with {cls.name}; this one was not"

    @property
    def edits(self) -> bool:
        """Whether its entries are made of an image that is edited, by `of_edit`: a model that has learned to paint."""
        return False

    def of_edit(self, images: Array, unknown: Array) -> Entries:
        """Its entries for an edit of images [B, H, W, C], of which unknown bool [B, H, W, 1] is painted."""
        raise NotImplementedError

    # ---- seeing

    @property
    def shown_by_example(self) -> bool:
        """Whether samples in training are drawn for examples of the data, which stand beside them."""
        return True

    def pictures(self, entries: Mapping[str, np.ndarray], channels: int) -> list[np.ndarray]:
        """Pictures uint8 [B, H, W, channels] of entries, to stand beside samples; classes of a map are grays."""
        return [_picture(entries[name], channels) for name in self.channels(channels) if name in entries]

    def check_dropout(self) -> None:
        """Raises UserError for a dropout that is no probability below 1."""
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise UserError(f"{self.name} takes a dropout in [0, 1); got {self.dropout}")


def _picture(a: np.ndarray, channels: int) -> np.ndarray:
    a = np.asarray(a)
    if a.shape[-1] != channels:
        classes = a.shape[-1]
        gray = a if classes == 1 else (a @ np.arange(classes))[..., None] / max(classes - 1, 1)
        a = np.repeat(2 * gray - 1, channels, axis=-1)
    return transforms.to_uint8(a)
