"""Hooks: functions that the training loop calls at intervals of steps, such as logging, saving and previews."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

from diffusion_jax.train.state import Position, TrainState


@dataclasses.dataclass
class Clock:
    """Seconds of a training run by what they were spent on."""

    steps: int = 0  # those whose seconds are in training: all but those of dispatches that compiled
    training: float = 0.0  # seconds in steps and in their input; compilation and hooks are left out
    input: float = 0.0  # seconds in which a step waited for its batch, the first dispatch's too


class Moment(NamedTuple):
    """What a hook sees: the run after a step whose metrics have all arrived."""

    step: int  # steps done
    state: TrainState  # the next step overwrites its arrays, so a hook copies what it keeps
    position: Position  # of the data, after the batch of this step
    ending: bool  # whether training ends here, complete or by a signal
    clock: Clock


@dataclasses.dataclass(frozen=True)
class Hook:
    """A function that the loop calls after every `every` steps, and after the last step of a complete run.

    every=0 calls it at no step. A run that a signal ends does not call it any more. With at_end=True it is called at
    the end of every run, complete or ended by a signal, also with every=0. `at` has further steps to call it after.
    """

    every: int
    run: Callable[[Moment], None]
    at_end: bool = False
    phase: str = "sample"  # of the watchdog, `train.faults.PHASES`
    at: tuple[int, ...] = ()

    def due(self, step: int, *, complete: bool, stopped: bool) -> bool:
        """Whether to call it after this step. complete: the step is the run's last; stopped: a signal ends the run."""
        if self.at_end and (complete or stopped):
            return True
        regular = self.every > 0 and (complete or step % self.every == 0)
        return not stopped and (regular or step in self.at)
