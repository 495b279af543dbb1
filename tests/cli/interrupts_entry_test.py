"""Signals that a command does not note itself become exceptions, wherever they find Python."""

import os
import signal
import subprocess
import sys
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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_finds_an_import_running_ends_the_process_at_once(tmp_path, number):
    """Some modules turn every exception of their imports into one of their own, which would be told as the user's."""
    (tmp_path / "module.py").write_text(
        "import os, time\n"
        "try:\n"
        f"    os.kill(os.getpid(), {int(number)})\n"
        "    time.sleep(5)\n"
        "except BaseException:\n"
        "    raise ImportError('a library is missing')\n"
    )
    code = "from diffusion_jax.cli import interrupts\nwith interrupts.ending_on_signal():\n    import module"
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{os.getcwd()}"}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=30)
    assert run.returncode == 128 + number
    assert run.stderr == f"diffusion-jax: stopped by {number.name}\n"


def test_the_console_script_imports_no_command_before_it_is_ready_for_a_signal():
    code = "import sys, diffusion_jax.cli.entry\nprint({'absl', 'ml_collections', 'numpy', 'jax'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert run.stdout == "set()\n"
