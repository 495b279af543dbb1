"""The launcher of several processes on one machine, with processes that do nothing else."""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

FILE = Path(__file__).parents[2] / "launch" / "local.py"

spec = importlib.util.spec_from_file_location("local", FILE)
local = importlib.util.module_from_spec(spec)
spec.loader.exec_module(local)


def launched(code, processes=2, grace=10.0):
    """The launcher's own process, of which each child runs code."""
    run = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("local", {str(FILE)!r})
local = importlib.util.module_from_spec(spec)
spec.loader.exec_module(local)
sys.exit(local.run([sys.executable, "-u", "-c", {code!r}], {processes}, grace={grace}))
"""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-c", run], text=True, **pipes)


def test_each_is_told_its_place_and_its_lines_say_whose_they_are():
    code = """
import os, sys
print(*[os.environ[f"JAX_{name}"] for name in ("COORDINATOR_ADDRESS", "NUM_PROCESSES", "PROCESS_ID", "PLATFORMS")])
print("no newline", end="", file=sys.stderr)
"""
    with launched(code, processes=3) as process:
        out, error = process.communicate(timeout=60)
    assert process.returncode == 0
    lines = sorted(out.splitlines())
    assert [line.split()[0] for line in lines] == ["[0]", "[1]", "[2]"]
    assert [line.split()[2:] for line in lines] == [["3", str(i), "cpu"] for i in range(3)]
    (address,) = {line.split()[1] for line in lines}
    assert address.startswith("127.0.0.1:")
    assert sorted(error.splitlines()) == [f"[{i}] no newline" for i in range(3)]


def test_the_first_bad_status_is_its_own_and_ends_the_others():
    """Even one that does not listen to SIGTERM."""
    code = """
import os, signal, sys, time
if os.environ["JAX_PROCESS_ID"] == "1":
    time.sleep(0.3)
    sys.exit(7)
if os.environ["JAX_PROCESS_ID"] == "2":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
time.sleep(60)
"""
    began = time.monotonic()
    with launched(code, processes=3, grace=0.5) as process:
        _, error = process.communicate(timeout=60)
    assert process.returncode == 7
    assert "a process ended with status 7; ending the others" in error
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_all_of_them(number):
    code = f"""
import signal, sys, time
def received(number, frame):
    print("received", number)
    sys.exit(0)
signal.signal({int(number)}, received)
print("ready")
while True:  # In short sleeps: a signal amid print's end and a sleep's begin is handled at the sleep's end.
    time.sleep(0.05)
"""
    with launched(code) as process:
        for _ in range(2):
            assert "ready" in process.stdout.readline()
        process.send_signal(number)
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert sorted(out.splitlines()) == [f"[{i}] received {int(number)}" for i in range(2)]


def test_one_device_a_process_whatever_the_environment_says():
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    told = local.environment({"XLA_FLAGS": flags, "JAX_PLATFORMS": "cuda"}, 1234, 2, 1)
    assert told["XLA_FLAGS"].split() == [
        "--xla_backend_optimization_level=0",
        "--xla_force_host_platform_device_count=1",
    ]
    assert told["JAX_PLATFORMS"] == "cuda"


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--processes=0", "--", "train"], "--processes=0 is at least 1"),
        (["--processes=2"], "the following arguments are required: arguments"),
        (["--", "train"], "--processes"),
        (["--processes=two", "--", "train"], "invalid int value: 'two'"),
    ],
)
def test_what_is_not_understood_is_status_2(flags, says):
    run = subprocess.run([sys.executable, str(FILE), *flags], capture_output=True, text=True, env=os.environ)
    assert run.returncode == 2
    assert says in run.stderr
