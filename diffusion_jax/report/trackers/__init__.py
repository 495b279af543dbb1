"""Where people look at a run: TensorBoard, Weights & Biases, MLflow, each of which is given the same."""

import contextlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from diffusion_jax.errors import UserError, did_you_mean
from diffusion_jax.report.trackers.mlflow import Mlflow
from diffusion_jax.report.trackers.remote import Remote
from diffusion_jax.report.trackers.tensorboard import TensorBoard
from diffusion_jax.report.trackers.tracker import RunName, Tracker
from diffusion_jax.report.trackers.weights_and_biases import WeightsAndBiases


class Kind(NamedTuple):
    """A kind of tracker."""

    package: str  # that it imports
    open: Callable[[RunName], Tracker]


TRACKERS: dict[str, Kind] = {
    "tensorboard": Kind("tensorboardX", TensorBoard),  # Event files in the workdir's folder tensorboard/.
    "wandb": Kind("wandb", lambda run: Remote("wandb", run, WeightsAndBiases)),  # Weights & Biases.
    "mlflow": Kind("mlflow", lambda run: Remote("mlflow", run, Mlflow)),  # A server, a database or a folder of MLflow.
}


def check(names: Sequence[str]) -> None:
    """Raises UserError for a name that is not in `TRACKERS`, and for one whose package is not installed."""
    for name in names:
        if name not in TRACKERS:
            near = did_you_mean(name, TRACKERS)
            raise UserError(f"log.to has {name!r}; choose from {', '.join(TRACKERS)}{near}")
        package = TRACKERS[name].package
        if importlib.util.find_spec(package) is None:
            raise UserError(
                f"log.to has {name!r}, whose package is not installed; pip install 'diffusion-jax[{name}]', or leave "
                "it out"
            )


class Trackers:
    """The trackers of one run. Each call goes to all of them."""

    def __init__(self, names: Sequence[str], root: Path, project: str = ""):
        """The trackers of these names for the run in the workdir root. Raises as `check` does."""
        check(names)
        self._all = [TRACKERS[name].open(RunName(root, project)) for name in dict.fromkeys(names)]

    def start(self, step: int | None, records: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        """Says that the run begins, or goes on from step with what these records have."""
        for tracker in self._all:
            tracker.start(step, records)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Adds numbers."""
        for tracker in self._all:
            tracker.scalars(step, values)

    def images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Adds pictures uint8 [H, W, C]."""
        for tracker in self._all:
            tracker.images(step, images)

    def sounds(self, step: int, sounds: Mapping[str, bytes]) -> None:
        """Adds WAV files."""
        for tracker in self._all:
            tracker.sounds(step, sounds)

    def config(self, values: Mapping[str, object], text: str) -> None:
        """Puts down the resolved config: {dotted key: value}, and the same as JSON text."""
        for tracker in self._all:
            tracker.config(values, text)

    def checkpoint(self, step: int, provenance: Mapping[str, object]) -> None:
        """Puts down what a complete checkpoint is of."""
        for tracker in self._all:
            tracker.checkpoint(step, provenance)

    @property
    def lines(self) -> list[str]:
        """Where each of them is looked at, once started."""
        return [line for tracker in self._all if (line := tracker.line)]

    def close(self) -> None:
        """Closes all of them, even where one raises."""
        with contextlib.ExitStack() as stack:
            for tracker in self._all:
                stack.callback(tracker.close)


NO_TRACKERS = Trackers((), Path())
"""For a run whose metrics are in metrics.jsonl alone."""
