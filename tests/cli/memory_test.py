"""The process starts anew once, as it was, and only where that is of use."""

import os
import platform
import signal
import subprocess
import sys

import pytest

from diffusion_jax.cli.memory import HUGE_PAGES, ask_for_huge_pages

SHOW = """
import os, sys
from diffusion_jax.cli.memory import ask_for_huge_pages
print("start", flush=True)
ask_for_huge_pages()
print(os.getpid(), os.environ.get("GLIBC_TUNABLES"), *sys.argv[1:])
"""


def show(tmp_path, *arguments, **environ):
    """pid started, starts, and what the last of them printed."""
    script = tmp_path / "show.py"
    script.write_text(SHOW)
    kept = {key: value for key, value in os.environ.items() if key != "GLIBC_TUNABLES"}
    process = subprocess.Popen(
        [sys.executable, str(script), *arguments], env=kept | environ, text=True, stdout=subprocess.PIPE
    )
    out = process.communicate()[0].splitlines()
    assert process.returncode == 0
    return process.pid, out.count("start"), out[-1]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library has no such setting")
def test_once_with_the_same_words_and_the_same_process(tmp_path):
    pid, starts, line = show(tmp_path, "--a=b c", "")
    assert starts == 2
    assert line == f"{pid} {HUGE_PAGES} --a=b c "


def test_a_users_own_setting_is_kept(tmp_path):
    for own in ("", "glibc.malloc.check=0"):
        pid, starts, line = show(tmp_path, GLIBC_TUNABLES=own)
        assert (starts, line) == (1, f"{pid} {own}")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library has no such setting")
def test_a_signal_between_the_two_starts_waits_for_the_handler(tmp_path):
    """Sent as the second interpreter starts, which would answer it by a traceback."""
    (tmp_path / "show.py").write_text(
        "import os, signal\n"
        "if 'GLIBC_TUNABLES' in os.environ: os.kill(os.getpid(), signal.SIGINT)\n"
        "from diffusion_jax.cli import interrupts, memory\n"
        "memory.ask_for_huge_pages()\n"
        "try:\n"
        "    with interrupts.ending_on_signal(): print('not stopped')\n"
        "except KeyboardInterrupt as interrupt: raise SystemExit(interrupts.stopped(interrupt))\n"
    )
    kept = {key: value for key, value in os.environ.items() if key != "GLIBC_TUNABLES"}
    run = subprocess.run([sys.executable, str(tmp_path / "show.py")], env=kept, capture_output=True, text=True)
    assert (run.returncode, run.stdout, run.stderr) == (130, "", "diffusion-jax: stopped by SIGINT\n")


@pytest.fixture
def started(monkeypatch, tmp_path):
    """What was started anew, of a process that would be."""
    script = tmp_path / "diffusion-jax"
    script.touch()
    calls = []
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.setattr(sys, "argv", [str(script), "train"])
    monkeypatch.setattr(sys, "orig_argv", ["python", str(script), "train"])
    monkeypatch.setattr(os, "execve", lambda *call: calls.append(call))
    return calls


def test_as_a_script_and_as_a_module(started, monkeypatch):
    ask_for_huge_pages()
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "diffusion_jax", "train"])
    ask_for_huge_pages()
    assert [command[1:] for _, command, _ in started] == [sys.argv, ["-m", "diffusion_jax", "train"]]


@pytest.mark.parametrize(
    ("argv", "orig_argv"),
    [
        (["diffusion-jax", "train"], ["python", "driver.py"]),  # forked, or given other words
        (["diffusion-jax"], ["python", "driver.py"]),
        (["-", "train"], ["python", "-", "train"]),  # the program came down a pipe and is gone
        (["-c", "train"], ["python", "-c", "entry()", "train"]),
    ],
)
def test_a_process_that_cannot_be_started_again_stays(started, monkeypatch, argv, orig_argv):
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(sys, "orig_argv", orig_argv)
    ask_for_huge_pages()
    assert started == []


def test_not_with_another_c_library(started, monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    ask_for_huge_pages()
    assert started == []


@pytest.mark.parametrize("error", [OSError(7, "Argument list too long"), PermissionError(1, "Operation not permitted")])
def test_a_start_that_the_system_refuses_is_no_fault(started, monkeypatch, error):
    refused = []

    def refuse(*call):
        refused.append(call)
        raise error

    monkeypatch.setattr(os, "execve", refuse)
    ask_for_huge_pages()
    assert len(refused) == 1
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()
    monkeypatch.setattr(os, "execve", os.fspath)  # raises TypeError, as where Python does not know its own path
    ask_for_huge_pages()
