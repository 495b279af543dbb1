"""The size that a picture had, and where it was cropped: the micro-conditioning of Stable Diffusion XL."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar

import chex
import jax.numpy as jnp
import numpy as np

from diffusion_jax.data.readers import Reader, SizesAndCrops
from diffusion_jax.data.tokens import Tokenizer
from diffusion_jax.errors import UserError
from diffusion_jax.models.conditions.condition import BatchEntry, Condition, Entries
from diffusion_jax.models.conditions.request import RequestSetting, SampleRequest

_NUMBERS = ("original height", "original width", "top", "left", "height", "width")


@dataclasses.dataclass(frozen=True)
class SizeAndCrop(Condition):
    """Entry "size_and_crop" [B, 6] in pixels (arXiv:2307.01952, section 2.2), which the network embeds as sinusoids.

    They are the original height and width of the image, the top and left of the crop in the scaled image, and the
    height and width of the crop, which the model draws. A sample has its own size as all three and no crop, unless the
    request says otherwise. Guidance leaves them as they are.
    """

    dropout: float = 0.0

    name: ClassVar[str] = "size_and_crop"
    of_images: ClassVar[bool] = True
    names = ("size_and_crop",)
    needs_request = False
    shown_by_example = False
    of_image = True

    def __post_init__(self) -> None:
        self.check_dropout()

    @property
    def numbers(self) -> tuple[str, ...]:
        """As `Condition`."""
        return (self.name,)

    def network_entries(self, x_shape: tuple[int, ...]) -> Entries:
        """As `Condition`."""
        return {self.name: jnp.zeros((1, len(_NUMBERS)))}

    def reader(self, tokenizer: Tokenizer | None = None) -> Reader:
        """As `Condition`."""
        return SizesAndCrops(self.name)

    def batch(self, shape: tuple[int, ...]) -> dict[str, BatchEntry]:
        """As `Condition`."""
        return {self.name: BatchEntry((len(_NUMBERS),), jnp.float32, 0)}

    def entries(self, batch: Mapping[str, chex.Array]) -> Entries:
        """As `Condition`."""
        return {self.name: jnp.asarray(batch[self.name])}

    def request(self, request: SampleRequest, setting: RequestSetting) -> dict[str, np.ndarray]:
        """Six numbers, separated by commas, of values["size_and_crop"] in turn; the sample's own size without them."""
        size = setting.shape[:2]
        rows = [np.asarray((*size, 0, 0, *size), np.float32)]
        if request.values.get(self.name) is not None:
            rows = [_six_numbers(value) for value in _several(request.values[self.name])]
        return {self.name: np.stack([rows[i % len(rows)] for i in range(len(setting.seeds))])}


def _several(value: object) -> list[object]:
    """The rows of a request's value, which is one row or several."""
    if isinstance(value, str) or not isinstance(value, Sequence | np.ndarray):
        return [value]
    rows = list(value)
    return rows if rows and isinstance(rows[0], str | Sequence | np.ndarray) else [rows]


def _six_numbers(value: object) -> np.ndarray:
    """float32 [6] of "1024,1024,0,0,1024,1024" or of six numbers."""
    try:
        row = np.asarray(value.split(",") if isinstance(value, str) else value, np.float32)
    except (TypeError, ValueError):
        row = np.zeros(0, np.float32)
    if row.shape != (len(_NUMBERS),) or not (np.isfinite(row).all() and (row >= 0).all()):
        raise UserError(
            f"--condition size_and_crop is six numbers of pixels, {', '.join(_NUMBERS)}, as in "
            f"1024,1024,0,0,1024,1024; got {value!r}"
        )
    return row
