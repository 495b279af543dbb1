"""The training loop: steps, and what happens at intervals of steps."""

import collections
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from diffusion_jax.train.state import TrainState
from diffusion_jax.train.step import Batch, Binned, Metrics

# Dispatches in flight: enough to keep the device busy, few enough that an interrupt or a NaN is seen soon.
_IN_FLIGHT = 2


class NonFiniteLossError(FloatingPointError):
    """The loss or its gradient stopped being finite; nothing was saved since."""


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
    save: Callable[[TrainState, Any], None],
    sample: Callable[[TrainState], None],
) -> TrainState:
    """Trains until `steps` steps are done, or SIGINT or SIGTERM asks to stop; either way the last state is saved.

    Intervals are in steps, 0 for never. on_step gets each dispatch's metrics as they arrive; on_log gets, per log
    interval, the mean loss and gradient norm and images_per_second. Raises NonFiniteLossError before anything
    non-finite is saved.
    """
    done = saved = int(state.step)
    if done >= steps:
        return state
    window: list[Metrics] = []
    in_flight: collections.deque[tuple[int, Metrics]] = collections.deque()

    def receive(keep: int) -> None:
        while len(in_flight) > keep:
            at, metrics = in_flight.popleft()
            values = jax.device_get(metrics)
            if not all(np.isfinite(value).all() for value in jax.tree.leaves(values)):
                raise NonFiniteLossError(
                    f"loss or gradient is not finite at step {at}; the last checkpoint is of step {saved}"
                )
            window.append(values)
            on_step(at, summarize([values]))

    with _stop_signal() as stop:
        timed: int | None = None  # the clock starts after the first dispatch, which compiles
        started = 0.0
        while done < steps and not stop.is_set():
            batch, position = next(batches)
            state, metrics = step(state, batch)
            done += np.size(metrics["loss"])
            in_flight.append((done, metrics))
            last = done >= steps or stop.is_set()
            log, save_now, sample_now = (
                (last or _due(done, log_every)),
                _due(done, save_every),
                _due(done, sample_every),
            )
            receive(0 if timed is None or log or save_now or sample_now else _IN_FLIGHT)
            now = time.perf_counter()
            if log:
                means = summarize(window)
                if timed is not None:
                    means["images_per_second"] = (done - timed) * batch_size / (now - started)
                on_log(done, means)
                window.clear()
            if log or timed is None:
                timed, started = done, now
            if save_now or last:
                save(state, position)
                saved = done
            if sample_now or (sample_every and done >= steps):
                sample(state)
            started += time.perf_counter() - now  # what is not training does not count
        receive(0)
        if saved < done:  # the stop came after the last look at it
            save(state, position)
    return state


def summarize(window: Sequence[Metrics]) -> dict[str, float]:
    """The mean of each metric over the dispatches of window; a `Binned` "name" gives "name/0.0", "name/0.1", ...

    The number is where the bin begins; bins that nothing fell in are left out.
    """
    means: dict[str, float] = {}
    for name in window[0]:
        values = [metrics[name] for metrics in window]
        if not isinstance(values[0], Binned):
            means[name] = float(np.mean(values))
            continue
        total, weight = (
            np.sum([a.reshape(-1, a.shape[-1]).sum(axis=0) for a in part], axis=0) for part in zip(*values, strict=True)
        )
        for i in np.flatnonzero(weight):
            means[f"{name}/{i / len(weight):.1f}"] = float(total[i] / weight[i])
    return means


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


class _stop_signal:
    """While entered, SIGINT and SIGTERM set an event and do nothing else; a second one acts as usual."""

    def __enter__(self) -> threading.Event:
        self.event = threading.Event()
        self.previous: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self.previous[number] = signal.signal(number, self._received)
        return self.event

    def _received(self, number: int, frame: Any) -> None:
        self.event.set()
        signal.signal(number, self.previous[number])

    def __exit__(self, *exception: object) -> None:
        for number, previous in self.previous.items():
            signal.signal(number, previous)
