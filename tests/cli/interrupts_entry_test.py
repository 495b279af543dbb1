"""Signals that a command does not note itself become exceptions, wherever they find Python."""

import os
import signal
import time

import pytest

from diffusion_jax.cli import interrupts


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, interrupts.Terminated)]
)
def test_a_signal_is_an_exception_with_its_status_and_the_handlers_come_back(capsys, monkeypatch, number, error):
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]

    def interrupted():
        with interrupts.ending_on_signal():
            os.kill(os.getpid(), number)
            time.sleep(5)

    # The thread that ends a process which cannot be interrupted has no process to end here.
    monkeypatch.setattr(interrupts.threading.Thread, "start", lambda self: None)
    with pytest.raises(error) as raised:
        interrupted()
    assert interrupts.stopped(raised.value) == 128 + number
    assert capsys.readouterr().err == f"diffusion-jax: stopped by {number.name}\n"
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before


class Finalized:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        self.seen = True  # the handler runs in this frame, whose exceptions Python prints and drops


def test_a_signal_that_finds_a_finalizer_running_comes_again():
    signal.signal(signal.SIGINT, interrupts._raise)

    def run():
        one = Finalized()
        del one
        time.sleep(5)

    try:
        with pytest.raises(KeyboardInterrupt):
            run()
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
