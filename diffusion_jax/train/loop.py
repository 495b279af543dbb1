"""The training loop: steps, their input, and hooks at intervals of steps."""

import collections
import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import jax
import numpy as np

from diffusion_jax.train.faults import Stop
from diffusion_jax.train.hooks import Clock, Hook, Moment
from diffusion_jax.train.interruptible import Abandoned
from diffusion_jax.train.state import TrainState
from diffusion_jax.train.step import Batch, Metrics

# Dispatches in flight: enough to keep the device busy, few enough that an interrupt or a NaN is seen soon.
_IN_FLIGHT = 2

Watch = Callable[[int, Metrics, Any], None]
"""(steps done, the metrics of their last dispatch on the host, the data's position after it)."""


def fit(
    state: TrainState,
    step: Callable[[TrainState, Batch], tuple[TrainState, Metrics]],
    batches: Iterator[tuple[Batch, Any]],
    hooks: Sequence[Hook],
    *,
    steps: int,
    stop: Stop,
    watch: Sequence[Watch] = (),
    phase: Callable[[str], AbstractContextManager[None]] = lambda name: contextlib.nullcontext(),
) -> TrainState:
    """Trains until `steps` steps are done or stop asks for an end, and returns the last state.

    batches gives (batch, position of the data after it). watch sees the metrics of every dispatch, in order, as they
    arrive from the device; what it raises ends training. Hooks run in their order after every metric up to their step
    was watched. Where stop is asked for while hooks run, training ends there, and hooks with at_end run if they had
    not; a hook, or the first step while it compiles, may raise Abandoned then. phase(name) is entered around whatever
    may hang, with a name of `faults.PHASES`.
    """
    done, dispatches = int(state.step), 0
    clock = Clock()
    in_flight: collections.deque[tuple[int, Metrics, Any]] = collections.deque()

    def receive(keep: int) -> None:
        while len(in_flight) > keep:
            at, metrics, position = in_flight.popleft()
            values = jax.device_get(metrics)
            for see in watch:
                see(at, values, position)

    def run(chosen: Sequence[Hook], ending: bool) -> None:
        for hook in chosen:
            # A device may still draw what a hook left behind: stop was asked for, and no further step waits for it.
            with phase(hook.phase), contextlib.suppress(Abandoned):
                hook.run(Moment(done, state, position, ending, clock))

    last = done >= steps or stop.agreed(dispatches)
    while not last:
        began = time.perf_counter()
        with phase("input"):
            batch, position = next(batches)
        clock.input += time.perf_counter() - began
        with phase("step" if dispatches else "compile"):
            try:
                state, metrics = step(state, batch)
            except Abandoned:  # while it compiled: nothing has changed, and all is saved
                return state
            done += np.size(metrics["loss"])
            dispatches += 1
            in_flight.append((done, metrics, position))
            stopped = stop.agreed(dispatches)
            last = done >= steps or stopped
            due = [hook for hook in hooks if hook.due(done, complete=done >= steps, stopped=stopped)]
            receive(0 if due or dispatches == 1 else _IN_FLIGHT)
        if dispatches == 1:
            clock.since = done
        else:
            clock.training += time.perf_counter() - began
        run(due, ending=last)
        if due and not last and stop.agreed(dispatches):
            last = True
            run([hook for hook in hooks if hook.at_end and hook not in due], ending=True)
    return state
