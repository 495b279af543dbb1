"""The interface of a modality: how examples of one kind of data are read, pictured and written to files.

Between reading and writing there are only arrays [*S, C] of any rank.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from diffusion_jax.data.example import Example, Source
from diffusion_jax.errors import UserError
from diffusion_jax.report.pictures import check_finite


class Modality:
    """One kind of data. Subclasses are frozen dataclasses, and picklable, since worker processes use them.

    "Own units" are those of the data and of the files that are written: pixels 0 to 255, volts, samples of a waveform.
    "The model's units" are float32 values of the order of 1, which the network is trained on.
    """

    dtype: ClassVar[np.dtype] = np.dtype(np.float32)
    """The dtype of arrays in own units."""
    mirrors: ClassVar[bool] = False
    """Whether `data.flip` can mirror an example."""
    suffix: ClassVar[str] = ".npy"
    """The suffix of the file of one sample."""
    bounds: ClassVar[tuple[float, float]] = (-math.inf, math.inf)
    """The least and the largest value in the model's units."""
    noun: ClassVar[str] = "arrays"
    """The word for examples in messages."""

    @property
    def places_a_unit(self) -> float:
        """The places of the first side in a unit of `sample --paint`: 1, or the samples in a second of audio."""
        return 1.0

    @property
    def scales_maps(self) -> bool:
        """Whether `data.masks` can scale a semantic map as this scales the example beside it."""
        return False

    @property
    def in_buckets(self) -> bool:
        """Whether training has batches of several sizes, each example in the one nearest to its own."""
        return False

    @property
    def complete(self) -> bool:
        """Whether its constants of the data are known, so that `measured` does not have to read the data."""
        return True

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raises UserError unless examples of this kind can have the shape [*S, C]."""

    def decode(self, example: Example, shape: tuple[int, ...]) -> np.ndarray:
        """The array of an example in own units, [*S0, C], with the channels of shape and the size of the example.

        Raises UserError that names the example where it cannot be read.
        """
        raise NotImplementedError

    def read(self, path: Path, shape: tuple[int, ...]) -> np.ndarray:
        """The array in own units, [*S0, C], of a file that a user gives; raises UserError that names the file."""
        raise NotImplementedError

    def fit(self, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """An array [*S0, C] brought to shape [*S, C]; raises UserError where this kind of data is not resized."""
        if array.shape != shape:
            raise UserError(f"an example has the shape {array.shape}, and data.shape is {shape}")
        return array

    def mirror(self, arrays: np.ndarray, where: np.ndarray) -> np.ndarray:
        """Arrays [B, *S, C], mirrored where `where` [B] is true."""
        raise NotImplementedError

    def to_model(self, arrays: np.ndarray) -> np.ndarray:
        """Arrays [B, *S, C] from own units to the model's, float32."""
        return arrays.astype(np.float32)

    def from_model(self, x: np.ndarray) -> np.ndarray:
        """Values x [N, *S, C] from the model's units to own units; raises UserError for NaN and infinities."""
        check_finite(x)
        return x.astype(self.dtype)

    def measured(self, source: Source, shape: tuple[int, ...]) -> str:
        """The spec of this modality with its numbers of the data, such as a mean, measured over all of them.

        It goes into the run's config, so that a workdir alone is enough to sample in the data's own units.
        """
        raise NotImplementedError

    def shape_of(self, source: Source) -> tuple[int, ...]:
        """The shape [*S, C] that all examples have, for an open `data.shape`.

        Raises UserError that lists the shapes where they differ.
        """
        raise NotImplementedError

    def description(self, source: Source, examples: Sequence[Example], shape: tuple[int, ...]) -> str:
        """A sentence on the data, from examples of them, and on how they get the shape [*S, C]."""
        raise NotImplementedError

    def tiles(self, arrays: np.ndarray) -> np.ndarray:
        """A picture of each array [N, *S, C] in own units, uint8 [N, H, W, 1, 3 or 4]."""
        raise NotImplementedError

    def encode(self, array: np.ndarray) -> bytes:
        """The file, named with `suffix`, of one array [*S, C] in own units."""
        raise NotImplementedError

    def sounds(self, arrays: np.ndarray) -> list[bytes]:
        """WAV files of the first of arrays [N, *S, C] in own units, for TensorBoard; [] of data that is not heard."""
        return []

    def pages(self, arrays: np.ndarray, names: Sequence[str]) -> Mapping[str, bytes]:
        """Further files {name: content} for a folder of samples [N, *S, C] in own units, whose titles are names."""
        return {}
