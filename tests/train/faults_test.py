"""Signals and hangs, on real processes that do nothing else."""

import os
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

from diffusion_jax.train import faults

COMPILING = """
import hashlib
from diffusion_jax.train.faults import stop_on_signal
with stop_on_signal() as stop:
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)  # no Python handler runs while the main thread is in here
"""

HANGING = """
import sys, time
from pathlib import Path
from diffusion_jax.train.faults import Watchdog
def stuck():
    time.sleep(60)
with Watchdog(0.5, Path(sys.argv[1])) as watchdog:
    for _ in range(8):  # longer than one budget together
        with watchdog.phase("step"):
            time.sleep(0.1)
    with watchdog.phase("sample"):  # has ten times as much
        time.sleep(1)
    time.sleep(1)  # in no phase at all
    print("alive", flush=True)
    with watchdog.phase("save"):
        stuck()
"""


STEPPING = """
import sys, time
import jax
address, process = sys.argv[1], int(sys.argv[2])
jax.distributed.initialize(address, 2, process)
from diffusion_jax.train.faults import stop_on_signal
with stop_on_signal() as stop:
    dispatch = 0
    while not stop.agreed(dispatch):
        dispatch += 1
        time.sleep(0.01 * process)
        if dispatch == 9:
            print("ready", flush=True)
print("stopped", dispatch, stop.signal, flush=True)
"""


def python(code, *arguments):
    code = f"import signal; signal.alarm(90)\n{code}"  # ends even what no handler reaches
    command = [sys.executable, "-c", code, *map(str, arguments)]
    environment = os.environ | {"XLA_FLAGS": ""}  # one device
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def test_one_sigterm_is_noted_at_once_and_a_second_ends_at_once():
    """Also while the main thread compiles."""
    with python(COMPILING) as process:
        try:
            assert process.stdout.readline() == "ready\n"
            time.sleep(0.5)  # for it to be in there
            process.send_signal(signal.SIGTERM)
            assert process.stderr.readline() == "diffusion-jax: SIGTERM: saving after the step under way\n"
            assert process.poll() is None
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=10) == 128 + signal.SIGTERM
        finally:
            process.kill()


def test_a_hang_ends_with_status_75_and_every_stack(tmp_path):
    with python(HANGING, tmp_path / "stacks.txt") as process:
        try:
            out, error = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, out) == (faults.HANG, "alive\n")
    assert error.startswith("diffusion-jax: save took more than 0.5 s")
    assert error.count("\n") == 1
    assert "in stuck" in (tmp_path / "stacks.txt").read_text()


def test_two_processes_of_which_one_gets_a_sigterm_stop_after_the_same_step():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    with python(STEPPING, address, 0) as first, python(STEPPING, address, 1) as second:
        try:
            while second.stdout.readline() not in ("ready\n", ""):
                pass
            second.send_signal(signal.SIGTERM)
            out = [process.communicate(timeout=60)[0].splitlines()[-1].split() for process in (first, second)]
        finally:
            first.kill()
            second.kill()
    assert out[0][:2] == out[1][:2]
    assert [words[2] for words in out] == ["None", "SIGTERM"]
    assert int(out[0][1]) >= 9


def test_signals_are_as_before_afterwards():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with faults.stop_on_signal() as stop:
        assert not stop.agreed(1)
        signal.raise_signal(signal.SIGTERM)
        assert stop.agreed(1)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    assert signal.set_wakeup_fd(-1) == -1


@pytest.mark.parametrize(("seconds", "every"), [(0.25, 8), (30.0, 1), (0.001, 32)])
@pytest.mark.parametrize("others", [False, True])
def test_many_processes_stop_together(monkeypatch, others, seconds, every):
    """Whichever was asked, at the same dispatch, for the slowest's time decides how often they ask: every 2 s or so."""
    clock, asked = [0.0], []

    def allgather(mine):
        asked.append((dispatch, bool(mine[0])))
        return np.stack([mine, np.float32([others, seconds]), np.float32([False, seconds / 2])])

    monkeypatch.setattr(jax, "process_count", lambda: 3)
    monkeypatch.setattr(multihost_utils, "process_allgather", allgather)
    monkeypatch.setattr(faults.time, "monotonic", lambda: clock[0])
    stop = faults.Stop()
    for dispatch in range(65):
        clock[0] = dispatch * 1e-5  # of this process, which is fast
        assert stop.agreed(dispatch) == (others and dispatch % every == 0)
    assert asked == [(n, False) for n in range(0, 65, every)]
    stop.signal = "SIGTERM"
    dispatch = 96
    assert stop.agreed(dispatch)
    dispatch = 0
    assert stop.agreed(dispatch), "a loop that begins anew asks at once"
