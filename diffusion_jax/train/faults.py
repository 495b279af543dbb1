"""Faults from outside a run: a signal that asks it to stop, and a phase that hangs."""

import contextlib
import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import jax
import numpy as np
from jax.experimental import multihost_utils

HANG = 75
"""The exit status of a run that the watchdog ended: EX_TEMPFAIL, which asks to start it again."""

PHASES = {"restore": 10, "compile": 10, "input": 1, "step": 1, "sample": 10, "save": 1}
"""The factor by which the watchdog multiplies its seconds in each phase. Phases that compile have more time."""

_AGREE_SECONDS = 2.0  # between two questions: each is a collective, which waits for the steps before it
_AGREE_MOST = 32  # dispatches between two questions


class Stop:
    """Whether a signal has asked this run to end early."""

    def __init__(self) -> None:
        self.signal: str | None = None  # name of the signal
        self._asked, self._next = 0, 0  # dispatches at the last question and at the next
        self._time = time.monotonic()  # of the last question

    def agreed(self, dispatch: int) -> bool:
        """Whether the run stops after this many dispatches: where any of its processes has a signal, all stop.

        Every process must call this after every dispatch. The processes ask each other every few seconds, or after
        every dispatch where one takes longer.
        """
        if jax.process_count() == 1:
            return self.signal is not None
        if dispatch == 0:  # a loop may begin again, after a roll-back
            self._asked = self._next = 0
        if dispatch < self._next:
            return False
        now = time.monotonic()
        seconds = (now - self._time) / max(dispatch - self._asked, 1)
        mine = np.array([self.signal is not None, seconds], np.float32)
        every = multihost_utils.process_allgather(mine).reshape(-1, 2)  # [processes, 2]
        # All take the slowest process's time. With times of their own they would ask after different dispatches.
        interval = int(np.clip(_AGREE_SECONDS / max(float(every[:, 1].max()), 1e-9), 1, _AGREE_MOST))
        self._asked, self._next, self._time = dispatch, dispatch + interval, now
        return bool(every[:, 0].any())


_stops: list[Stop] = []  # those of the `stop_on_signal` blocks that are entered, the innermost last


def stop_asked() -> bool:
    """Whether the innermost `stop_on_signal` that is entered has received a signal."""
    return bool(_stops) and _stops[-1].signal is not None


@contextlib.contextmanager
def stop_on_signal() -> Iterator[Stop]:
    """While entered, the first SIGINT or SIGTERM only sets `Stop.signal`. A second one acts as usual.

    A second SIGTERM ends the process at once. Python runs no signal handler while the main thread compiles, so a thread
    reads the signals from a pipe. Entered in another thread than the main one, it does nothing.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    read, write = os.pipe()
    os.set_blocking(write, False)
    previous: dict[int, signal._HANDLER] = {}

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

    def received(number: int, frame: FrameType | None) -> None:
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
    """Ends the process with status `HANG` where a phase takes longer than its budget.

    The stacks of all threads are then in the file `report`. The budget is `seconds` times the phase's factor in
    `PHASES`; 0 seconds turns the watchdog off. Time in which the whole process is suspended does not count.
    """

    def __init__(self, seconds: float, report: Path):
        self._seconds, self._report = seconds, report
        self._phase: tuple[str, int] | None = None  # name, and how many phases had been entered by then
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
        """While entered, the time counts against the budget of the phase of this name."""
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
