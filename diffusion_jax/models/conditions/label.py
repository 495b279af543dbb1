"""The class of an image."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar

import chex
import jax.numpy as jnp
import numpy as np

from diffusion_jax.data.classes import NULL, Classes, known
from diffusion_jax.data.readers import Labels, Reader
from diffusion_jax.data.tokens import Tokenizer
from diffusion_jax.errors import UserError
from diffusion_jax.models.conditions.condition import BatchEntry, Condition, Entries
from diffusion_jax.models.conditions.request import RequestSetting, SampleRequest
from diffusion_jax.train.state import Params


@dataclasses.dataclass(frozen=True)
class Label(Condition):
    """A class in [0, num_classes), "label" [B]; num_classes itself is no class."""

    num_classes: int = 0

    name: ClassVar[str] = "label"
    takes: ClassVar[Mapping[str, str]] = {"labels": "--label"}
    names = ("label",)
    needs_request = False  # a class is drawn from the seed
    shown_by_example = False

    def network_entries(self, x_shape: tuple[int, ...]) -> Entries:
        """As `Condition`."""
        return {"label": jnp.zeros(1, jnp.int32)}

    def reader(self, tokenizer: Tokenizer | None = None) -> Reader:
        """As `Condition`."""
        return Labels()

    def batch(self, shape: tuple[int, ...]) -> dict[str, BatchEntry]:
        """As `Condition`."""
        return {"label": BatchEntry((), jnp.int32, 0, self.num_classes - 1)}

    def entries(self, batch: Mapping[str, chex.Array]) -> Entries:
        """As `Condition`."""
        return {"label": jnp.asarray(batch["label"])}

    def null(self, entries: Entries, weights: Params | None = None) -> Entries:
        """The class num_classes."""
        return {"label": jnp.full_like(entries["label"], self.num_classes)}

    def request(self, request: SampleRequest, setting: RequestSetting) -> dict[str, np.ndarray]:
        """As `Condition`: the result of `labels_for`."""
        return {"label": labels_for(setting.seeds, request.labels, self.num_classes, setting.classes)}

    @classmethod
    def refusal(cls, field: str, told: tuple[Condition, ...]) -> str:
        """As `Condition`."""
        return "--label needs a class-conditional model; this one has no classes"


def labels_for(seeds: np.ndarray, labels: Sequence[str], num_classes: int, of: Classes | None = None) -> np.ndarray:
    """int32 [N] in [0, num_classes], num_classes being the null class: labels in turn, or drawn from the seeds.

    labels are names or numbers of classes, as `Classes.number` reads them, or `NULL`.
    """
    if not labels:
        # The class of a sample depends on its seed alone, as everything else about it.
        draw = [np.random.default_rng(int(seed)).integers(max(num_classes, 1)) for seed in seeds]
        return np.asarray(draw, np.int32)
    of = of or known(None, num_classes)
    numbers = []
    for label in labels:
        try:
            number = num_classes if label == NULL else of.number(label)
        except UserError as error:
            raise UserError(
                f"--label={label}: this run is of an earlier version, which did not keep the names of classes, and its "
                f"training data cannot be read for them ({error}); give a number from 0 to {num_classes - 1}"
            ) from None
        if number is None:
            raise UserError(f"--label is {of.choices(label)}, or {NULL}; got {label}")
        numbers.append(number)
    return np.resize(np.asarray(numbers, np.int32), len(seeds))
