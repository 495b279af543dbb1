"""A trace of some steps of training, for XProf and Perfetto: what the devices and the host did in them, and when."""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import jax

from diffusion_jax.errors import UserError
from diffusion_jax.train.hooks import Hook, Moment
from diffusion_jax.train.state import TrainState
from diffusion_jax.train.step import Batch, Metrics

StepOfBatch = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
"""(state, batch) -> (next state, metrics): one dispatch."""


@dataclasses.dataclass(frozen=True)
class TracedSteps:
    """The steps from first to last, both of them traced; a run's first step is 1."""

    first: int
    last: int

    def check(self, steps: int, per_dispatch: int) -> None:
        """Raises UserError where a run of `steps` steps, per_dispatch of them at once, cannot be traced so."""
        if self.last > steps:
            raise UserError(f"--profile={self} ends after the last step, train.steps={steps}")
        if (self.first - 1) % per_dispatch or self.last % per_dispatch:
            raise UserError(
                f"--profile={self} does not begin and end where a dispatch of "
                f"train.steps_per_dispatch={per_dispatch} steps does, as {per_dispatch + 1}:{2 * per_dispatch} would"
            )
        if self.first <= per_dispatch:
            raise UserError(
                f"--profile={self} has the first step, which compiles; begin at {per_dispatch + 1} or later"
            )

    def __str__(self) -> str:
        return f"{self.first}:{self.last}"


def traced_steps(text: str) -> TracedSteps:
    """The steps that a text such as "100:105" names. Raises UserError for any other text."""
    found = re.fullmatch(r"(\d+):(\d+)", text)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise UserError(f"--profile={text} is FIRST:LAST, the first and last step to trace, such as 100:105")
    return TracedSteps(int(found[1]), int(found[2]))


class Trace:
    """Records the steps of one process in folder, as its loop's hooks."""

    def __init__(self, folder: Path, steps: TracedSteps):
        self._folder, self._steps = folder, steps
        self._next: int | None = None  # the step of the next dispatch, while the trace is on

    @property
    def begins(self) -> Hook:
        """The hook that begins the trace, to run after all others: what they do is in no trace then."""
        return Hook(0, self._begin, phase="save", at=(self._steps.first - 1,))

    @property
    def ends(self) -> Hook:
        """The hook that ends the trace, to run before all others; also where the run ends before its last step."""
        return Hook(0, self._end, phase="save", at=(self._steps.last,), at_end=True)

    def traced(self, step: StepOfBatch) -> StepOfBatch:
        """The step, which names itself by its number in a trace."""

        def call(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
            if self._next is None:
                return step(state, batch)
            with jax.profiler.StepTraceAnnotation("train", step_num=self._next):
                state, metrics = step(state, batch)
            loss = metrics["loss"]
            assert isinstance(loss, jax.Array)  # one number a step of the dispatch
            self._next += loss.size
            return state, metrics

        return call

    def close(self) -> None:
        """Ends a trace that is on, as after an error."""
        if self._next is not None:
            self._next = None
            jax.profiler.stop_trace()
            print(f"the trace of steps {self._steps.first} to {self._steps.last} is in {self._folder}", flush=True)

    def _begin(self, moment: Moment) -> None:
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # every call of Python would be an event
        jax.profiler.start_trace(self._folder, profiler_options=options)
        self._next = moment.step + 1

    def _end(self, moment: Moment) -> None:
        self.close()
