"""The conditions that a user requests for samples, and the setting in which they become arrays."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_jax.data.classes import Classes
from diffusion_jax.data.tokens import Tokenizer
from diffusion_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class SampleRequest:
    """The conditions that a user requests. Samples take several values of one condition in turn."""

    labels: Sequence[str] = ()
    prompts: Sequence[str] = ()
    negative_prompt: str | None = None
    low_res: Path | None = None  # an image, or the folder of `sample`d images
    augment: float = 0.0  # level of noise added to what is enlarged
    map: Path | None = None
    values: Mapping[str, object] = dataclasses.field(default_factory=dict)
    """{name of another condition: its value, or a sequence of values}; texts where they come from the command line."""

    def says(self, field: str) -> bool:
        """Whether the request has a value in a field; the empty caption is a value."""
        value = getattr(self, field)
        return value is not None and (isinstance(value, str) or bool(value))

    @property
    def anything(self) -> bool:
        """Whether the request has any value, other than the empty caption alone."""
        return any(getattr(self, field.name) for field in dataclasses.fields(self))

    def given(self, name: str) -> list[object]:
        """The values of the condition `name`; raises UserError where there are none."""
        values: Any = self.values.get(name, ())
        values = [values] if np.ndim(values) == 0 else list(values)
        if not values:
            raise UserError(f"this model is told {name}; give --condition {name}=VALUE")
        return values

    def numbers(self, name: str, count: int, low: float, high: float) -> np.ndarray:
        """The values of the condition `name` as float32 [count], taken in turn; UserError unless in [low, high]."""
        found = []
        for value in self.given(name):
            try:
                found.append(float(value))  # type: ignore[arg-type]  # a TypeError is told below
            except (TypeError, ValueError):
                raise UserError(f"--condition {name} is a number; got {value!r}") from None
            if not low <= found[-1] <= high:
                raise UserError(f"--condition {name} is in [{low:g}, {high:g}]; got {value}")
        return np.resize(np.asarray(found, np.float32), count)


@dataclasses.dataclass(frozen=True)
class RequestSetting:
    """The seeds of samples, and what a request depends on of the model."""

    seeds: np.ndarray  # int32 [N]
    shape: tuple[int, ...]  # *S C of one example: H W C of an image
    guidance: float = 1.0
    tokenizer: Tokenizer | None = None
    classes: Classes | None = None  # names and numbers of classes; None: unknown
    painted: bool = False  # whether a part of an image that the user gives is painted
