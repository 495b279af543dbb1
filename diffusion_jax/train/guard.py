"""When a run has diverged and has to go back to a checkpoint: its losses are not finite, or far above their median."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from diffusion_jax.train.spikes import Spikes
from diffusion_jax.train.state import Position
from diffusion_jax.train.step import Binned, Metrics


class DivergedError(FloatingPointError):
    """Training diverged for several steps in a row. position is that of the data after the last of these steps."""

    def __init__(self, message: str, position: Position = None):
        super().__init__(message)
        self.position = position


class NonFiniteLossError(DivergedError):
    """The loss or its gradient was not finite for several steps in a row."""


class LossSpikeError(DivergedError):
    """The loss was far above its median for several steps in a row."""


class NonFinite(NamedTuple):
    """A step whose loss or gradient was not finite. It left the state's arrays unchanged."""

    step: int  # counted from 1
    position: Position  # of the data after the dispatch
    after: int  # batches from this step's batch to that position
    metrics: dict[str, float]


class Guard:
    """Watches the metrics of every step, and raises where training has diverged.

    NonFiniteLossError is raised after `limit` steps in a row whose loss or gradient is not finite, LossSpikeError where
    spikes finds a jump that stays. report is called with each step that is not finite.
    """

    def __init__(self, limit: int = 1, spikes: Spikes | None = None, report: Callable[[NonFinite], None] | None = None):
        self._limit, self._spikes, self._report = limit, spikes, report
        self._in_a_row = self._skipped = 0

    @property
    def diverging(self) -> bool:
        """Whether the newest losses may begin a divergence, so that the state should not be saved."""
        return self._in_a_row > 0 or (self._spikes is not None and self._spikes.in_a_row > 0)

    def drain(self) -> dict[str, float]:
        """{"nonfinite_steps": how many steps were not finite since the last call}, or {} for none."""
        skipped, self._skipped = self._skipped, 0
        return {"nonfinite_steps": skipped} if skipped else {}

    def watch(self, step: int, metrics: Metrics, position: Position) -> None:
        """Checks the metrics, scalars or [n], of the dispatch of n steps that ended with this step; raises as above."""
        each = {name: np.ravel(value) for name, value in metrics.items() if not isinstance(value, Binned)}
        finite = np.all(np.isfinite(list(each.values())), axis=0).tolist()  # [n]
        for i, good in enumerate(finite):
            after = len(finite) - 1 - i
            if not good:
                values = {name: float(value[i]) for name, value in each.items()}
                self._count(NonFinite(step - after, position, after, values))
                continue
            self._in_a_row = 0
            if self._spikes is not None and (spike := self._spikes.add(float(each["loss"][i]))):
                raise LossSpikeError(f"{spike} at step {step - after}", position)

    def _count(self, event: NonFinite) -> None:
        self._in_a_row += 1
        self._skipped += 1
        if self._report is not None:
            self._report(event)
        if self._in_a_row >= self._limit:
            others = f" and the {self._in_a_row - 1} before it" if self._in_a_row > 1 else ""
            raise NonFiniteLossError(f"loss or gradient is not finite at step {event.step}{others}", event.position)
