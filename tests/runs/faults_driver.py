"""Trains one tiny config several times in one process, to which the test sends signals, and prints the results.

The processes, and what goes between them:

    pytest (train_faults_test.py)                     this driver
      starts the driver, once for the module  ------>  imports jax, traces and compiles once
      reads its standard output               <------  RUN name              before each run
                                              <------  the output of `train`
      sends SIGTERM, at a line of the output  ------>  saves and ends the run (not the process)
      checks status, steps and arrays         <------  ENDED {status, steps, digest of the last checkpoint}

All runs share one process because importing, tracing and compiling take most of the time of a run.
"""

import contextlib
import hashlib
import json
import os
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from diffusion_jax import experiment
from diffusion_jax.cli.main import main
from diffusion_jax.train.checkpoint import TREES

ROOT = Path(__file__).parents[2]

SMALL = {
    "model.multipliers": "(1,)",
    "model.attention": "()",
    "data.flip": True,
    "sample.every": 0,
    "log_every": 5,
    "checkpoint.keep": 10,
    "train.nonfinite_limit": 3,
}


class Poisoned:
    """Batches of which those numbered [first, last) are NaN."""

    def __init__(self, batches, first, last, size):
        self.batches, self.first, self.last, self.size = batches, first, last, size
        self.get_state, self.set_state, self.close = batches.get_state, batches.set_state, batches.close
        self.skipped, self.examples = batches.skipped, batches.examples

    @property
    def bytes_read(self):
        return self.batches.bytes_read

    def __next__(self):
        number = self.get_state()["position"] // self.size
        batch = next(self.batches)
        return batch | {"x": batch["x"] * np.float32("nan")} if self.first <= number < self.last else batch


@contextlib.contextmanager
def poisoned(first, last):
    """Within, training reads NaN for the batches [first, last)."""
    whole = experiment.batches
    experiment.batches = lambda config, *args, **options: Poisoned(
        whole(config, *args, **options), first, last, config.train.batch_size
    )
    try:
        yield
    finally:
        experiment.batches = whole


def trace_once():
    """All runs share one compiled step and one initial state: their configs differ in nothing that counts there."""
    made = {}

    def once(name, make):
        return lambda *args: made[name] if name in made else made.setdefault(name, make(*args))

    experiment.compiled_step = once("step", experiment.compiled_step)
    state = once("state", experiment.initial_state)
    experiment.initial_state = lambda *args: jax.tree.map(jnp.copy, state(*args))  # the step donates its own


def digest(folder, step):
    """Of every array, and the position."""
    with ocp.CheckpointManager(folder.absolute(), item_names=(*TREES.values(), "meta")) as manager:
        items = {tree: ocp.args.StandardRestore() for tree in TREES.values() if (folder / str(step) / tree).exists()}
        restored = manager.restore(step, args=ocp.args.Composite(**items, meta=ocp.args.JsonRestore()))
    leaves = jax.tree.leaves([restored[tree] for tree in items])
    bits = hashlib.sha256(b"".join(np.asarray(leaf).tobytes() for leaf in leaves))
    return len(leaves), bits.hexdigest(), restored["meta"]["position"]["position"]


def run(name, workdir, **changes):
    options = SMALL | {key.replace("__", "."): value for key, value in changes.items()}
    print(f"RUN {name}", flush=True)
    flags = [f"--config.{key}={value}" for key, value in options.items()]
    status = main(["train", f"--config={ROOT / 'configs/tiny.py'}", f"--workdir={workdir}", *flags])
    steps = sorted(int(path.name) for path in (workdir / "checkpoints").glob("*") if path.name.isdecimal())
    ended = {"status": status, "steps": steps, "time": time.monotonic()}
    ended["state"] = digest(workdir / "checkpoints", steps[-1]) if steps else None
    print(f"ENDED {json.dumps(ended)}", flush=True)


@contextlib.contextmanager
def endless_drawing():
    """Within, a program that draws never ends, and says when it begins."""
    drawing = experiment.sample_program

    def endless(model, how, mesh, *guides):
        turns = jax.jit(lambda: jax.lax.while_loop(lambda x: x >= 0, lambda x: (x + 1.0) % 7.0, 0.0))

        def program(params, pretrained, seeds, told):
            print("drawing", flush=True)
            return turns()

        return program

    experiment.sample_program = endless
    try:
        yield
    finally:
        experiment.sample_program = drawing


if __name__ == "__main__":
    root = Path(sys.argv[1])
    trace_once()
    signalled = {"train__steps": 200, "checkpoint__every": 50}
    for name in ("stopped compiling", "stopped stepping", "finished"):
        run(name, root / "parts", **signalled)
    run("whole", root / "whole", **signalled)
    short = {"checkpoint__every": 5}
    with poisoned(7, 10):
        run("rolled back", root / "once", **short)
        run("rolled back and stopped", root / "twice", train__steps=15, **short)
        run("resumed", root / "twice", **short)
    with poisoned(7, 10**9):
        run("given up", root / "never", **short)
    with endless_drawing():
        run("stopped drawing", root / "drawn", sample__every=3, checkpoint__every=0)
    sys.stdout.flush()
    os._exit(0)  # threads that were left behind draw on
