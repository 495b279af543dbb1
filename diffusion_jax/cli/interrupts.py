"""How a signal ends the process: in order where Python can, and within seconds where it cannot."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

_LATEST = 4.0  # seconds after a signal at which the process ends whatever it does

_INTERRUPTIBLE = "diffusion_jax.train.interruptible"  # imports jax, so it is asked only where a command has imported it


_SWALLOWING = ("_xla_gc_callback", "__del__")
"""Functions of which Python prints an exception and goes on: a signal that finds one of them running comes again."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, raised in the main thread as Ctrl-C is."""


@contextlib.contextmanager
def ending_on_signal() -> Iterator[None]:
    """While entered, SIGTERM raises Terminated as SIGINT raises KeyboardInterrupt, and either ends the process in time.

    Python delivers no signal while the main thread is in other libraries' code: 4 s after one that did not end the
    process, a thread ends it with status 128 + the signal's number. Signals that `train.faults.stop_on_signal` notes
    are the command's own matter.
    """
    before: dict[signal.Signals, Any] = {signal.SIGTERM: signal.signal(signal.SIGTERM, _raise)}
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else a shell has it ignored
        before[signal.SIGINT] = signal.signal(signal.SIGINT, _raise)
    read, write = os.pipe()
    os.set_blocking(write, False)
    wakeup = signal.set_wakeup_fd(write, warn_on_full_buffer=False)

    def watch() -> None:
        while number := os.read(read, 1)[0]:
            if number in (signal.SIGINT, signal.SIGTERM):
                time.sleep(_LATEST)
                while (work := sys.modules.get(_INTERRUPTIBLE)) and work.cannot_be_cut():
                    time.sleep(0.1)
                say_stopped(signal.Signals(number))
                leave(128 + number)

    threading.Thread(target=watch, name="last resort", daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        os.write(write, b"\0")


def _raise(number: int, frame: FrameType | None) -> None:
    if frame is not None and frame.f_code.co_name in _SWALLOWING:
        again = threading.Timer(0.05, os.kill, (os.getpid(), number))
        again.daemon = True
        again.start()
        return
    raise Terminated if number == signal.SIGTERM else KeyboardInterrupt


def stopped(interrupt: KeyboardInterrupt) -> int:
    """Says by which signal the command was ended; returns the exit status, 130 or 143."""
    number = signal.SIGTERM if isinstance(interrupt, Terminated) else signal.SIGINT
    say_stopped(number)
    return 128 + number


def say_stopped(number: signal.Signals) -> None:
    """The one line of a command that a signal ended."""
    print(f"diffusion-jax: stopped by {number.name}", file=sys.stderr, flush=True)


def end(status: int) -> None:
    """Ends the process with status; at once where the thread of a call that was left behind still works."""
    if (work := sys.modules.get(_INTERRUPTIBLE)) and work.left_behind():
        leave(status)
    sys.exit(status)


def leave(status: int) -> None:
    """Ends the process now, whatever its threads do; what was printed is seen."""
    with contextlib.suppress(Exception):  # a pipe that nobody reads any more
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)
