"""Work that a signal ends within seconds, by leaving its thread behind; and moves of files that no signal cuts.

Python runs no signal handler while the main thread is inside XLA, and XLA cannot be told to stop. So the main thread
waits and another thread works. A thread that was left behind works on until the process ends: a command that left one
ends by `os._exit`, as `cli.interrupts` does.
"""

import contextlib
import contextvars
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax

from diffusion_jax.train import faults

T = TypeVar("T")

GRACE = 2.0
"""Seconds that a call still has to end by itself after a signal; what it computes is then kept."""

_POLL = 0.1  # seconds between two looks at the signal

_threads: set[threading.Thread] = set()  # those that work, or were left behind


class Abandoned(Exception):
    """A call was left behind because the run was asked to stop. Its result never comes."""


def interruptible(call: Callable[[], T], grace: float = GRACE) -> T:
    """The result of call, which a signal does not have to wait for.

    Where `faults.stop_on_signal` has noted a signal, and the call has not ended grace seconds later, raises Abandoned;
    where nothing notes signals, the KeyboardInterrupt of Ctrl-C is raised at once. call must not change, or donate to a
    program, what is used after it was left behind. Between several processes call runs as it is: a collective cannot
    be left by one of them. So it does outside of the main thread.
    """
    if threading.current_thread() is not threading.main_thread() or jax.process_count() > 1:
        return call()
    if faults.stop_asked():
        raise Abandoned
    context, done = contextvars.copy_context(), threading.Event()
    result: list[T] = []
    failure: list[BaseException] = []

    def work() -> None:
        try:
            result.append(context.run(call))
        except BaseException as error:
            failure.append(error)
        finally:
            _threads.discard(threading.current_thread())
            done.set()

    thread = threading.Thread(target=work, name="interruptible", daemon=True)
    _threads.add(thread)
    thread.start()
    asked: float | None = None
    while not done.wait(_POLL):
        if faults.stop_asked():
            asked = time.monotonic() if asked is None else asked
            if time.monotonic() - asked > grace:
                raise Abandoned
    if failure:
        raise failure[0]
    return result[0]


def compiled_first(program: Any) -> Callable[..., Any]:
    """A program of `jax.jit` that is compiled, at its first call, by `interruptible`, and then runs as it is.

    So where the first call raises Abandoned no argument was donated: all of them are as they were. A function that is
    no such program is called as it is.
    """
    compiled = not hasattr(program, "lower")

    def call(*arguments: Any) -> Any:
        nonlocal compiled
        if not compiled:
            interruptible(lambda: program.lower(*arguments).compile())  # the program itself finds what that has made
            compiled = True
        return program(*arguments)

    return call


def left_behind() -> bool:
    """Whether a thread of an abandoned call still works, so that the interpreter could not end in order."""
    return bool(_threads)


def cannot_be_cut() -> bool:
    """Whether a block of `uninterrupted` is entered."""
    return _uncut > 0


_uncut = 0  # how many blocks of `uninterrupted` are entered


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """While entered SIGINT and SIGTERM wait; they come at its end. For renames and deletions that belong together."""
    global _uncut
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    previous: dict[int, Any] = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        previous[number] = signal.signal(number, lambda number, frame: came.append(number))
    _uncut += 1
    try:
        yield
    finally:
        _uncut -= 1
        for each, handler in previous.items():
            signal.signal(each, signal.SIG_DFL if handler is None else handler)
        for each in came:
            signal.raise_signal(each)
