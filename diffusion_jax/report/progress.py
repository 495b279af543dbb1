"""The progress of a run: a bar on a terminal, plain lines in a log."""

import abc
import collections
import contextlib
import datetime
import functools
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator

import rich.console
import rich.progress
import rich.table

_WINDOW = 30.0  # seconds over which the rate is a mean


@contextlib.contextmanager
def progress(
    total: int,
    start: int = 0,
    unit: str = "images",
    description: str = "train",
    units_per_step: float = 1,
    show: bool = True,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator["Progress"]:
    """Shows the progress from step start to step total, with a rate in units a second: unit per step units_per_step.

    It is a bar where standard output is a terminal, and otherwise a plain line at the first update, every 10 s (of a
    long run every minute) and at the end. With show false, as in all processes but the first, nothing is shown and the
    rate is still measured. clock gives seconds.
    """
    terminal = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
    kind = (_Bar if terminal else _Lines) if show else _Silent
    shown = kind(total, start, unit, description, units_per_step, clock)
    try:
        yield shown
    finally:
        shown.close()


class Pace:
    """The steps a second over the last 30 s, from the first update on: what came before it was mostly compilation."""

    def __init__(self) -> None:
        self._seen: collections.deque[tuple[float, int]] = collections.deque()

    def add(self, step: int, now: float) -> None:
        """Adds that `step` steps are done at time now, in seconds."""
        if len(self._seen) > 1 and now - self._seen[-2][0] < _WINDOW / 300:
            self._seen.pop()  # so that a few hundred entries are kept, however fast the steps are
        self._seen.append((now, step))
        while len(self._seen) > 2 and self._seen[1][0] <= now - _WINDOW:
            self._seen.popleft()

    @property
    def steps_per_second(self) -> float | None:
        """The rate; None while it is not known, which takes two updates."""
        if len(self._seen) < 2:
            return None
        (t0, first), (t1, last) = self._seen[0], self._seen[-1]
        return (last - first) / (t1 - t0) if t1 > t0 and last > first else None


class Progress(abc.ABC):
    """The progress of a run, drawn at the first update, then at most every `_every` seconds, and at the end."""

    @property
    @abc.abstractmethod
    def _every(self) -> float:
        """The seconds between two drawings."""

    _drawn: tuple[int, float] | None = None  # step and time when it was last drawn

    def __init__(
        self,
        total: int,
        start: int,
        unit: str,
        description: str,
        units_per_step: float,
        clock: Callable[[], float],
    ):
        self.total, self.step, self.unit, self.description = total, start, unit, description
        self._units_per_step, self._clock = units_per_step, clock
        self._began = clock()
        self._pace = Pace()
        self._values: dict[str, float] = {}
        self._took: dict[str, float] = {}  # seconds of the last `doing` of each name
        self._pauses, self._steps_paused = 0.0, 0  # seconds and steps that are left out of the rate
        self._paused: float | None = None  # since when further seconds are

    @contextlib.contextmanager
    def doing(self, what: str, *, once: bool = False) -> Iterator[None]:
        """While entered, shows what is done between two steps, for how long so far and, from the second time on, the
        time that is about left. It has no progress of its own, for it is one program.

        once: the work is not repeated at later steps, as a compilation is not. Its seconds, and the steps that are done
        in them, are left out of the rate and of the time left.
        """
        began, done = self._clock(), threading.Event()
        self._paused = began if once else None

        def tell() -> None:
            while not done.wait(self._every):
                spent, before = self._clock() - began, self._took.get(what)
                left = None if before is None or spent > before else before - spent
                self._tell(what, spent, left)

        thread = threading.Thread(target=tell, name="doing", daemon=True)
        if self._every < float("inf"):
            thread.start()
        try:
            yield
            self._took[what] = self._clock() - began
        finally:
            done.set()
            if thread.is_alive():
                thread.join()
            self._told()
            if once:
                self._pauses, self._paused = self._pauses + self._clock() - began, None

    def update(self, step: int, **values: float) -> None:
        """Shows that `step` steps are done, with values such as loss=0.05.

        A value that a device is still computing is waited for only where it is drawn.
        """
        now = self._clock()
        if self._paused is not None:
            self._steps_paused += step - self.step
        self.step, self._values = step, values
        self._pace.add(step - self._steps_paused, (now if self._paused is None else self._paused) - self._pauses)
        if self._drawn is None or now - self._drawn[1] >= self._every:
            self._draw()
            self._drawn = step, now

    def close(self) -> None:
        """Draws the last step and ends."""
        try:
            if self._drawn is not None and self._drawn[0] != self.step:
                self._draw()
        finally:
            self._stop()

    @property
    def rate(self) -> float | None:
        """Units a second, such as images/s, over the last 30 s; None while it is not known."""
        pace = self._pace.steps_per_second
        return None if pace is None else pace * self._units_per_step

    @property
    def seconds_left(self) -> float | None:
        """Seconds to the last step at the present rate; None while the rate is not known."""
        pace = self._pace.steps_per_second
        return 0.0 if self.step >= self.total else None if pace is None else (self.total - self.step) / pace

    def _status(self) -> str:
        rate = self.rate
        parts = [] if rate is None else [f"{rate:,.0f} {self.unit}/s" if rate >= 100 else f"{rate:.3g} {self.unit}/s"]
        parts += [f"{name} {float(value):.4g}" for name, value in self._values.items()]
        return "  ".join(parts)

    def _left(self) -> str:
        return "" if self.seconds_left is None else f"{_duration(self.seconds_left)} left"

    @abc.abstractmethod
    def note(self, text: str) -> None:
        """Prints the text as a line of its own."""

    @abc.abstractmethod
    def _draw(self) -> None: ...

    @abc.abstractmethod
    def _tell(self, what: str, spent: float, left: float | None) -> None:
        """Shows what is done, the seconds it has taken, and those that are left if they are known."""

    @abc.abstractmethod
    def _told(self) -> None:
        """Ends what `_tell` shows."""

    @abc.abstractmethod
    def _stop(self) -> None: ...


class _Bar(Progress):
    _every = 0.25

    def __init__(self, *args):
        super().__init__(*args)
        text = functools.partial(rich.progress.TextColumn, markup=False)
        console = rich.console.Console(markup=False, highlight=False)
        wide = console.width >= 100  # on a narrow terminal the numbers take the place of the bar
        self._bar = rich.progress.Progress(
            text("{task.description}"),
            *([rich.progress.BarColumn(bar_width=20)] if wide else []),
            text("{task.fields[count]}"),
            text("{task.fields[status]}", table_column=rich.table.Column(no_wrap=False)),
            rich.progress.TimeElapsedColumn(),
            text("{task.fields[left]}"),
            console=console,
            refresh_per_second=4,
        )
        self._task = self._bar.add_task(
            self.description, total=self.total, completed=self.step, count=self._count(), status="", left=""
        )
        self._doing: rich.progress.TaskID | None = None
        self._bar.start()

    def note(self, text: str) -> None:
        self._bar.console.print(text, soft_wrap=True)

    def _draw(self) -> None:
        self._bar.update(self._task, completed=self.step, count=self._count(), status=self._status(), left=self._left())

    def _count(self) -> str:
        return f"{self.step:,}/{self.total:,}"

    def _tell(self, what: str, spent: float, left: float | None) -> None:
        if self._doing is None:  # a bar below; it pulses where the time that is left is not known
            self._doing = self._bar.add_task(what, total=None, count="", status="", left="")
        total = None if left is None else spent + left
        self._bar.update(self._doing, total=total, completed=spent, left=_about(left))

    def _told(self) -> None:
        if self._doing is not None:
            self._bar.remove_task(self._doing)
        self._doing = None

    def _stop(self) -> None:
        self._bar.stop()


class _Lines(Progress):
    @property
    def _every(self) -> float:
        return min(max((self._clock() - self._began) / 60, 10.0), 60.0)  # a night is 500 lines, not 3,000

    def note(self, text: str) -> None:
        print(text, flush=True)

    def _draw(self) -> None:
        percent = f" ({self.step / self.total:.0%})" if self.total else ""
        elapsed = f"{_duration(self._clock() - self._began)} elapsed"
        parts = [f"{self.description} {self.step:,}/{self.total:,}{percent}", self._status(), elapsed, self._left()]
        print("  ".join(part for part in parts if part), flush=True)

    def _tell(self, what: str, spent: float, left: float | None) -> None:
        print("  ".join(part for part in (what, f"{_duration(spent)} so far", _about(left)) if part), flush=True)

    def _told(self) -> None:
        pass

    def _stop(self) -> None:
        pass


class _Silent(Progress):
    _every = float("inf")

    def note(self, text: str) -> None:
        pass

    def _draw(self) -> None:
        pass

    def _tell(self, what: str, spent: float, left: float | None) -> None:
        pass

    def _told(self) -> None:
        pass

    def _stop(self) -> None:
        pass


def _about(left: float | None) -> str:
    return "" if left is None else f"about {_duration(left)} left"


def _duration(seconds: float) -> str:
    """The seconds as hours, minutes and seconds, such as 1:02:03."""
    return str(datetime.timedelta(seconds=round(seconds)))
