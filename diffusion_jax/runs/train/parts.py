"""The objects that the parts of one training run share."""

import dataclasses

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from diffusion_jax.report.trackers import Trackers
from diffusion_jax.runs.train.tasks import Task
from diffusion_jax.runs.train.trace import TracedSteps
from diffusion_jax.runs.workdir.lock import Training
from diffusion_jax.runs.workdir.paths import Workdir
from diffusion_jax.train.checkpoint import Checkpoints
from diffusion_jax.train.faults import Stop, Watchdog


@dataclasses.dataclass(frozen=True)
class Run:
    """One training run: its task, its workdir with checkpoints, and the signals that may end it."""

    config: ConfigDict
    workdir: Workdir
    task: Task
    mesh: Mesh
    checkpoints: Checkpoints
    profiles: Checkpoints | None  # snapshots of averages of the parameters; None where config keeps none
    rating: dict[int, float]  # {step: rating from evaluations, lower is better}; the best checkpoints are retained
    stop: Stop
    watchdog: Watchdog
    training: Training  # the lock of the workdir
    trackers: Trackers  # that this process feeds; none in processes other than the first
    traced: TracedSteps | None = None  # steps to record in a trace

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and prints."""
        return jax.process_index() == 0
