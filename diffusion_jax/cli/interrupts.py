"""How a signal ends the process: in order where Python can do it, and within seconds where it cannot."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType

ENDING = (signal.SIGINT, signal.SIGTERM)
"""The signals that end a command."""

_LATEST = 4.0  # seconds after a signal at which the process ends, whatever it does

_INTERRUPTIBLE = (
    "diffusion_jax.train.interruptible"  # it imports jax, so it is used only where a command has imported it
)


_SWALLOWING = ("_xla_gc_callback", "__del__")
"""Functions whose exceptions Python prints and ignores. A signal that arrives in one of them is sent again."""

_IMPORTING = "<frozen importlib._bootstrap>"
"""The file of Python's import system in tracebacks."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, raised in the main thread as Ctrl-C is."""


@contextlib.contextmanager
def ending_on_signal() -> Iterator[None]:
    """While entered, SIGTERM raises Terminated and SIGINT KeyboardInterrupt, and both end the process within seconds.

    Python delivers no signal while the main thread is in the code of other libraries. So 4 s after a signal that did
    not end the process, a thread ends it with status 128 + the number of the signal. It does not act on signals that
    `train.faults.stop_on_signal` handles. During an import a signal ends the process at once. Signals that `memory`
    has blocked are let through.
    """
    before: dict[signal.Signals, signal._HANDLER] = {signal.SIGTERM: signal.signal(signal.SIGTERM, _raise)}
    if (
        signal.getsignal(signal.SIGINT) is signal.default_int_handler
    ):  # otherwise a shell has made the process ignore it
        before[signal.SIGINT] = signal.signal(signal.SIGINT, _raise)
    read, write = os.pipe()
    os.set_blocking(write, False)
    wakeup = signal.set_wakeup_fd(write, warn_on_full_buffer=False)

    def watch() -> None:
        while number := os.read(read, 1)[0]:
            if number in ENDING:
                time.sleep(_LATEST)
                while (work := sys.modules.get(_INTERRUPTIBLE)) and work.cannot_be_cut():
                    time.sleep(0.1)
                say_stopped(signal.Signals(number))
                leave(128 + number)

    threading.Thread(target=watch, name="last resort", daemon=True).start()
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
        yield
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        os.write(write, b"\0")


def _raise(number: int, frame: FrameType | None) -> None:
    if _importing(frame):  # a module would turn the exception into another error, or its C code crash
        say_stopped(signal.Signals(number))
        leave(128 + number)
    if frame is not None and frame.f_code.co_name in _SWALLOWING:
        again = threading.Timer(0.05, os.kill, (os.getpid(), number))
        again.daemon = True
        again.start()
        return
    raise Terminated if number == signal.SIGTERM else KeyboardInterrupt


def _importing(frame: FrameType | None) -> bool:
    """Whether a module is being imported in this frame or below."""
    while frame is not None and frame.f_code.co_filename != _IMPORTING:
        frame = frame.f_back
    return frame is not None


def stopped(interrupt: KeyboardInterrupt) -> int:
    """Prints which signal ended the command. Returns the exit status, 130 or 143."""
    number = signal.SIGTERM if isinstance(interrupt, Terminated) else signal.SIGINT
    say_stopped(number)
    return 128 + number


def say_stopped(number: signal.Signals) -> None:
    """Prints the line of a command that a signal has ended."""
    print(f"diffusion-jax: stopped by {number.name}", file=sys.stderr, flush=True)


def end(status: int) -> None:
    """Ends the process with a status, at once where the thread of an abandoned call still works."""
    if (work := sys.modules.get(_INTERRUPTIBLE)) and work.left_behind():
        leave(status)
    sys.exit(status)


def leave(status: int) -> None:
    """Ends the process now, whatever its threads do, after flushing its output."""
    with contextlib.suppress(Exception):  # as of a pipe that no process reads any more
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)
