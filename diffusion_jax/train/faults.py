"""What ends a run from outside: a signal that asks it to stop, and a phase that never ends."""

import contextlib
import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

HANG = 75
"""The exit status of a run that the watchdog ended: EX_TEMPFAIL, start it again."""

PHASES = {"restore": 10, "compile": 10, "input": 1, "step": 1, "sample": 10, "save": 1}
"""How many times its seconds the watchdog grants a phase; those that compile get more."""

_AGREE_SECONDS = 2.0  # between processes it is a collective that waits for the steps before it
_AGREE_MOST = 32  # dispatches


class Stop:
    """Whether this run has been asked to end early."""

    def __init__(self) -> None:
        self.signal: str | None = None  # by which signal
        self._asked, self._next, self._time = 0, 0, time.monotonic()  # dispatches, and when

    def agreed(self, dispatch: int) -> bool:
        """Whether to stop after that many dispatches: in all processes alike, if any was asked; each must call this.

        Several processes ask each other every few seconds, or after every dispatch where one takes longer.
        """
        if jax.process_count() == 1:
            return self.signal is not None
        if dispatch == 0:  # also of a loop that begins anew
            self._asked = self._next = 0
        if dispatch < self._next:
            return False
        now = time.monotonic()
        seconds = (now - self._time) / max(dispatch - self._asked, 1)
        mine = np.array([self.signal is not None, seconds], np.float32)
        told = multihost_utils.process_allgather(mine).reshape(-1, 2)
        # The slowest process's time, which all were told, or they would not ask at the same dispatch.
        interval = int(np.clip(_AGREE_SECONDS / max(float(told[:, 1].max()), 1e-9), 1, _AGREE_MOST))
        self._asked, self._next, self._time = dispatch, dispatch + interval, now
        return bool(told[:, 0].any())


_stops: list[Stop] = []  # of the `stop_on_signal` that are entered, the innermost last


def stop_asked() -> bool:
    """Whether a `stop_on_signal` that is entered has noted a signal."""
    return bool(_stops) and _stops[-1].signal is not None


@contextlib.contextmanager
def stop_on_signal() -> Iterator[Stop]:
    """While entered, a SIGINT or SIGTERM is only noted; a second one acts as usual, which for SIGTERM is at once.

    Python runs no handler while the main thread compiles, so a thread reads the signals from a pipe. Outside of the
    main thread nothing is noted.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    read, write = os.pipe()
    os.set_blocking(write, False)
    previous: dict[int, Any] = {}

    def watch() -> None:
        first = True
        while number := os.read(read, 1)[0]:
            if number not in previous:
                continue
            if first:
                stop.signal = signal.Signals(number).name
                print(f"diffusion-jax: {stop.signal}: saving after the step under way", file=sys.stderr, flush=True)
            elif number == signal.SIGTERM:
                os._exit(128 + number)
            first = False

    def received(number: int, frame: Any) -> None:
        stop.signal = stop.signal or signal.Signals(number).name
        signal.signal(number, previous[number])

    thread = threading.Thread(target=watch, name="signals", daemon=True)
    for number in (signal.SIGINT, signal.SIGTERM):
        previous[number] = signal.signal(number, received) or signal.SIG_DFL
    wakeup = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    thread.start()
    _stops.append(stop)
    try:
        yield stop
    finally:
        _stops.remove(stop)
        signal.set_wakeup_fd(wakeup)
        for each, handler in previous.items():
            signal.signal(each, handler)
        os.write(write, b"\0")
        thread.join()
        os.close(read)
        os.close(write)


class Watchdog:
    """Ends the process with status `HANG`, every thread's stack in report, where a phase outlasts its budget.

    The budget is seconds times the phase's factor in `PHASES`; 0 seconds is no watchdog. Time in which the whole
    process was stopped does not count.
    """

    def __init__(self, seconds: float, report: Path):
        self._seconds, self._report = seconds, report
        self._phase: tuple[str, int] | None = None  # and its number
        self._entered = 0
        self._closed = threading.Event()

    def __enter__(self) -> "Watchdog":
        if self._seconds:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._closed.set()

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """While entered, the budget of the phase name runs."""
        outer, self._entered = self._phase, self._entered + 1
        self._phase = name, self._entered
        try:
            yield
        finally:
            self._phase = outer

    def _watch(self) -> None:
        tick = min(self._seconds / 10, 1.0)
        seen, spent, before = self._phase, 0.0, time.monotonic()
        while not self._closed.wait(tick):
            phase, now = self._phase, time.monotonic()
            spent = spent + min(now - before, 2 * tick) if phase == seen else 0.0
            seen, before = phase, now
            if phase is not None and spent > self._seconds * PHASES[phase[0]]:
                self._expire(phase[0], self._seconds * PHASES[phase[0]])

    def _expire(self, phase: str, budget: float) -> None:
        try:
            self._report.parent.mkdir(parents=True, exist_ok=True)
            with self._report.open("w") as file:
                faulthandler.dump_traceback(file, all_threads=True)
            where = f"the stacks are in {self._report}"
        except OSError as error:
            where = f"the stacks could not be written: {error}"
        print(
            f"diffusion-jax: {phase} took more than {budget:g} s, so this run ends; {where}",
            file=sys.stderr,
            flush=True,
        )
        os._exit(HANG)
