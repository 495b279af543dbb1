"""A run that goes on with other devices or processes trains on the same examples, with the same losses."""

import contextlib
import importlib.util
import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

from diffusion_jax import experiment
from diffusion_jax.cli.main import main
from diffusion_jax.data.order import example_indices
from diffusion_jax.report.examples import read_examples
from diffusion_jax.report.metrics import read_metrics
from diffusion_jax.train import faults, sharding

ROOT = Path(__file__).parents[2]
STEPS, BATCH = 50, 16

SMALL = {
    "model.channels": 4,
    "model.groups": 2,
    "model.blocks": 0,
    "data.flip": True,
    "data.log_examples": True,
    "log_every": 1,
    "checkpoint.every": 0,
    "sample.every": 0,
    "train.steps": STEPS,
}

spec = importlib.util.spec_from_file_location("local", ROOT / "launch" / "local.py")
local = importlib.util.module_from_spec(spec)
spec.loader.exec_module(local)


def arguments(workdir, **changes):
    options = SMALL | {key.replace("__", "."): value for key, value in changes.items()}
    flags = [f"--config.{key}={value}" for key, value in options.items()]
    return ["train", f"--config={ROOT / 'configs/tiny.py'}", f"--workdir={workdir}", *flags]


@contextlib.contextmanager
def devices(count):
    """Within, training sees so many."""
    whole = experiment.mesh
    experiment.mesh = lambda config: sharding.mesh(
        **{axis: config.mesh[axis] for axis in sharding.AXES}, devices=jax.devices()[:count]
    )
    try:
        yield
    finally:
        experiment.mesh = whole


def train(workdir, count, **changes):
    with devices(count):
        assert main(arguments(workdir, **changes)) == 0


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """Fifty steps on one device."""
    root = tmp_path_factory.mktemp("one")
    train(root, 1)
    return root


def assert_same(root, reference, tolerance):
    losses, expected = ([r["loss"] for r in read_metrics(path / "metrics.jsonl")] for path in (root, reference))
    assert len(expected) == STEPS
    assert losses == pytest.approx(expected, abs=tolerance, rel=0)
    assert read_examples(root / "examples") == read_examples(reference / "examples")


def test_the_log_of_examples_is_the_stream(one):
    logged = read_examples(one / "examples")
    assert list(logged) == list(range(1, STEPS + 1))
    assert list(itertools.chain(*logged.values())) == example_indices(0, 1797, 0, STEPS * BATCH).tolist()


@pytest.mark.slow
def test_eight_then_four_then_one_device(one, tmp_path):
    for count, steps, threads in ((8, 16, 4), (4, 32, 1), (1, STEPS, 2)):
        train(tmp_path, count, train__steps=steps, data__threads=threads)
    assert_same(tmp_path, one, 1e-5)


@pytest.mark.slow  # what is split is tests/train/sharding_test.py's
def test_zero_is_the_same_run_with_its_averages_split(one, tmp_path):
    """ZeRO: the optimizer's state and the average on eight devices, the parameters whole on each."""
    train(tmp_path, 8, train__steps=25, mesh__zero=True)
    table = (tmp_path / "parameters.txt").read_text()
    assert "shape" in table
    assert "layout" in table
    train(tmp_path, 1)  # and its checkpoint is anyone's
    assert_same(tmp_path, one, 1e-5)


class Pair:
    """Two processes of one run on loopback."""

    def __init__(self, workdir, cache, **changes):
        port = local.free_port()
        base = os.environ | {
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "PYTHONPATH": str(ROOT),
        }
        self.workdir, self.processes, self.files = workdir, [], []
        for i in range(2):
            self.files.append((workdir.parent / f"{workdir.name}.{i}.txt").open("w"))
            self.processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", "diffusion_jax", *arguments(workdir, **changes)],
                    env=local.environment(base, port, 2, i),
                    stdout=self.files[-1],
                    stderr=subprocess.STDOUT,
                )
            )

    def said(self, process):
        return Path(self.files[process].name).read_text()

    def until_step(self, step, timeout=500):
        """Returns once process 0 was given the batch of that step."""
        log, deadline = self.workdir / "examples" / "00000.jsonl", time.monotonic() + timeout
        while not (log.is_file() and log.read_text().count("\n") >= step):
            assert time.monotonic() < deadline, self.said(0) + self.said(1)
            assert all(process.poll() is None for process in self.processes), self.said(0) + self.said(1)
            time.sleep(0.01)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for process in self.processes:
            process.kill()
            process.wait()
        for file in self.files:
            file.close()


def test_two_processes_are_one_and_both_save_the_step_at_which_one_was_stopped(one, tmp_path):
    """A SIGTERM to one of two; the run goes on alone from where both were."""
    root = tmp_path / "run"
    with Pair(root, os.environ["JAX_COMPILATION_CACHE_DIR"]) as pair:
        pair.until_step(5)
        pair.processes[1].send_signal(signal.SIGTERM)
        assert [process.wait(timeout=200) for process in pair.processes] == [0, 0], pair.said(0) + pair.said(1)
        (stopped,) = (int(path.name) for path in (root / "checkpoints").iterdir())
        assert 5 <= stopped < STEPS
        for i in range(2):
            assert f"after {stopped} steps" in pair.said(i)
    train(root, 1)
    assert_same(root, one, 1e-6)


@pytest.mark.slow
def test_two_processes_are_one_to_the_end(one, tmp_path):
    root = tmp_path / "run"
    with Pair(root, tmp_path / "cache") as pair:
        assert [process.wait(timeout=500) for process in pair.processes] == [0, 0]
    assert_same(root, one, 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_one_of_two_that_is_killed_ends_the_other(tmp_path, killed):
    with Pair(tmp_path / "run", tmp_path / "cache", train__steps=10**6) as pair:
        pair.until_step(5)
        pair.processes[killed].kill()
        began = time.monotonic()
        assert pair.processes[1 - killed].wait(timeout=30) not in (0, None)
        print(f"process {killed} killed: the other ended after {time.monotonic() - began:.1f} s with", end=" ")
        print(pair.processes[1 - killed].returncode)


@pytest.mark.slow
@pytest.mark.parametrize("stopped", [0, 1])
def test_one_of_two_that_hangs_ends_the_other_with_75(tmp_path, stopped):
    with Pair(tmp_path / "run", tmp_path / "cache", train__steps=10**6, train__hang_seconds=5) as pair:
        pair.until_step(5)
        pair.processes[stopped].send_signal(signal.SIGSTOP)
        began = time.monotonic()
        assert pair.processes[1 - stopped].wait(timeout=60) == faults.HANG, pair.said(1 - stopped)
        print(f"process {stopped} stopped: the other ended after {time.monotonic() - began:.1f} s")


@pytest.mark.slow
def test_two_processes_with_other_configs_do_not_begin(tmp_path):
    """Each says which process and which field."""
    root = tmp_path / "run"
    with Pair(root, tmp_path / "cache") as pair:
        pair.processes[1].kill()
        pair.processes[0].kill()
    port = local.free_port()
    base = os.environ | {"PYTHONPATH": str(ROOT)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "diffusion_jax", *arguments(root, train__batch_size=16 * (i + 1))],
            env=local.environment(base, port, 2, i),
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    said = [process.communicate(timeout=60)[1] for process in processes]
    assert [process.returncode for process in processes] == [2, 2], said
    for text in said:
        assert "do not agree: process 1 (" in text
        assert "train.batch_size 32, the others 16" in text
    assert not (root / "checkpoints").exists()
