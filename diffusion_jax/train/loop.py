"""The training loop: steps, and what happens at intervals of steps."""

import collections
import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import jax
import numpy as np

from diffusion_jax.train.faults import Stop
from diffusion_jax.train.interruptible import Abandoned
from diffusion_jax.train.spikes import Spikes
from diffusion_jax.train.state import TrainState
from diffusion_jax.train.step import Batch, Binned, Metrics

# Dispatches in flight: enough to keep the device busy, few enough that an interrupt or a NaN is seen soon.
_IN_FLIGHT = 2


class DivergedError(FloatingPointError):
    """Training went astray step after step; position is that of the data after the last of them."""

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


def fit(
    state: TrainState,
    step: Callable[[TrainState, Batch], tuple[TrainState, Metrics]],
    batches: Iterator[tuple[Batch, Any]],
    *,
    steps: int,
    batch_size: int,
    log_every: int,
    save_every: int,
    sample_every: int,
    on_step: Callable[[int, Mapping[str, float]], None],
    on_log: Callable[[int, Mapping[str, float]], None],
    on_nonfinite: Callable[[NonFinite], None],
    save: Callable[[TrainState, Any], None],
    sample: Callable[[TrainState], None],
    stop: Stop,
    nonfinite_limit: int = 1,
    spikes: Spikes | None = None,
    events: Sequence[tuple[int, Callable[[TrainState], None]]] = (),
    phase: Callable[[str], AbstractContextManager[None]] = lambda name: contextlib.nullcontext(),
) -> TrainState:
    """Trains until `steps` steps are done, or stop says so; either way the last state is saved.

    Intervals are in steps, 0 for never. on_step gets each dispatch's metrics as they arrive; on_log gets, per log
    interval, the mean loss and gradient norm, images_per_second, for how many seconds steps waited for their input,
    and where there were any, how many steps were not finite (left out of the means) and for how many seconds saves held
    up the loop. After nonfinite_limit steps in a row that were not finite raises NonFiniteLossError, and LossSpikeError
    where spikes says so; between the first of them and then, nothing is saved but on a stop.
    events are (an interval, what happens then), at the last step too; where stop is asked for meanwhile, training ends
    there. phase(name) is entered around what may hang, a name of `faults.PHASES`.
    """
    done = saved = int(state.step)
    dispatches, in_a_row, skipped, stalled, waited = 0, 0, 0, 0.0, 0.0
    window: list[Metrics] = []
    in_flight: collections.deque[tuple[int, Metrics, Any]] = collections.deque()

    def receive(keep: int) -> None:
        nonlocal in_a_row, skipped
        while len(in_flight) > keep:
            at, metrics, position = in_flight.popleft()
            values = jax.device_get(metrics)
            window.append(values)
            on_step(at, summarize([values]))
            each = {name: np.ravel(value) for name, value in values.items() if not isinstance(value, Binned)}
            finite = np.all(np.isfinite(list(each.values())), axis=0).tolist()  # [n]
            for i, good in enumerate(finite):
                in_a_row = 0 if good else in_a_row + 1
                after = len(finite) - 1 - i
                if good:
                    if spikes is not None and (told := spikes.add(float(each["loss"][i]))):
                        raise LossSpikeError(
                            f"{told} at step {at - after}; the last checkpoint is of step {saved}", position
                        )
                    continue
                skipped += 1
                on_nonfinite(NonFinite(at - after, position, after, {name: float(v[i]) for name, v in each.items()}))
                if in_a_row >= nonfinite_limit:
                    others = f" and the {in_a_row - 1} before it" if in_a_row > 1 else ""
                    raise NonFiniteLossError(
                        f"loss or gradient is not finite at step {at - after}{others}; "
                        f"the last checkpoint is of step {saved}",
                        position,
                    )

    timed: int | None = None  # the clock starts after the first dispatch, which compiles
    started = 0.0
    last = done >= steps or stop.agreed(dispatches)
    while not last:
        before = time.perf_counter()
        with phase("input"):
            batch, position = next(batches)
        waited += time.perf_counter() - before
        with phase("compile" if timed is None else "step"):
            try:
                state, metrics = step(state, batch)
            except Abandoned:  # while it compiled: nothing has changed, and all is saved
                return state
            done += np.size(metrics["loss"])
            dispatches += 1
            in_flight.append((done, metrics, position))
            stopped = stop.agreed(dispatches)
            last = done >= steps or stopped
            log, save_now, sample_now = (
                last or _due(done, log_every),
                _due(done, save_every),
                _due(done, sample_every) or (sample_every > 0 and done >= steps),
            )
            due = [] if stopped else [do for every, do in events if _due(done, every) or (every > 0 and done >= steps)]
            receive(0 if timed is None or log or save_now or sample_now or due else _IN_FLIGHT)
        now = time.perf_counter()
        if log:
            means = summarize(window)
            means["input_wait_seconds"], waited = waited, 0.0
            if timed is not None:
                means["images_per_second"] = (done - timed) * batch_size / (now - started)
            if skipped:
                means["nonfinite_steps"], skipped = skipped, 0
            if stalled:
                means["save_stall_seconds"], stalled = stalled, 0.0
            on_log(done, means)
            window.clear()
        if log or timed is None:
            timed, started = done, now
        if last or (save_now and not in_a_row and not (spikes and spikes.in_a_row)):
            before = time.perf_counter()
            with phase("save"):
                save(state, position)
            saved, stalled = done, stalled + time.perf_counter() - before
        abandoned = False  # a device may still draw what was left behind: no further step waits for it
        if sample_now and not stopped:
            with phase("sample"):
                try:
                    sample(state)
                except Abandoned:
                    abandoned = True
        for do in due:
            with phase("sample"):
                do(state)
        if (due or abandoned) and not last and stop.agreed(dispatches):
            last = True
            if saved < done:
                with phase("save"):
                    save(state, position)
                saved = done
        started += time.perf_counter() - now  # what is not training does not count
    return state


def summarize(window: Sequence[Metrics]) -> dict[str, float]:
    """The mean of each metric over the dispatches of window, of its finite values; NaN where it has none.

    A `Binned` "name" gives "name/0.0", "name/0.1", ...: where the bin begins. Bins that nothing fell in are left out.
    """
    means: dict[str, float] = {}
    for name in window[0]:
        values = [metrics[name] for metrics in window]
        if not isinstance(values[0], Binned):
            finite = np.ravel(values)[np.isfinite(np.ravel(values))]
            means[name] = float(np.mean(finite)) if finite.size else math.nan
            continue
        total, weight = (
            np.sum([a.reshape(-1, a.shape[-1]).sum(axis=0) for a in part], axis=0) for part in zip(*values, strict=True)
        )
        for i in np.flatnonzero(weight):
            means[f"{name}/{i / len(weight):.1f}"] = float(total[i] / weight[i])
    return means


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
