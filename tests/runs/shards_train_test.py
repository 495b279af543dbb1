"""Runs on shards by the command: one that is killed and goes on, and one of two processes, are the same run."""

import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from diffusion_jax.report.examples import read_examples
from diffusion_jax.report.metrics import read_metrics

ROOT = Path(__file__).parents[2]
STEPS = 24

spec = importlib.util.spec_from_file_location("shard_files", ROOT / "tests" / "data" / "shard_files.py")
files = importlib.util.module_from_spec(spec)
spec.loader.exec_module(files)

OPTIONS = {
    "data.shape": (8, 8, 1),
    "data.flip": True,
    "data.cache": False,
    "data.log_examples": True,
    "data.shuffle_bytes": 2500,  # a third of the row groups
    "model.channels": 4,
    "model.groups": 2,
    "model.blocks": 0,
    "model.num_classes": 3,
    "train.steps": STEPS,
    "log_every": 1,
    "checkpoint.every": 4,
    "sample.every": 0,
}


def command(source, workdir, *start):
    flags = [f"--config.{key}={value}" for key, value in (OPTIONS | {"data.source": source}).items()]
    return [sys.executable, *start, "train", f"--config={ROOT}/configs/tiny.py", f"--workdir={workdir}", *flags]


def run(command, environment):
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def assert_same(root, reference):
    losses, expected = ([r["loss"] for r in read_metrics(path / "metrics.jsonl")] for path in (root, reference))
    assert len(expected) == STEPS
    assert losses == pytest.approx(expected, abs=1e-6, rel=0)
    assert read_examples(root / "examples") == read_examples(reference / "examples")
    read = [record["input_bytes"] for record in read_metrics(root / "metrics.jsonl") if "input_bytes" in record]
    assert read
    assert max(read) > 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", files.KINDS)
def test_a_killed_run_goes_on_exactly_and_two_processes_are_one(tmp_path, one_device, kind):
    files.WRITE[kind](tmp_path / "shards", 60, shards=3)
    source, environment = f"{kind}:{tmp_path}/shards", one_device | {"PYTHONPATH": str(ROOT)}
    environment["DIFFUSION_JAX_CACHE"] = str(tmp_path / "cache")
    said = run(command(source, tmp_path / "one", "-m", "diffusion_jax"), environment).stdout
    assert "data: 60 images of 4 x 6 gray: shorter side to 8" in said

    killed = subprocess.Popen(
        command(source, tmp_path / "killed", "-m", "diffusion_jax"),
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    log, deadline = tmp_path / "killed" / "examples" / "00000.jsonl", time.monotonic() + 300
    while not (log.is_file() and log.read_text().count("\n") >= 10):
        assert time.monotonic() < deadline
        assert killed.poll() is None
        time.sleep(0.01)
    killed.kill()
    killed.wait()
    run(command(source, tmp_path / "killed", "-m", "diffusion_jax"), environment)
    assert_same(tmp_path / "killed", tmp_path / "one")

    two = command(source, tmp_path / "two", f"{ROOT}/launch/local.py", "--processes=2", "--")
    run(two, environment | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled")})
    assert_same(tmp_path / "two", tmp_path / "one")
    assert sorted(os.listdir(tmp_path / "two" / "examples")) == ["00000.jsonl", "00001.jsonl"]
