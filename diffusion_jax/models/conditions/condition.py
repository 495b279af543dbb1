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
        """The number of classes of the entry "label" [B]; 0: the condition has no such entry."""
        return 0

    @property
    def text_features(self) -> int | None:
        """The width D of the entry "text" [B, N, D]; None: the condition has no such entry."""
        return None

    def channels(self, c: int) -> dict[str, int]:
        """{entry [B, *S, C'] that is concatenated to x: its C'}, for x of c channels."""
        return {}

    @property
    def levels(self) -> tuple[str, ...]:
        """Entries [B] that are embedded as the time is."""
        return ()

    @property
    def level_count(self) -> int | None:
        """The number of values, 0, 1, ..., that its levels have; None for levels between 0 and 1."""
        return None

    @property
    def numbers(self) -> tuple[str, ...]:
        """Entries [B, K] whose numbers are embedded together, and with the text's vector where the network takes it."""
        return ()

    @property
    def images(self) -> tuple[str, ...]:
        """The entries of `channels` that are images, of which a latent model gets latents. Others are maps or masks."""
        return ()

    @property
    def size_unit(self) -> int:
        """The number of which the sides of an example are multiples."""
        return 1

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all entries that `entries` or `encode` may give."""
        return (*self.channels(1), *self.levels)

    def network_entries(self, x_shape: tuple[int, ...]) -> Entries:
        """The entries of one example as the network takes them, all zeros, for an x of shape x_shape = *S C."""
        found = {name: jnp.zeros((1, *x_shape[:-1], c)) for name, c in self.channels(x_shape[-1]).items()}
        return found | {name: jnp.zeros(1) for name in self.levels}

    # ---- from examples to a batch, on the host

    def reader(self, tokenizer: Tokenizer | None = None) -> Reader | None:
        """The reader of an example's condition; None where the condition is made of the image alone."""
        return None

    def batch(self, shape: tuple[int, ...]) -> dict[str, BatchEntry]:
        """The entries that the reader makes, for images H W C."""
        return {}

    @property
    def of_image(self) -> bool:
        """Whether it is made of the augmented image of a step, so that latents cannot be precomputed."""
        return bool(self.channels(1))

    # ---- from a batch to what the network is told, on the device

    @abc.abstractmethod
    def entries(self, batch: Mapping[str, chex.Array]) -> Entries:
        """The entries of all examples of a batch, without dropout; images at the size of the data, levels 0."""

    def augment(self, key: Array, entries: Entries) -> Entries:
        """The entries with the random augmentation of training; images are latents in a latent model."""
        return entries

    @property
    def dropout(self) -> float | None:
        """The share of training examples without it; None: it is left out together with class and caption."""
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
        """The entries encoded for the network; with a dropout key, as in training."""
        return entries

    def init(self, key: Array) -> Params | None:
        """Random parameters of an encoder that is trained with the network; None where there is none."""
        return None

    @property
    def trained(self) -> bool:
        """Whether it has an encoder that is trained with the network."""
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
        """The weights, on the host, of an encoder that is not trained; None where there is none."""
        return None

    @property
    def features(self) -> dict[str, BatchEntry]:
        """Entries of the pretrained encoder, which can be precomputed and then replace those of `batch`; {}: none."""
        return {}

    # ---- sampling

    @property
    def needs_request(self) -> bool:
        """Whether a sample needs this condition in the user's request."""
        return True

    @property
    def restores(self) -> bool:
        """Whether a sample restores the image from which the condition was made."""
        return False

    @abc.abstractmethod
    def request(self, request: SampleRequest, setting: RequestSetting) -> dict[str, np.ndarray]:
        """The entries [N, ...] of a user's request, as `entries` gives them, for the N seeds of the setting.

        Guidance leads away from entries whose names start with `NEGATIVE`. Raises UserError for an invalid value.
        """

    @classmethod
    def refusal(cls, field: str, told: tuple["Condition", ...]) -> str:
        """The sentence for a request by a field of `takes` where the model has the conditions `told` instead."""
        return f"{cls.takes[field]} is of a model trained with {cls.name}; this one was not"

    @property
    def edits(self) -> bool:
        """Whether the model is trained for inpainting, and its entries are made from the edited image by `of_edit`."""
        return False

    def of_edit(self, images: Array, unknown: Array) -> Entries:
        """The entries for edits of images [B, H, W, C] whose places unknown bool [B, H, W, 1] are painted."""
        raise NotImplementedError

    # ---- seeing

    @property
    def shown_by_example(self) -> bool:
        """Whether samples during training have conditions of examples, and are shown beside these."""
        return True

    def pictures(self, entries: Mapping[str, np.ndarray], channels: int) -> list[np.ndarray]:
        """Pictures uint8 [B, H, W, channels] of entries, to be shown beside samples; classes of a map are grays."""
        return [_picture(entries[name], channels) for name in self.channels(channels) if name in entries]

    def check_dropout(self) -> None:
        """Raises UserError for a dropout outside [0, 1)."""
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise UserError(f"{self.name} takes a dropout in [0, 1); got {self.dropout}")


def _picture(a: np.ndarray, channels: int) -> np.ndarray:
    a = np.asarray(a)
    if a.shape[-1] != channels:
        classes = a.shape[-1]
        gray = a if classes == 1 else (a @ np.arange(classes))[..., None] / max(classes - 1, 1)
        a = np.repeat(2 * gray - 1, channels, axis=-1)
    return transforms.to_uint8(a)
