"""A run that is killed again and again, and simply started again, ends with the bits of one that was left alone."""

import collections
import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from faults_driver import digest

from diffusion_jax.data.order import example_indices
from diffusion_jax.report.examples import read_examples
from diffusion_jax.report.metrics import read_metrics
from diffusion_jax.train import manifest

ROOT = Path(__file__).parents[2]

# Dropout (of tiny.py), flips, accumulation, the average and a history of losses by which times are drawn.
OPTIONS = {
    "model.channels": 4,
    "model.groups": 2,
    "model.blocks": 0,
    "data.flip": True,
    "data.log_examples": True,
    "train.accumulate": 2,
    "times": "loss_second_moment",
    "log_every": 5,
    "checkpoint.every": 5,
}


def arguments(workdir, **changes):
    options = OPTIONS | {key.replace("__", "."): value for key, value in changes.items()}
    flags = [f"--config.{key}={value}" for key, value in options.items()]
    return ["train", f"--config={ROOT / 'configs/tiny.py'}", f"--workdir={workdir}", *flags]


def environment(one_device, cache):
    return one_device | {
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
        "PYTHONPATH": str(ROOT),
    }


class Forked:
    """Starts runs by gauntlet_driver.py, one at a time."""

    def __init__(self, one_device, cache):
        command = [sys.executable, str(ROOT / "tests/runs/gauntlet_driver.py")]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._driver = subprocess.Popen(command, env=environment(one_device, cache), text=True, **pipes)

    def start(self, output, command):
        self._driver.stdin.write(json.dumps([str(output), *command]) + "\n")
        self._driver.stdin.flush()
        return Run(int(self._driver.stdout.readline()), lambda: int(self._driver.stdout.readline()))

    def close(self):
        self._driver.stdin.close()
        self._driver.wait(timeout=60)
        self._driver.stdout.close()


class Commands:
    """Starts runs by `python -m diffusion_jax`."""

    def __init__(self, one_device, cache):
        self._environment = environment(one_device, cache)

    def start(self, output, command):
        with output.open("a") as file:
            line = [sys.executable, "-m", "diffusion_jax", *command]
            process = subprocess.Popen(line, env=self._environment, stdout=file, stderr=file)
        return Run(process.pid, process.wait)

    def close(self):
        pass


class Run:
    """A process and, once it has ended, its return code."""

    def __init__(self, number, wait):
        self.number, self.code = number, None
        self._thread = threading.Thread(target=lambda: setattr(self, "code", wait()))
        self._thread.start()

    def wait(self, timeout):
        self._thread.join(timeout)
        assert not self._thread.is_alive(), f"not ended within {timeout} s"
        return self.code


def log_of(root):
    """(the number of the file, its whole lines); a run that begins writes it anew, without what it will do again."""
    path = root / "examples" / "00000.jsonl"
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_ino, [line for line in path.read_text().splitlines(True) if line.endswith("\n")]
    return None, []


def half_saved(root):
    """The steps whose checkpoint has begun and has no manifest yet."""
    folder = root / "checkpoints"
    paths = folder.iterdir() if folder.is_dir() else ()
    return {path.name for path in paths if path.name.isdecimal() and not (path / manifest.NAME).exists()}


def saved(root):
    """The newest step that a run goes on from."""
    folder = root / "checkpoints"
    paths = folder.iterdir() if folder.is_dir() else ()
    steps = [int(path.name) for path in paths if path.name.isdecimal() and (path / manifest.NAME).exists()]
    return max(steps, default=0)


class Gauntlet:
    """The faults of one workdir: each is a start, a moment, a signal, and what must hold after it."""

    def __init__(self, starter, root, **changes):
        self.starter, self.root, self.command = starter, root, arguments(root, **changes)
        self.every, self.log = changes["sample__every"], None
        self.output = root.parent / f"{root.name}.txt"
        self.met = collections.Counter()

    def given(self):
        """The last step that this start gave a batch; 0 until it did."""
        number, lines = log_of(self.root)
        return json.loads(lines[-1])["step"] if lines and number != self.log else 0

    def fault(self, number, moment, starter=None):
        """Sends the signal once moment(gauntlet, the step saved before, half saves before, seconds) is true."""
        before, old, begun = saved(self.root), half_saved(self.root), time.monotonic()
        self.log, _ = log_of(self.root)
        run = (starter or self.starter).start(self.output, self.command)
        while not moment(self, before, old, time.monotonic() - begun):
            assert run.code is None, f"ended with {run.code} before its fault: {self.output.read_text()[-2000:]}"
            assert time.monotonic() < begun + 1200, self.output.read_text()[-2000:]
            time.sleep(0.0005)
        at = self.given()
        saving = bool(half_saved(self.root) - old)
        stopping = time.monotonic()
        os.kill(run.number, number)
        code = run.wait(600)
        name = signal.Signals(number).name
        if number == signal.SIGKILL:
            assert code == -signal.SIGKILL
            saving = bool(half_saved(self.root) - old)
        elif code in (-signal.SIGTERM, 128 + signal.SIGTERM):  # before training listens: there was nothing to save
            assert self.given() == 0, "a step was lost"
        else:
            assert code == 0, self.output.read_text()[-2000:]
            compiling = self.given() == before + 1 and saved(self.root) == before  # a step that never began
            assert compiling or saved(self.root) == max(self.given(), before), "what was done is not saved"
        assert saved(self.root) >= before
        phase = "save" if saving else "sample" if self.is_sampling(at) else "steps" if at > before else "start"
        self.met[f"{name} in {phase}"] += 1
        return time.monotonic() - stopping

    def is_sampling(self, at):
        """Whether samples are drawn after step `at`, and are not there yet."""
        return self.every > 0 and at % self.every == 0 < at and not (self.root / f"samples/{at:08d}.png").exists()

    def finish(self):
        assert self.starter.start(self.output, self.command).wait(3600) == 0, self.output.read_text()[-2000:]


def seconds(amount):
    return lambda gauntlet, before, old, spent: spent >= amount


def steps(count):
    """So many steps after the last save."""
    return lambda gauntlet, before, old, spent: gauntlet.given() >= before + count


def saving(gauntlet, before, old, spent):
    return bool(half_saved(gauntlet.root) - old)


def sampling(gauntlet, before, old, spent):
    """A step was given after which samples are drawn, and they are not there yet."""
    return gauntlet.given() > before and gauntlet.is_sampling(gauntlet.given())


def after(first, amount):
    """Some seconds after another moment."""
    since = []

    def moment(gauntlet, before, old, spent):
        if not since and first(gauntlet, before, old, spent):
            since.append(spent)
        return bool(since) and spent >= since[0] + amount

    return moment


def assert_equal_to(gauntlet, whole, count):
    """Every array's bits, the position, the log of examples, and the log of metrics."""
    assert digest(gauntlet.root / "checkpoints", count) == digest(whole / "checkpoints", count)
    logged = read_examples(gauntlet.root / "examples")
    assert list(logged) == list(range(1, count + 1))
    assert list(itertools.chain(*logged.values())) == example_indices(0, 1797, 0, 16 * count).tolist()
    ends = [record["step"] for record in read_metrics(gauntlet.root / "metrics.jsonl")]
    assert ends == sorted(set(ends))
    assert set(range(5, count + 1, 5)) <= set(ends)


def test_two_kills_and_a_sigterm(one_device, tmp_path):
    starter = Forked(one_device, tmp_path / "cache")
    changes = {"train__steps": 30, "sample__every": 0}
    try:
        whole = Gauntlet(starter, tmp_path / "whole", **changes)
        whole.finish()
        parts = Gauntlet(starter, tmp_path / "parts", **changes)
        parts.fault(signal.SIGKILL, saving)
        parts.fault(signal.SIGKILL, steps(8))
        parts.fault(signal.SIGTERM, steps(3))
        parts.finish()
    finally:
        starter.close()
    assert parts.met["SIGKILL in save"] >= 1
    assert parts.met["SIGTERM in steps"] + parts.met["SIGTERM in save"] == 1
    assert_equal_to(parts, whole.root, 30)


@pytest.mark.slow
def test_thirty_kills_and_twenty_sigterms(one_device, tmp_path):
    """At random moments of every phase; those of the start to the command that a user types, imports and all."""
    rng = np.random.default_rng(int(os.environ.get("GAUNTLET_SEED", "0")))
    starter, commands = (kind(one_device, tmp_path / "cache") for kind in (Forked, Commands))
    changes = {"train__steps": 300, "sample__every": 20}
    began = time.monotonic()
    whole = Gauntlet(starter, tmp_path / "whole", **changes)
    whole.finish()
    parts = Gauntlet(starter, tmp_path / "parts", **changes)

    def moments(start, save, step, sample):
        """So many of each kind, and what starts the run."""
        yield from ((seconds(float(rng.uniform(0, 20))), commands) for _ in range(start))
        yield from ((after(saving, float(rng.uniform(0, 0.05))), starter) for _ in range(save))
        yield from ((steps(int(rng.integers(1, 9))), starter) for _ in range(step))
        yield from ((sampling, starter) for _ in range(sample))

    faults = [(signal.SIGKILL, *moment) for moment in moments(6, 12, 11, 1)]
    faults += [(signal.SIGTERM, *moment) for moment in moments(5, 4, 7, 4)]
    longest = 0.0
    try:
        for i in rng.permutation(len(faults)):
            number, moment, by = faults[i]
            took = parts.fault(number, moment, by)
            longest = max(longest, took if number == signal.SIGTERM else 0.0)
        parts.finish()
    finally:
        starter.close()
    print(f"{len(faults)} faults in {(time.monotonic() - began) / 60:.1f} min: {dict(parts.met)}; ", end="")
    print(f"the longest from SIGTERM to the end took {longest:.1f} s")
    assert parts.met["SIGKILL in save"] >= 8
    assert_equal_to(parts, whole.root, 300)
