"""What a place is given where people look at the results of a run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np


class RunName(NamedTuple):
    """What a tracker calls the run in the workdir root."""

    root: Path
    project: str  # "": what the tracker's environment says

    @property
    def name(self) -> str:
        """The name of the workdir's folder."""
        return self.root.resolve().name


class Tracker(Protocol):
    """A place that is given a run's scalars, pictures, sounds, config and checkpoints."""

    @property
    def line(self) -> str:
        """Where the started run is looked at, for a person; "" where it is nowhere."""

    def start(self, step: int | None, records: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        """The run goes on from step, or begins for None. records are (step, scalars) of metrics.jsonl up to it."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Adds numbers, NaN and infinities among them."""

    def images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Adds pictures uint8 [H, W, C]."""

    def sounds(self, step: int, sounds: Mapping[str, bytes]) -> None:
        """Adds WAV files."""

    def config(self, values: Mapping[str, object], text: str) -> None:
        """Puts down the resolved config: {dotted key: value}, and the same as JSON text."""

    def checkpoint(self, step: int, provenance: Mapping[str, object]) -> None:
        """Puts down what a complete checkpoint is of; its arrays stay where they are."""

    def close(self) -> None:
        """Writes what is pending and closes what is open."""
