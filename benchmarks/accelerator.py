"""How fast one device is at diffusion: its peaks, training steps and sampling, with kernels of attention and without.

    python benchmarks/accelerator.py --out=accelerator.json      # at most 8 minutes
    python benchmarks/accelerator.py --toy                       # the same code in seconds, on a CPU

Measured are the rates of matrix products and copies; a training step (mean squared error, backward, Adam) of the U-Nets
of DDPM on CIFAR-10, ADM on ImageNet-64 and Stable Diffusion 2; and 25 steps of DPM-Solver++ with guidance of Stable
Diffusion 1.5's, at batch 1 and 8, in bfloat16 with random weights. Where torch has the GPU, diffusers' models of the
same networks run in the same process: torch.compile, channels_last, bfloat16. MFU counts the FLOPs of matrix products
and convolutions that the network needs, against the nominal peak of the chip and the measured one. Memory is what the
compiler laid out for the program, of torch what it allocated. One device is used, the first.
"""

import argparse
import dataclasses
import gc
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from accelerator_cases import CASES, TOY, Case

from diffusion_jax.core.denoisers import classifier_free, from_network
from diffusion_jax.core.grids import uniform
from diffusion_jax.core.predictions import PREDICTIONS
from diffusion_jax.core.samplers import SAMPLERS, sample
from diffusion_jax.core.schedules import SCHEDULES
from diffusion_jax.launching.machines import chip_of
from diffusion_jax.nets.unet import UNet
from diffusion_jax.runs.plan import compiled, flops

KERNELS = ("auto", "xla")
GUIDANCE = 7.5
SECONDS = 5.0  # of measuring one case
LAST = 0.8  # of the time allowed: when the last case may begin, for its compilation takes a minute and more


QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
"""Options of XLA's CPU compiler, for toys."""


@dataclasses.dataclass(frozen=True)
class Measured:
    """Seconds of one call: the median, the least and the most of the turns that were taken."""

    median: float
    least: float
    most: float


def measured(run: Callable[[], None], budget: float) -> Measured:
    """The time of run, which returns when its work is done, in turns over budget seconds; after one that warms up."""
    run()
    turns: list[float] = []
    begun = time.perf_counter()
    while len(turns) < 3 or time.perf_counter() - begun < budget:
        start = time.perf_counter()
        run()
        turns.append(time.perf_counter() - start)
    return Measured(statistics.median(turns), min(turns), max(turns))


def peaks(toy: bool, budget: float) -> dict[str, float]:
    """FLOPs a second of square bfloat16 matrix products, and bytes a second of reading and writing one array."""
    size, many = (128, 2) if toy else (8192, 16)
    a = jnp.full((size, size), 1 / size, jnp.bfloat16)
    products = jax.jit(lambda a: jax.lax.fori_loop(0, many, lambda _, x: x @ a, a))
    copied = jnp.zeros((2**16 if toy else 2**29,), jnp.bfloat16)
    # Each pass depends on the one before it, so that the compiler leaves none out.
    passes = jax.jit(lambda x: jax.lax.fori_loop(0, many, lambda i, x: x + i.astype(x.dtype), x))
    matmul = measured(lambda: products(a).block_until_ready(), budget)
    copy = measured(lambda: passes(copied).block_until_ready(), budget)
    return {
        "matmul_flops": 2 * size**3 * many / matmul.least,
        "copy_bytes": 2 * copied.nbytes * many / copy.least,
    }


def weights(net: UNet, inputs: dict[str, np.ndarray]) -> Any:
    """Random parameters, drawn on the host: a program that draws them would be compiled for it."""
    rng = np.random.default_rng(0)
    told = {name: inputs[name] for name in ("label", "text") if name in inputs}
    shapes = jax.eval_shape(net.init, jax.random.key(0), inputs["x"], inputs["t"], told)["params"]
    return jax.tree.map(lambda a: 0.1 * (rng.random(a.shape, np.float32) - 0.5), shapes)


def training(net: UNet, inputs: dict[str, np.ndarray], optimizer: optax.GradientTransformation) -> Callable[..., Any]:
    """(state, inputs) -> (next state, loss)."""

    def step(state, inputs):
        params, moments, key = state
        key, dropout = jax.random.split(key)
        told = {name: inputs[name] for name in ("label", "text") if name in inputs}

        def loss(params):
            out = net.apply({"params": params}, inputs["x"], inputs["t"], told, train=True, rngs={"dropout": dropout})
            return jnp.square(out - inputs["target"]).mean()

        value, gradient = jax.value_and_grad(loss)(params)
        updates, moments = optimizer.update(gradient, moments)
        return (optax.apply_updates(params, updates), moments, key), value

    return step


def sampling(net: UNet, shape: tuple[int, ...], steps: int) -> Callable[..., Any]:
    """(parameters, text, null text, seeds) -> samples [B, *shape]."""
    schedule = SCHEDULES["scaled_linear"]()
    times = uniform()(schedule, steps)

    def program(params, text, null, seeds):
        network = from_network(
            lambda x, t, cond: net.apply({"params": params}, x, t, cond), schedule, PREDICTIONS["eps"]()
        )
        denoise = classifier_free(network, {"text": text}, {"text": null}, GUIDANCE)
        return sample(denoise, SAMPLERS["dpmpp_2m"](), schedule, times, seeds, shape)

    return program


def of_jax(case: Case, kernel: str, budget: float, quick: bool) -> dict[str, Any]:
    """One case by this package, with one kernel of attention; quick: compiled with the least effort."""
    inputs, optimizer = case.inputs(), optax.adam(1e-4)
    params = weights(case.net, inputs)

    def traced(kernel: str) -> Any:
        net = case.net.clone(attention_kernel=kernel)
        if case.steps:
            return jax.jit(sampling(net, inputs["x"].shape[1:], case.steps)).trace(*given)
        return jax.jit(training(net, inputs, optimizer), donate_argnums=0).trace(*given)

    if case.steps:
        text = inputs["text"]
        given: tuple[Any, ...] = (params, text, np.zeros_like(text), np.arange(case.batch, dtype=np.int32))
    else:
        given = ((params, optimizer.init(params), jax.random.key(0)), inputs)
    backend = {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
    needed = flops.count(traced("xla").jaxpr, backend)
    lowered = traced(kernel).lower()
    begun = time.perf_counter()
    run = lowered.compile(QUICK if quick else None)
    seconds = time.perf_counter() - begun
    laid_out = compiled.memory(run)
    held = list(jax.device_put(given))

    def once() -> None:
        out = jax.block_until_ready(run(*held))
        if not case.steps:
            held[0] = out[0]

    return {
        **dataclasses.asdict(measured(once, budget)),
        "flops": needed.flops,
        "compile_seconds": seconds,
        "memory": None if laid_out is None else laid_out.peak,
    }


Side = Callable[[Case, float], dict[str, Any]]
"""(case, seconds to measure) -> what came of it."""


def sides(torch: str, quick: bool) -> dict[str, Side]:
    """{what runs a case: how}: this package by each kernel, and torch where it is asked for, in that order."""
    found: dict[str, Side] = {"auto": lambda case, budget: of_jax(case, "auto", budget, quick)}
    if torch != "never":
        try:
            import accelerator_torch  # beside this file; torch may be absent

            if torch == "always" or accelerator_torch.has_gpu():
                found["torch"] = accelerator_torch.of_torch
        except ImportError:
            if torch == "always":
                raise
    found["xla"] = lambda case, budget: of_jax(case, "xla", budget, quick)
    return found


def results(
    cases: tuple[Case, ...], by: dict[str, Side], allowed: float, budget: float, peak: dict[str, Any]
) -> Iterator[dict]:
    """One entry for each case and side; what failed, or had no time left, says so."""
    begun = time.perf_counter()
    needed: dict[tuple[str, int], float] = {}
    for side, run in by.items():
        for case in cases:
            entry: dict[str, Any] = {"case": case.name, "batch": case.batch, "side": side}
            if time.perf_counter() - begun > LAST * allowed:
                yield entry | {"left_out": f"{LAST:.0%} of {allowed:g} s were over"}
                continue
            try:
                entry |= run(case, budget)
            except Exception as error:  # out of memory, or a kernel that the device does not take: the others go on
                entry["error"] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            else:
                work = entry.setdefault("flops", needed.get((case.name, case.batch)))
                needed[case.name, case.batch] = work
                entry["images_per_second"] = case.batch / entry["median"]
                for name, rate in peak.items():
                    entry[f"mfu_{name}"] = work / entry["median"] / rate if rate and work else None
            yield entry
            gc.collect()


def table(entries: list[dict[str, Any]]) -> Iterator[str]:
    """The lines of a table."""
    yield f"{'':24}{'batch':>6} {'side':6}{'images/s':>10}{'ms':>10}{'MFU':>8}{'of peak':>9}{'GiB':>8}"
    for each in entries:
        begins = f"{each['case']:24}{each['batch']:>6} {each['side']:6}"
        if "median" not in each:
            yield begins + "  " + each.get("error", f"left out: {each.get('left_out')}")
            continue
        shares = [each["mfu_nominal"], each["mfu_measured"]]
        nominal, of_peak = ("-" if share is None else f"{share:.1%}" for share in shares)
        memory = "-" if each["memory"] is None else f"{each['memory'] / 2**30:.2f}"
        speed = f"{each['images_per_second']:>10.4g}{1e3 * each['median']:>10.4g}"
        yield f"{begins}{speed}{nominal:>8}{of_peak:>9}{memory:>8}"


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--toy", action="store_true", help="tiny networks: whether it runs, not how fast")
    parser.add_argument("--seconds", type=float, default=480.0, help="no case begins in the last fifth of it")
    parser.add_argument("--torch", choices=("auto", "never", "always"), default="auto", help="auto: with a GPU")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    args = parser.parse_args(arguments)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # torch shares the GPU
    device, budget = jax.devices()[0], 0.0 if args.toy else SECONDS
    rates, chip = peaks(args.toy, min(budget, 2.0)), chip_of(device)
    made: dict[str, Any] = {
        "device": device.device_kind,
        "nominal": None if chip is None else dataclasses.asdict(chip),
        "measured": rates,
        "versions": {"jax": jax.__version__, "python": platform.python_version()},
        "toy": args.toy,
        "cases": [],
    }
    print(
        f"{device.device_kind}: {rates['matmul_flops'] / 1e12:.4g} TFLOP/s of matrix products, "
        f"{rates['copy_bytes'] / 1e9:.4g} GB/s of copies"
        + ("" if chip is None else f"; nominal {chip.flops / 1e12:.4g} and {chip.hbm_bandwidth / 1e9:.4g}"),
        flush=True,
    )
    peak = {"nominal": None if chip is None else chip.flops, "measured": rates["matmul_flops"]}
    by = sides(args.torch, args.toy)
    for entry in results(TOY if args.toy else CASES, by, args.seconds, budget, peak):
        made["cases"].append(entry)
        print(list(table([entry]))[1], flush=True)
        if args.out:
            args.out.write_text(json.dumps(made, indent=2) + "\n")  # what is known so far, if the machine goes
    print("\n".join(["", *table(made["cases"])]))
    return made


if __name__ == "__main__":
    main()
