"""The command as a user runs it: shown, handed over, refused; and the worker, with a real run and a real signal."""

import os
import shlex
import signal
import threading
import time
from pathlib import Path

import pytest
import yaml

from diffusion_jax.cli.main import main

ROOT = Path(__file__).parents[2]
CONFIG = f"--config={ROOT / 'configs' / 'tiny.py'}"
SMALL = [
    "--config.model.channels=4",
    "--config.train.batch_size=8",
    "--config.sample.every=0",
    "--config.checkpoint.every=5",
]
GPUS = ["--gpu=H100", "--gpus=8", "--bucket=b"]


def launch(*words):
    return main(["launch", *words])


def test_a_dry_run_shows_the_file_and_writes_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert launch("slurm", "--nodes=2", "--gpus=8", "--dry-run", "--", "train", CONFIG, "--workdir=a b") == 0
    shown = capsys.readouterr().out
    assert "#SBATCH --nodes=2" in shown
    assert "train" in shown
    assert not list(tmp_path.iterdir())
    made_by = shown.splitlines()[1].removeprefix("# diffusion-jax ")
    assert main(shlex.split(made_by)) == 0  # the file says by which command it is made
    assert capsys.readouterr().out == shown


def test_a_config_may_be_named_as_for_train_and_the_job_names_it_too(capsys):
    line = ("train", "--config=tiny", "--workdir=a")
    assert launch("slurm", "--nodes=2", "--gpus=8", "--time=1:00:00", "--dry-run", "--", *line) == 0
    assert "train --config=tiny --workdir=a" in capsys.readouterr().out


def test_a_file_is_written_where_it_is_asked_for(tmp_path, capsys):
    out = tmp_path / "deep/task.yaml"
    line = ["--", "train", CONFIG, "--workdir=/runs/x"]
    assert launch("sky", "--name=mine", *GPUS, "--dry-run", f"--out={out}", *line) == 0
    assert yaml.safe_load(out.read_text())["name"] == "mine"
    assert str(out) in capsys.readouterr().out


@pytest.mark.parametrize(
    ("target", "flags", "tool", "words"),
    [
        ("slurm", [], "sbatch", "tiny.sbatch"),
        ("jobset", ["--topology=v5e:2x2", "--image=i", "--bucket=b"], "kubectl", "apply -f tiny.yaml"),
        ("sky", GPUS, "sky", "jobs launch tiny.yaml"),
        ("tpu_vm", ["--topology=v5e:2x2", "--project=p", "--zone=z"], "bash", "tiny.sh"),
    ],
)
def test_a_file_is_handed_to_what_takes_it(target, flags, tool, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    line = ["--", "train", CONFIG, "--workdir=/runs/x"]
    assert launch(target, *flags, *line) == 2  # there is no such tool
    assert not list(tmp_path.glob("tiny*"))
    (tmp_path / tool).write_text(f'#!/bin/sh\necho "$@" >{tmp_path}/called\nexit 5\n')
    (tmp_path / tool).chmod(0o755)
    assert launch(target, *flags, *line) == 5
    assert (tmp_path / "called").read_text().strip() == words
    assert "worker" in (tmp_path / words.split()[-1]).read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "launch is written: diffusion-jax launch TARGET --flags -- train"),
        (["slurm", "--", "sample", "--workdir=w"], "launch is written:"),
        (
            ["moon", "--", "train", CONFIG, "--workdir=w"],
            "unknown target 'moon'; choose from slurm, tpu_vm, jobset, sky",
        ),
        (["slurm", "--", "train", "--config=absent.py", "--workdir=w"], "no config file absent.py"),
        (["slurm", "--", "train", CONFIG], "train needs --config=FILE and --workdir=FOLDER"),
        (["slurm", "--", "train", CONFIG, "--workdir=w", "--config.typo=1"], "typo"),
        (["slurm", "--", "train", CONFIG, "--workdir=w", "--stepz=1"], "Unknown command line flag 'stepz'"),
        (["slurm", "--", "train", CONFIG, "--workdir=w", "extra"], "unexpected argument 'extra'"),
        (
            ["slurm", "--image=i", "--", "train", CONFIG, "--workdir=w"],
            "launch slurm takes no --image; it takes --nodes",
        ),
        (["sky", *GPUS, "--restarts=3", "--", "train", CONFIG, "--workdir=/runs/x"], "launch sky takes no --restarts"),
        (["slurm", "--nodes=two", "--", "train", CONFIG, "--workdir=w"], "invalid literal for int()"),
        (
            ["tpu_vm", "--topology=v5e:4x4", "--", "train", CONFIG, "--workdir=w"],
            "launch tpu_vm needs --project, --zone",
        ),
        (
            ["tpu_vm", "--topology=v7:1x1", "--project=p", "--zone=z", "--", "train", CONFIG, "--workdir=w"],
            "unknown topology 'v7:1x1'; known are v5e:",
        ),
        (["sky", *GPUS, "--", "train", CONFIG, "--workdir=w"], "so --workdir is /runs/...; got w"),
    ],
)
def test_what_cannot_be_started_is_one_sentence(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert launch(*words) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.slow  # two whole trainings
def test_the_status_of_a_worker_says_whether_it_is_done(tmp_path):
    """A real run, told to stop by a real signal: 75, start it again; once it has all its steps: 0."""
    work = tmp_path / "work"
    line = ["worker", "--", "train", CONFIG, f"--workdir={work}", *SMALL]

    def stop_after_a_checkpoint():
        deadline = time.monotonic() + 600
        while not (work / "checkpoints" / "5").is_dir() and time.monotonic() < deadline:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop_after_a_checkpoint)
    thread.start()
    status = launch(*line, "--config.train.steps=1000000")
    thread.join()
    assert status == 75
    saved = max(int(path.name) for path in (work / "checkpoints").iterdir() if path.name.isdecimal())
    assert 5 <= saved < 1000000
    assert launch(*line, f"--config.train.steps={saved}") == 0


def test_a_mistake_of_the_user_is_the_workers_status(tmp_path, capsys):
    assert launch("worker", "--", "train", CONFIG, f"--workdir={tmp_path}", "--config.schedule=none") == 2
    assert "schedule" in capsys.readouterr().err


@pytest.mark.parametrize("file", sorted((ROOT / "launch").glob("*.[!p]*")), ids=lambda file: file.name)
def test_the_files_to_use_by_hand_are_what_their_first_line_makes(file, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    lines = file.read_text().splitlines()
    command = next(line for line in lines[:2] if line.startswith("# diffusion-jax "))
    assert main(shlex.split(command.removeprefix("# diffusion-jax "))) == 0
    assert capsys.readouterr().out == file.read_text()
