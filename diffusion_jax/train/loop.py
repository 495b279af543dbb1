"""The training loop: steps, their input, and hooks at intervals of steps."""

import collections
import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager

import jax
import numpy as np

from diffusion_jax.train.faults import Stop
from diffusion_jax.train.hooks import Clock, Hook, Moment
from diffusion_jax.train.interruptible import Abandoned, Shapes, read_interruptibly, shapes_of
from diffusion_jax.train.state import Position, TrainState
from diffusion_jax.train.step import Batch, Metrics

_IN_FLIGHT = 2
"""Dispatches that the device may be behind: enough to keep it busy, few enough to see a NaN or an interrupt soon."""

Watch = Callable[[int, Metrics, Position], None]
"""(steps done, metrics of their last dispatch on the host, the data's position after it)."""

Phase = Callable[[str], AbstractContextManager[None]]
"""A name of `faults.PHASES` -> a context that is entered while that phase lasts."""


def fit(
    state: TrainState,
    step: Callable[[TrainState, Batch], tuple[TrainState, Metrics]],
    batches: Iterator[tuple[Batch, Position]],
    hooks: Sequence[Hook],
    *,
    steps: int,
    stop: Stop,
    watch: Sequence[Watch] = (),
    phase: Phase = lambda name: contextlib.nullcontext(),
) -> TrainState:
    """Trains until `steps` steps are done or stop asks to end, and returns the last state.

    batches yields (batch, position of the data after it). The step compiles at the first batch of each shape; that time
    is not counted as training. Each function of watch gets the metrics of every dispatch, in order, as they arrive from
    the device; an exception that it raises ends training. Hooks run in their order, once the metrics of all steps
    before them have been watched. If stop asks to end while hooks run, training ends there, and the hooks with at_end
    that have not run at this step run too; so they do where batches stalls after stop asked to end. A hook, or a step
    that compiles, may then raise Abandoned. phase(name) is entered around everything that may hang.
    """
    done, dispatches = int(state.step), 0
    clock = Clock()
    in_flight = _InFlight(watch)
    last = done >= steps or stop.agreed(dispatches)
    due: list[Hook] = []
    position: Position = None
    compiled: set[Shapes] = set()

    def saved_early() -> TrainState:
        """The state, saved by the hooks, where the next step cannot be waited for."""
        in_flight.receive(0)
        at_end = [hook for hook in hooks if hook.at_end and hook not in due] if dispatches else []
        _run(at_end, Moment(done, state, position, True, clock), phase)
        return state

    batches = read_interruptibly(batches)
    while not last:
        began = time.perf_counter()
        with phase("input"):
            try:
                batch, following = next(batches)
            except Abandoned:  # the data kept the run waiting after it was asked to end
                return saved_early()
        clock.input += time.perf_counter() - began
        compiles = (shapes := shapes_of(batch)) not in compiled
        if compiles and dispatches:  # so that the clock has the steps before it
            with phase("step"):
                in_flight.receive(0)
            clock.training += time.perf_counter() - began
        try:
            with phase("compile" if compiles else "step"):
                state, metrics = step(state, batch)
                compiled.add(shapes)
                before, position = done, following
                done += np.size(metrics["loss"])
                dispatches += 1
                in_flight.add(done, metrics, position)
                stopped = stop.agreed(dispatches)
                last = done >= steps or stopped
                due = [hook for hook in hooks if hook.due(done, complete=done >= steps, stopped=stopped)]
                in_flight.receive(0 if due or compiles else _IN_FLIGHT)
        except Abandoned:  # the step was compiling, so the state is as it was
            return saved_early()
        if not compiles:
            clock.steps += done - before
            clock.training += time.perf_counter() - began
        _run(due, Moment(done, state, position, last, clock), phase)
        if due and not last and stop.agreed(dispatches):
            last = True
            rest = [hook for hook in hooks if hook.at_end and hook not in due]
            _run(rest, Moment(done, state, position, last, clock), phase)
    return state


class _InFlight:
    """The metrics of dispatches that the device may still be computing, oldest first."""

    def __init__(self, watch: Sequence[Watch]):
        self._watch = watch
        self._queue: collections.deque[tuple[int, Metrics, Position]] = collections.deque()

    def add(self, done: int, metrics: Metrics, position: Position) -> None:
        """Takes the metrics of the dispatch after which `done` steps are done."""
        self._queue.append((done, metrics, position))

    def receive(self, most: int) -> None:
        """Waits until at most `most` dispatches are left, and has the metrics of the others watched."""
        while len(self._queue) > most:
            done, metrics, position = self._queue.popleft()
            values = jax.device_get(metrics)
            for see in self._watch:
                see(done, values, position)


def _run(hooks: Sequence[Hook], moment: Moment, phase: Phase) -> None:
    for hook in hooks:
        # A hook that raises Abandoned has left work to a thread. The run is ending, so no step needs the result.
        with phase(hook.phase), contextlib.suppress(Abandoned):
            hook.run(moment)
