"""Plain arrays [*S, C]: fields, series, volumes, of one shape and of any unit."""

import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from diffusion_jax.data.example import Example, Source, array_of
from diffusion_jax.errors import UserError
from diffusion_jax.modalities.modality import Modality
from diffusion_jax.report import plots

_MEASURED_AT_ONCE = 256  # examples


@dataclasses.dataclass(frozen=True)
class Array(Modality):
    """Arrays of float32 in any unit; the model's units are (array - mean) / deviation.

    mean and deviation have a number for each channel or one for all; () is measured over the training data at the start
    of a run.
    """

    mean: tuple[float, ...] = ()
    deviation: tuple[float, ...] = ()

    suffix: ClassVar[str] = ".npy"
    noun: ClassVar[str] = "arrays"

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.deviation):
            raise UserError(
                f"modality array takes as many numbers of mean as of deviation; got {self.mean} and {self.deviation}"
            )
        if not all(value > 0 for value in self.deviation):
            raise UserError(f"modality array: each deviation is above 0; got {self.deviation}")

    @property
    def complete(self) -> bool:
        """Whether mean and deviation are known."""
        return bool(self.mean)

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raises UserError unless shape has one to three sides and channels, and the statistics are of these."""
        if not 2 <= len(shape) <= 4:
            raise UserError(f"data.shape={shape} of arrays has 1 to 3 sides and the channels, as in (64, 64, 1)")
        if len(self.mean) not in (0, 1, shape[-1]):
            raise UserError(
                f"data.shape={shape} has {shape[-1]} channels, and data.modality has {len(self.mean)} means; give one "
                "for each channel, or one for all"
            )

    def decode(self, example: Example, shape: tuple[int, ...]) -> np.ndarray:
        """The array of an example, float32 [*S, C]; raises UserError that names it where a value is not finite."""
        array = np.asarray(array_of(example), np.float32)
        if not np.isfinite(array).all():
            raise UserError(f"{example['name']} has values that are NaN or infinite; leave it out, or mend it")
        return array

    def read(self, path: Path, shape: tuple[int, ...]) -> np.ndarray:
        """The array of a .npy file, float32 [*S, C]; a missing axis of one channel is added."""
        try:
            array = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"{path} is no array that can be read ({error}); give a .npy file") from error
        array = array[..., None] if array.shape == shape[:-1] and shape[-1] == 1 else array
        return self.decode({"array": array, "name": str(path)}, shape)

    def to_model(self, arrays: np.ndarray) -> np.ndarray:
        """(arrays - mean) / deviation, float32."""
        mean, deviation = self._statistics()
        return (arrays - mean) / deviation

    def from_model(self, x: np.ndarray) -> np.ndarray:
        """x deviation + mean, float32; raises UserError for NaN and infinities."""
        mean, deviation = self._statistics()
        return super().from_model(x) * deviation + mean

    def _statistics(self) -> tuple[np.ndarray, np.ndarray]:
        if not self.mean:
            raise ValueError("the mean and deviation of modality array are measured before arrays are read by it")
        return np.asarray(self.mean, np.float32), np.asarray(self.deviation, np.float32)

    def measured(self, source: Source, shape: tuple[int, ...]) -> str:
        """The spec with the mean and deviation of each channel over all of the data, unless it has them.

        In float64, by Chan's update of mean and sum of squares, so that a large mean costs no digits. Raises UserError
        for a constant channel, and for an example that cannot be read.
        """
        if self.mean:
            return f"array(mean={self.mean!r}, deviation={self.deviation!r})"
        count, mean, squares = 0, np.zeros(shape[-1]), np.zeros(shape[-1])
        for start in range(0, len(source), _MEASURED_AT_ONCE):
            chosen = range(start, min(start + _MEASURED_AT_ONCE, len(source)))
            values = np.concatenate(
                [self.fit(self.decode(source[i], shape), shape).reshape(-1, shape[-1]) for i in chosen]
            ).astype(np.float64)
            batch_mean, n = values.mean(axis=0), len(values)
            shift = batch_mean - mean
            mean = mean + shift * n / (count + n)
            squares = squares + ((values - batch_mean) ** 2).sum(axis=0) + shift**2 * count * n / (count + n)
            count += n
        deviation = np.sqrt(squares / count)
        if flat := [channel for channel, value in enumerate(deviation) if not value > 0]:
            raise UserError(
                f"channel {flat[0]} of the data is {mean[flat[0]]:g} everywhere, so there is nothing to learn of it; "
                "leave it out"
            )
        numbers = [tuple(float(np.float32(value)) for value in each) for each in (mean, deviation)]
        return f"array(mean={numbers[0]!r}, deviation={numbers[1]!r})"

    def shape_of(self, source: Source) -> tuple[int, ...]:
        """The shape of the first array; all arrays of a file have the same shape."""
        return array_of(source[0]).shape

    def description(self, source: Source, examples: Sequence[Example], shape: tuple[int, ...]) -> str:
        """A sentence with number, shape and channels, the range of the examples, and mean and deviation."""
        values = np.stack([np.asarray(array_of(example), np.float64) for example in examples])
        sides = " x ".join(str(side) for side in shape[:-1])
        channels = f"{shape[-1]} channel{'s' if shape[-1] > 1 else ''}"
        looked = "" if len(examples) == len(source) else f" (of {len(examples):,} that were looked at)"
        spread = f"from {values.min():.4g} to {values.max():.4g}{looked}"
        pairs = zip(self.mean, self.deviation, strict=True)
        known = ", ".join(f"{mean:.4g} +- {deviation:.4g}" for mean, deviation in pairs)
        return f"{len(source):,} arrays of {sides}, {channels}, {spread}: less the mean, by the deviation ({known})"

    def tiles(self, arrays: np.ndarray) -> np.ndarray:
        """Lines for arrays of one side, a colour map for two, three middle planes for three; RGB."""
        return plots.tiles(arrays)

    def encode(self, array: np.ndarray) -> bytes:
        """A .npy file of float32."""
        file = io.BytesIO()
        np.save(file, array)
        return file.getvalue()
