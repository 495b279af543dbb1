"""How far a run is: a bar on a terminal, a plain line now and then in a log."""

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

_WINDOW = 30.0  # seconds over which the rate is measured


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
    """Shows the way from step start to step total; with the global batch size as units_per_step the rate is images/s.

    A bar where standard output is a terminal, else a plain line at the first update, every 10 s and at the end. Nothing
    where show is false (every process but the first), though the rate is still measured. clock is in seconds.
    """
    terminal = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
    kind = (_Bar if terminal else _Lines) if show else _Silent
    shown = kind(total, start, unit, description, units_per_step, clock)
    try:
        yield shown
    finally:
        shown.close()


class Pace:
    """Steps a second over the last 30 s of updates.

    Measured from the first update on, so that the compilation before it does not count; until a second update comes,
    from the start.
    """

    def __init__(self, start: int, now: float):
        self._start = (now, start)
        self._seen: collections.deque[tuple[float, int]] = collections.deque()

    def add(self, step: int, now: float) -> None:
        """Notes that step is reached at time now, in seconds."""
        if len(self._seen) > 1 and now - self._seen[-2][0] < _WINDOW / 300:
            self._seen.pop()  # keeps a few hundred marks however fast the steps
        self._seen.append((now, step))
        while len(self._seen) > 2 and self._seen[1][0] <= now - _WINDOW:
            self._seen.popleft()

    @property
    def steps_per_second(self) -> float | None:
        """None while unknown."""
        if not self._seen:
            return None
        (t0, first), (t1, last) = self._start if len(self._seen) == 1 else self._seen[0], self._seen[-1]
        return (last - first) / (t1 - t0) if t1 > t0 and last > first else None


class Progress(abc.ABC):
    """Where a run stands; drawn at the first update, then no oftener than every so many seconds, and at the end."""

    _every: float  # seconds
    _drawn: tuple[int, float] | None = None  # step and time at which it was drawn last

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
        self._pace = Pace(start, self._began)
        self._values: dict[str, float] = {}
        self._took: dict[str, float] = {}  # seconds that each `doing` took last time

    @contextlib.contextmanager
    def doing(self, what: str) -> Iterator[None]:
        """Says what is done between two steps while it lasts: for how long so far and, from the second time on, about
        how long still. No step of it is counted, for it is one program.
        """
        began, done = self._clock(), threading.Event()

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

    def update(self, step: int, **values: float) -> None:
        """Says that step steps are done, and what to show beside: loss=0.05.

        A value still being computed on a device is waited for only where it is drawn.
        """
        now = self._clock()
        self.step, self._values = step, values
        self._pace.add(step, now)
        if self._drawn is None or now - self._drawn[1] >= self._every:
            self._draw()
            self._drawn = step, now

    def close(self) -> None:
        """Shows the last state and stops."""
        try:
            if self._drawn is not None and self._drawn[0] != self.step:
                self._draw()
        finally:
            self._stop()

    @property
    def rate(self) -> float | None:
        """Units a second (images/s) over the last 30 s; None while unknown."""
        pace = self._pace.steps_per_second
        return None if pace is None else pace * self._units_per_step

    @property
    def seconds_left(self) -> float | None:
        """Time to the last step at the present rate; None while unknown."""
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
        """Prints a line of its own."""

    @abc.abstractmethod
    def _draw(self) -> None: ...

    @abc.abstractmethod
    def _tell(self, what: str, spent: float, left: float | None) -> None:
        """Shows what is done, for how many seconds, and how many are left if that is known."""

    @abc.abstractmethod
    def _told(self) -> None:
        """What was done is over."""

    @abc.abstractmethod
    def _stop(self) -> None: ...


class _Bar(Progress):
    _every = 0.25

    def __init__(self, *args):
        super().__init__(*args)
        text = functools.partial(rich.progress.TextColumn, markup=False)
        console = rich.console.Console(markup=False, highlight=False)
        wide = console.width >= 100  # else the numbers need the room of the bar
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
        if self._doing is None:  # a bar of its own below; it pulses where its end is not known
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
    _every = 10.0

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
    """1:02:03."""
    return str(datetime.timedelta(seconds=round(seconds)))
