"""For how long does a save hold up training? A config is trained with a save every so many seconds, all but sampling.

    python benchmarks/save_stall.py [--config=configs/digits.py] [--seconds=60] [--saves=3]
    python benchmarks/save_stall.py --state=2 [--arrays=2744] [--saves=3] [--copy=auto]

A first short run finds how many steps that is. Prints the seconds that each save held up the loop (in the metrics,
save_stall_seconds: copying to the host, and waiting for the save before) and their part of the time between two saves.

With --state, of a state of so many GiB alone, in as many arrays as that of Stable Diffusion 1.5's U-Net: the seconds
until `save` returns, of this process's CPU time in them by the calling thread, and until the step after it ends, which
has to wait for the copy where that is on the devices; beside the seconds of a step, and of a copy of all arrays.
"""

import argparse
import contextlib
import importlib.util
import json
import statistics
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from diffusion_jax.report.metrics import read_metrics
from diffusion_jax.runs.train import train
from diffusion_jax.train.checkpoint import Checkpoints
from diffusion_jax.train.state import create


def config_of(path: str, *, steps: int, log_every: int, save_every: int):
    spec = importlib.util.spec_from_file_location("config", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    config.train.steps, config.log_every, config.checkpoint.every, config.sample.every = steps, log_every, save_every, 0
    return config


def of_a_state(gib: float, arrays: int, saves: int, copy: str) -> dict[str, object]:
    """The figures of saves of a state of zeros and ones, each after the one before has ended."""
    each = max(int(gib * 2**30 / 4 / arrays), 1)
    params = {f"layer_{i}": {"kernel": jnp.full(each, i, jnp.float32)} for i in range(arrays // 4)}
    state = jax.jit(lambda: create(params, optax.adam(1e-3)))()
    step = jax.jit(lambda state: jax.tree.map(lambda a: a + 1, state), donate_argnums=0)
    state = jax.block_until_ready(step(state))
    began = time.perf_counter()
    state = jax.block_until_ready(step(state))
    figures: dict[str, list[float]] = {"step": [time.perf_counter() - began], "save": [], "cpu": [], "step_after": []}
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.closing(Checkpoints(Path(folder), keep=1, copy=copy)) as to,
    ):
        to.prepare(state).result()
        for _ in range(saves):
            to.wait()
            began, cpu = time.perf_counter(), time.thread_time()
            to.save(state, position=None, config="{}")
            figures["cpu"].append(time.thread_time() - cpu)
            figures["save"].append(time.perf_counter() - began)
            began = time.perf_counter()
            state = jax.block_until_ready(step(state))
            figures["step_after"].append(time.perf_counter() - began)
        to.wait()
    began = time.perf_counter()
    kept = [np.array(a, copy=True) for a in jax.tree.leaves(state)]
    figures["copy"] = [time.perf_counter() - began]
    size = sum(a.nbytes for a in kept) / 2**30
    rounded = {f"{name}_seconds": [round(value, 4) for value in values] for name, values in figures.items()}
    return {"gib": round(size, 3), "arrays": len(kept), "copy": copy} | rounded


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/digits.py")
    parser.add_argument("--seconds", type=float, default=60.0, help="between two saves")
    parser.add_argument("--saves", type=int, default=3, help="how many are measured")
    parser.add_argument("--calibrate", type=int, default=100, help="steps of the first run")
    parser.add_argument("--state", type=float, default=0.0, help="GiB of a state that is saved without a config")
    parser.add_argument("--arrays", type=int, default=2744, help="of that state")
    parser.add_argument("--copy", default="auto", help="checkpoint.copy of that state's saves")
    options = parser.parse_args()
    if options.state:
        print(json.dumps(of_a_state(options.state, options.arrays, options.saves, options.copy)))
        return
    with tempfile.TemporaryDirectory() as folder:
        log_every = max(options.calibrate // 10, 1)
        first = config_of(options.config, steps=options.calibrate, log_every=log_every, save_every=0)
        train(first, Path(folder, "first"))
        rates = [r["images_per_second"] for r in read_metrics(Path(folder, "first", "metrics.jsonl"))[1:]]
        each = max(round(options.seconds * statistics.median(rates) / first.train.batch_size), 4)
        # The stall of the last save is in no record: one more interval than saves, and a record soon after each.
        config = config_of(options.config, steps=each * (options.saves + 1), log_every=each // 4, save_every=each)
        began = time.perf_counter()
        train(config, Path(folder, "second"))
        wall = time.perf_counter() - began
        stalls = [
            r["save_stall_seconds"]
            for r in read_metrics(Path(folder, "second", "metrics.jsonl"))
            if "save_stall_seconds" in r
        ]
    apart = wall / (options.saves + 1)
    print(
        json.dumps(
            {
                "steps_between_saves": each,
                "seconds_between_saves": round(apart, 2),
                "stall_seconds": [round(stall, 4) for stall in stalls],
                "share": round(statistics.mean(stalls) / apart, 5),
                "longest_share": round(max(stalls) / apart, 5),
            }
        )
    )


if __name__ == "__main__":
    main()
