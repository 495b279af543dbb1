"""One run trains in a workdir at a time; one that ends before its first step leaves it as it was."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from diffusion_jax.cli.main import main
from diffusion_jax.config import base, to_json
from diffusion_jax.errors import UserError
from diffusion_jax.runs.workdir import lock as workdir_lock
from diffusion_jax.runs.workdir.lock import NAME, training_in

ROOT = Path(__file__).parents[2]
TINY = f"--config={ROOT / 'configs/tiny.py'}"

HOLD = """
import sys, time
from pathlib import Path
from diffusion_jax.runs.workdir.lock import training_in
with training_in(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def other(tmp_path):
    """Another process that trains in tmp_path / run."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
    ) as one:
        assert one.stdout.readline() == "held\n"
        yield one
        one.kill()


def test_a_second_run_is_told_of_the_first_until_that_is_killed(other, tmp_path, capsys):
    root = tmp_path / "run"
    assert main(["train", TINY, f"--workdir={root}"]) == 2
    error = capsys.readouterr().err
    assert f"{root} is being trained by process {other.pid} on {os.uname().nodename} since 20" in error
    assert error.endswith("wait for it, stop it, or give another --workdir\n")
    assert [file.name for file in root.iterdir()] == [NAME]
    other.send_signal(signal.SIGKILL)
    other.wait()
    with training_in(root) as training:
        assert json.loads((root / NAME).read_text())["pid"] == os.getpid()
        training.begun = True
    assert not list(root.iterdir())


def test_many_that_take_turns_are_never_two(tmp_path):
    """Also where one takes the file away while another waits to lock it."""
    inside, most, turns = [], [], []

    def run():
        while len(turns) < 200:
            try:
                with training_in(tmp_path):
                    inside.append(1)
                    most.append(len(inside))
                    turns.append(1)
                    inside.pop()
            except UserError:
                pass

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(most) == {1}


def test_a_file_system_without_locks_is_said_and_trusted(tmp_path, monkeypatch, capsys):
    def refuse(descriptor, how):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(workdir_lock.fcntl, "flock", refuse)
    with training_in(tmp_path):
        pass
    assert "cannot be locked (No locks available); see to it that no other run trains there" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_of_several_processes_the_first_has_the_lock(tmp_path, monkeypatch):
    with training_in(tmp_path):
        monkeypatch.setattr("jax.process_index", lambda: 1)
        with training_in(tmp_path) as training:
            assert not training.begun
        monkeypatch.setattr("jax.process_index", lambda: 0)
        with pytest.raises(UserError), training_in(tmp_path):  # the second process did not take the lock from it
            pass


@pytest.mark.parametrize("begun", [False, True])
def test_what_an_error_leaves(tmp_path, begun):
    """Before the first step: what was there. After it: all."""
    root = tmp_path / "above" / "run"

    def fail():
        with training_in(root) as training:
            (root / "config.json").write_text("new")
            (root / "checkpoints").mkdir(exist_ok=True)
            training.begun = begun
            raise UserError("the data cannot be read")

    with pytest.raises(UserError):
        fail()
    assert (tmp_path / "above").exists() == begun
    root.mkdir(parents=True, exist_ok=True)
    (root / "config.json").write_text("old")
    (root / "log.txt").write_text("of a sweep")
    with pytest.raises(UserError):
        fail()
    found = {path.name: path.is_file() and path.read_text() for path in root.iterdir()}
    assert found == {"config.json": "new" if begun else "old", "log.txt": "of a sweep"} | (
        {"checkpoints": False} if begun else {}
    )


def test_a_run_whose_start_fails_leaves_nothing(tmp_path, capsys):
    """One that is to start with the parameters of a run that has no checkpoint."""
    (tmp_path / "other" / "checkpoints").mkdir(parents=True)
    (tmp_path / "other" / "config.json").write_text(to_json(base()))
    assert main(["train", TINY, f"--workdir={tmp_path}/new/run", f"--config.init_from={tmp_path}/other"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "new").exists()
