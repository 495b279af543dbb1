"""A blocking call is left behind when the run is asked to stop, and only then; moves of files are not cut."""

import os
import signal
import threading
import time

import jax
import pytest

from diffusion_jax.train import interruptible as module
from diffusion_jax.train.faults import stop_on_signal
from diffusion_jax.train.interruptible import Abandoned, interruptible, left_behind, read_interruptibly, uninterrupted


@pytest.fixture
def blocked():
    """A call that does not end before the test does, and has the result 3."""
    event = threading.Event()

    def call():
        event.wait(30)
        return 3

    yield call
    event.set()
    while left_behind():
        time.sleep(0.01)


def later(seconds, number):
    threading.Timer(seconds, lambda: os.kill(os.getpid(), number)).start()


def test_a_result_and_an_error_come_back():
    assert interruptible(lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        interruptible(lambda: 1 // 0)
    assert not left_behind()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_noted_signal_leaves_the_call_behind(blocked, number):
    with stop_on_signal() as stop:
        later(0.1, number)
        begun = time.monotonic()
        with pytest.raises(Abandoned):
            interruptible(blocked, grace=0.2)
        assert 0.3 <= time.monotonic() - begun < 2
        assert stop.signal == number.name
        assert left_behind()
        with pytest.raises(Abandoned):  # nothing begins after it
            interruptible(lambda: pytest.fail("began"))


def test_a_call_that_ends_in_its_grace_keeps_its_result():
    with stop_on_signal():
        later(0.1, signal.SIGTERM)
        assert interruptible(lambda: time.sleep(0.4) or 3, grace=30) == 3


def test_ctrl_c_where_nothing_notes_it_is_an_interrupt_at_once(blocked):
    later(0.1, signal.SIGINT)
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        interruptible(blocked)
    assert time.monotonic() - begun < 1


def test_of_several_processes_none_leaves_a_call(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert interruptible(threading.current_thread) is threading.main_thread()


def test_items_come_in_order_each_when_it_is_asked_for():
    asked = []

    def items():
        for i in range(4):
            asked.append(i)
            yield i
        raise ValueError("broken")

    read = read_interruptibly(items())
    assert [next(read), next(read)] == [0, 1]
    assert asked == [0, 1]  # none is read ahead, so that a position after an item is that of the item
    assert [next(read), next(read)] == [2, 3]
    with pytest.raises(ValueError, match="broken"):
        next(read)
    assert list(read_interruptibly(iter("ab"))) == ["a", "b"]


def test_a_noted_signal_leaves_a_stalled_read_behind(blocked):
    read = read_interruptibly(iter([lambda: 1, blocked]), grace=0.2)
    calls = read_interruptibly((call() for call in (lambda: 1, blocked)), grace=0.2)
    assert next(read)() == next(calls) == 1
    with stop_on_signal():
        later(0.2, signal.SIGTERM)
        begun = time.monotonic()
        with pytest.raises(Abandoned):
            next(calls)
    assert time.monotonic() - begun < 2
    assert left_behind()


def test_signals_that_run_past_the_end_of_a_wait_do_not_make_it_endless(monkeypatch):
    """A handler of 3 ms that begins at some moment of a wait of 20 ms, and at its end."""
    monkeypatch.setattr(module, "_POLL", 0.02)
    monkeypatch.setattr(module.faults, "stop_asked", lambda: True)
    before = signal.signal(signal.SIGALRM, lambda *_: time.sleep(0.003))
    ended = threading.Event()
    try:
        for i in range(40):
            read = read_interruptibly((ended.wait(20) for _ in range(1)), grace=0.01)
            signal.setitimer(signal.ITIMER_REAL, 0.0175 + 0.0001 * i)
            begun = time.monotonic()
            with pytest.raises(Abandoned):
                next(read)
            assert time.monotonic() - begun < 5
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        ended.set()
    while left_behind():
        time.sleep(0.01)


def test_outside_of_the_main_thread_it_is_the_call_itself():
    found = []
    thread = threading.Thread(target=lambda: found.append(interruptible(threading.current_thread)))
    thread.start()
    thread.join()
    assert found == [thread]


def test_a_signal_waits_for_the_end_of_what_is_not_to_be_cut():
    reached = []

    def work():
        with uninterrupted():
            os.kill(os.getpid(), signal.SIGINT)
            assert module.cannot_be_cut()
            reached.append(True)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert reached
    assert not module.cannot_be_cut()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_program_compiles_once_for_each_shape_of_batch_in_a_call_that_can_be_left(monkeypatch):
    traced, cut = [], []
    monkeypatch.setattr(module, "interruptible", lambda call: cut.append(1) or call())
    program = module.compiled_first(jax.jit(lambda state, batch: traced.append(batch["x"].shape) or batch["x"].sum()))
    for length in (2, 3, 2, 2, 4, 3):
        assert program(0.0, {"x": jax.numpy.ones(length)}) == length
    assert traced == [(2,), (3,), (4,)]
    assert len(cut) == 3
