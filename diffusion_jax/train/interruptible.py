"""Calls that a signal can interrupt within seconds, and blocks that no signal can interrupt.

Python runs no signal handler while the main thread is inside XLA, and XLA cannot be asked to stop. So a call runs in
another thread while the main thread waits. On a signal the main thread goes on and abandons that thread, which works
until the process ends. A command that has abandoned a thread ends by `os._exit`, as `cli.interrupts` does.
"""

import contextlib
import contextvars
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

import jax

from diffusion_jax.train import faults

P = ParamSpec("P")
T = TypeVar("T")
U = TypeVar("U")

GRACE = 2.0
"""Seconds that a call has after a signal to end by itself, in which case its result is used."""

_POLL = 0.1  # seconds between two checks for a signal

_threads: set[threading.Thread] = set()  # those that still work, abandoned ones included


class Abandoned(Exception):
    """A call was abandoned because a signal asked the run to stop. It has no result."""


def interruptible(call: Callable[[], T], grace: float = GRACE) -> T:
    """The result of call(), which runs in another thread so that a signal can interrupt the wait for it.

    Raises Abandoned where `faults.stop_on_signal` has received a signal and call does not end within `grace` seconds.
    Outside of `stop_on_signal`, Ctrl-C raises KeyboardInterrupt at once. An abandoned call works on, so it must not
    change, or donate to a program, anything that is used afterwards.

    Where the run has several processes, call runs in the main thread: one process cannot abandon a collective. So it
    does where this function is called in another thread than the main one.
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


def read_interruptibly(items: Iterator[T], grace: float = GRACE) -> Iterator[T]:
    """The items in order, which a signal does not have to wait for where their source stalls.

    One thread takes each item from the iterator as it is asked for. Where `faults.stop_on_signal` has noted a signal,
    and an item has not come grace seconds later, raises Abandoned; what is read after that is lost. Outside of the main
    thread, and between several processes, the items are read as they are.
    """
    if threading.current_thread() is not threading.main_thread() or jax.process_count() > 1:
        yield from items
        return
    asked: queue.SimpleQueue[bool] = queue.SimpleQueue()  # True: the next item; False: no more
    # Not a SimpleQueue: its get waits for ever where a signal's handler runs past the end of the timeout.
    came: queue.Queue[tuple[list[T], BaseException | None]] = queue.Queue()

    def work() -> None:
        while asked.get():
            try:
                came.put(([next(items)], None))
            except StopIteration:
                came.put(([], None))
            except BaseException as error:
                came.put(([], error))
        _threads.discard(threading.current_thread())

    thread = threading.Thread(target=contextvars.copy_context().run, args=(work,), name="reader", daemon=True)
    thread.start()
    try:
        while True:
            asked.put(True)
            item, failure = _waited_for(came, thread, grace)
            if failure is not None:
                raise failure
            if not item:
                return
            yield item[0]
    finally:
        asked.put(False)


def _waited_for(came: "queue.Queue[U]", thread: threading.Thread, grace: float) -> U:
    """What comes; raises Abandoned, the thread being left behind, grace seconds after a signal was noted."""
    signalled: float | None = None
    while True:
        with contextlib.suppress(queue.Empty):
            return came.get(timeout=_POLL)
        if faults.stop_asked():
            signalled = time.monotonic() if signalled is None else signalled
            if time.monotonic() - signalled > grace:
                _threads.add(thread)
                raise Abandoned


Shapes = tuple[Any, tuple[tuple[tuple[int, ...], Any], ...]]
"""The structure of a tree, and the shape and type of each of its arrays."""


def shapes_of(batch: object) -> Shapes:
    """The shapes of a batch: a program of `jax.jit` compiles at the first of each, while its other arguments stay."""
    leaves, structure = jax.tree.flatten(batch)
    return structure, tuple((leaf.shape, leaf.dtype) for leaf in leaves)


def compiled_first(program: Callable[P, T]) -> Callable[P, T]:
    """A program of `jax.jit` of (state, batch, ...) that compiles, for each shape of batch, as an `interruptible` call.

    Where a call raises Abandoned, nothing was donated and all arguments are as they were. A function that is no program
    of `jax.jit` is called as it is.
    """
    compiles = hasattr(program, "lower")
    compiled: set[Shapes] = set()

    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        if compiles and (shapes := shapes_of(args[1])) not in compiled:
            # The compiled program is in jax's cache, where calling `program` finds it.
            interruptible(lambda: program.lower(*args, **kwargs).compile())  # type: ignore[attr-defined]
            compiled.add(shapes)
        return program(*args, **kwargs)

    return call


def left_behind() -> bool:
    """Whether the thread of an abandoned call still works, so that the interpreter cannot end in order."""
    return bool(_threads)


def cannot_be_cut() -> bool:
    """Whether a block of `uninterrupted` is entered, which must not be cut short."""
    return _uncut > 0


_uncut = 0  # how many blocks of `uninterrupted` are entered


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """While entered, SIGINT and SIGTERM are held back. They are raised at the end: for renames that belong together."""
    global _uncut
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    previous: dict[int, signal._HANDLER] = {}
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
