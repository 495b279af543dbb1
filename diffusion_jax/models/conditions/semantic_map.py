"""A map of classes, one for each pixel."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import chex
import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.data import masks
from diffusion_jax.data.readers import Maps, Reader
from diffusion_jax.data.tokens import Tokenizer
from diffusion_jax.errors import UserError
from diffusion_jax.models.conditions.condition import BatchEntry, Condition, Entries
from diffusion_jax.models.conditions.picture_request import needed, refused, sides
from diffusion_jax.models.conditions.request import RequestSetting, SampleRequest


@dataclasses.dataclass(frozen=True)
class SemanticMap(Condition):
    """A map of classes, one channel each: entry "map" [B, H, W, classes] (arXiv:2112.10752, section 4.3.2)."""

    classes: int
    dropout: float = 0.1

    name: ClassVar[str] = "map"
    takes: ClassVar[Mapping[str, str]] = {"map": "--map"}
    of_images: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self.check_dropout()
        if self.classes < 1:
            raise UserError(f"map takes the number of its classes; got {self.classes}")

    def channels(self, c: int) -> dict[str, int]:
        """As `Condition`."""
        return {"map": self.classes}

    def reader(self, tokenizer: Tokenizer | None = None) -> Reader:
        """As `Condition`."""
        return Maps(self.classes)

    def batch(self, shape: tuple[int, ...]) -> dict[str, BatchEntry]:
        """As `Condition`."""
        return {"map": BatchEntry(shape[:2], jnp.int32, 0, self.classes - 1)}

    def entries(self, batch: Mapping[str, chex.Array]) -> Entries:
        """As `Condition`."""
        return {"map": jax.nn.one_hot(jnp.asarray(batch["map"]), self.classes)}

    def request(self, request: SampleRequest, setting: RequestSetting) -> dict[str, np.ndarray]:
        """The map of the file request.map, for every sample."""
        path = needed(request.map, "--map")
        if not path.is_file():
            raise UserError(f"there is no image at {path}; check --map")
        values, size = masks.read_classes(path.read_bytes(), name=f"--map {path}"), setting.shape[:2]
        if values.shape != size:
            raise UserError(f"--map {path} is {sides(values.shape)} pixels and the model's {sides(size)}; make it fit")
        if values.max() >= self.classes:
            raise UserError(f"--map {path} has class {values.max()}, and the model knows 0 to {self.classes - 1}")
        one = np.asarray(self.entries({"map": values[None]})["map"])
        return {"map": np.repeat(one, len(setting.seeds), axis=0)}

    @classmethod
    def refusal(cls, field: str, told: tuple[Condition, ...]) -> str:
        """As `Condition`."""
        return refused("--map", told)
