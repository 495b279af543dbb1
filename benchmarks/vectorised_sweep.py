"""Throughput of a sweep's trials as one program over that of single runs one after another.

    python benchmarks/vectorised_sweep.py                       # steps alone, compiled, in alternating turns
    python benchmarks/vectorised_sweep.py --whole --steps=80    # whole runs: processes, compilation, sampling and all

Steps: K trials of a config, which differ in the learning rate, step once in one program, by vmap or one after another,
and as K calls of the single run's own program; medians of the turns' ratios with their quartiles. Whole: the wall clock
of `sweep --vectorised` and of K `train` commands, without a compilation cache; prints both and the gain.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from diffusion_jax import experiment
from diffusion_jax.experiment import vectorised
from diffusion_jax.runs.sweep.trials import changed
from diffusion_jax.sweeps import log_grid
from diffusion_jax.train import sharding

sys.path.insert(0, str(Path(__file__).parents[1]))

KEY = "optimizer.learning_rate"


def seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start


def steps(rates: tuple[float, ...], batch_size: int, turns: int) -> None:
    from configs import digits

    trials = [changed(digits.get_config(), {KEY: rate, "train.batch_size": batch_size}) for rate in rates]
    config, mesh = trials[0], sharding.mesh(devices=jax.devices()[:1])
    model = experiment.model(config)
    rng = np.random.default_rng(0)
    shape = (batch_size, *model.shape)
    batch = {"x": rng.uniform(-1, 1, shape).astype(np.float32), "label": rng.integers(0, 10, batch_size, np.int32)}
    batch = jax.device_put(batch, sharding.replicated(mesh))
    values = vectorised.values(trials, [KEY])
    seeds = jax.numpy.zeros(len(trials), jax.numpy.int32)
    keys = jax.vmap(jax.random.key)(seeds)
    single, state = (
        experiment.compiled_step(config, experiment.trainee(config, model), mesh),
        experiment.initial_state(config, experiment.trainee(config, model), mesh),
    )
    programs = {
        name: jax.jit(
            vectorised.train_steps(config, model, mesh, at_once=at_once),
            donate_argnums=0,
            out_shardings=sharding.replicated(mesh),
        )
        for name, at_once in {"vmap": True, "one after another": False}.items()
    }
    states = {name: vectorised.initial_states(config, model, mesh, seeds) for name in programs}

    def singly() -> Any:
        nonlocal state
        for _ in trials:
            state, metrics = single(state, batch, keys[0], {})
            jax.block_until_ready(metrics)
        return state.step

    def together(name: str) -> Any:
        states[name], metrics = programs[name](states[name], batch, keys, values)
        return metrics

    runs: dict[str, Callable[[], Any]] = {"single runs": singly}
    runs |= {name: lambda name=name: together(name) for name in programs}
    for name, run in runs.items():
        print(f"{name}: compiled in {seconds(run):.1f} s", flush=True)
    times = {name: [] for name in runs}
    for _ in range(turns):
        for name, run in runs.items():
            times[name].append(seconds(run))
    kind = jax.devices()[0].device_kind
    alone = statistics.median(times["single runs"])
    print(f"{kind}: {len(rates)} trials of batch {batch_size}; single runs {alone:.3f} s a step of all")
    for name in programs:
        ratios = [one / own for one, own in zip(times["single runs"], times[name], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(f"{name}: {statistics.median(times[name]):.3f} s, throughput x {middle:.2f} ({low:.2f} to {high:.2f})")


def whole(rates: tuple[float, ...], batch_size: int, count: int) -> None:
    root = Path(__file__).parents[1]
    every = {"train.steps": count, "train.batch_size": batch_size, "log_every": 10, "checkpoint.every": count}
    every |= {"sample.every": count, "sample.num": 40, "sample.steps": 10}
    environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}

    def run(name: str, *arguments: str) -> float:
        flags = [f"--config={root / 'configs/digits.py'}", *(f"--config.{key}={value}" for key, value in every.items())]
        command = [sys.executable, "-m", "diffusion_jax", name, *flags, *arguments]
        start = time.perf_counter()
        subprocess.run(command, cwd=root, env=environment, check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - start

    with tempfile.TemporaryDirectory() as folder:
        sweep = Path(folder, "sweep.py")
        space = f"Sweep({{{KEY!r}: choice(*{rates})}})"
        sweep.write_text(f"from diffusion_jax.sweeps import Sweep, choice\n\n\ndef get_sweep():\n    return {space}\n")
        together = run("sweep", "--vectorised", f"--sweep={sweep}", f"--workdir={folder}/sweep")
        print(f"one program: {together:.1f} s", flush=True)
        alone = [run("train", f"--config.{KEY}={rate}", f"--workdir={folder}/{i}") for i, rate in enumerate(rates)]
    print(f"single runs: {sum(alone):.1f} s, {min(alone):.1f} to {max(alone):.1f} each")
    print(f"throughput x {sum(alone) / together:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--steps", type=int, default=80, help="of a whole run")
    arguments = parser.parse_args()
    rates = log_grid(1e-4, 3e-3, arguments.trials).values
    if arguments.whole:
        whole(rates, arguments.batch, arguments.steps)
    else:
        steps(rates, arguments.batch, arguments.turns)


if __name__ == "__main__":
    main()
