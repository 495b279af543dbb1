"""A condition in one file: a number of the data's own, with an entry of a batch of its own."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jax import Array

from diffusion_jax.data.readers import Field
from diffusion_jax.models.conditions import BatchEntry, Condition, RequestSetting, SampleRequest


@dataclasses.dataclass(frozen=True)
class Brightness(Condition):
    """The field "brightness" of an example, in [0, 1], embedded as a level; -1 where it is left out."""

    dropout: float = 0.1

    name: ClassVar[str] = "brightness"
    levels = ("brightness",)

    def reader(self, tokenizer: object = None) -> Field:
        """Reads the number as it is."""
        return Field("brightness")

    def batch(self, shape: tuple[int, int, int]) -> dict[str, BatchEntry]:
        """One number in [0, 1]."""
        return {"brightness": BatchEntry((), jnp.float32, 0, 1)}

    def entries(self, batch: Mapping[str, Any]) -> dict[str, Array]:
        """The number itself."""
        return {"brightness": batch["brightness"]}

    def null(self, entries: Mapping[str, Array], weights: object = None) -> dict[str, Array]:
        """A number that no example has."""
        return {"brightness": jnp.full_like(entries["brightness"], -1.0)}

    def request(self, request: SampleRequest, setting: RequestSetting) -> dict[str, np.ndarray]:
        """--condition brightness=0.3, several in turn."""
        return {"brightness": request.numbers("brightness", len(setting.seeds), 0, 1)}
