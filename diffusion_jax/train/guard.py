"""Losses that are not finite, or that jump and stay: when a run has to go back to a checkpoint."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from diffusion_jax.train.spikes import Spikes
from diffusion_jax.train.step import Binned, Metrics


class DivergedError(FloatingPointError):
    """Training diverged over several steps in a row; position is that of the data after the last of them."""

    def __init__(self, message: str, position: Any = None):
        super().__init__(message)
        self.position = position


class NonFiniteLossError(DivergedError):
    """The loss or its gradient is not finite, step after step."""


class LossSpikeError(DivergedError):
    """The loss is far above what it was, step after step."""


class NonFinite(NamedTuple):
    """A step whose loss or gradient is not finite; it changed nothing of the state."""

    step: int  # counted from 1
    position: Any  # of the data, `after` batches after the one of this step
    after: int
    metrics: dict[str, float]


class Guard:
    """Watches the metrics of every step.

    Raises NonFiniteLossError after `limit` steps in a row whose loss or gradient is not finite, and LossSpikeError
    where spikes finds one. report gets every step that is not finite.
    """

    def __init__(self, limit: int = 1, spikes: Spikes | None = None, report: Callable[[NonFinite], None] | None = None):
        self._limit, self._spikes, self._report = limit, spikes, report
        self._in_a_row = self._skipped = 0

    @property
    def suspect(self) -> bool:
        """Whether the newest losses may be the first of a row that ends the run: a state that is not to be saved."""
        return self._in_a_row > 0 or (self._spikes is not None and self._spikes.in_a_row > 0)

    def drain(self) -> dict[str, float]:
        """{"nonfinite_steps": how many there were since the last call}, or {} for none."""
        skipped, self._skipped = self._skipped, 0
        return {"nonfinite_steps": skipped} if skipped else {}

    def watch(self, step: int, metrics: Metrics, position: Any) -> None:
        """Checks the metrics of the dispatch that ended with this step, scalars or [n] for n steps."""
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
