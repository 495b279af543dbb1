"""Time of a whole sampling run over that of its network evaluations alone, for every fixed-step sampler.

The run is one compiled program; the evaluations are as many calls of the bare jitted U-Net, one after another. Both in
alternating turns in one process, so that whatever else the machine does hits both. Prints the median of the turns'
ratios and their quartiles; the ratio of the fastest turns; the sampler's own time an evaluation, with a network that
costs nothing, and its part of a forward pass; and how many programs each (shape, sampler, steps) compiled. One forward
pass should take 20 ms or more: choose --size, --channels and --batch for the device.

    python benchmarks/sampler_overhead.py
    python benchmarks/sampler_overhead.py --samplers=ddim,heun --turns=15 --channels=256 --size=64 --batch=64
"""

import argparse
import functools
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.core.denoisers import condition, from_network
from diffusion_jax.core.grids import uniform
from diffusion_jax.core.predictions import PREDICTIONS
from diffusion_jax.core.samplers import SAMPLERS, evaluations, sample
from diffusion_jax.core.schedules import SCHEDULES
from diffusion_jax.nets.unet import UNet


def seconds(run: Callable[[], jax.Array]) -> float:
    start = time.perf_counter()
    run().block_until_ready()
    return time.perf_counter() - start


def main() -> None:
    fixed = [name for name in SAMPLERS if name != "ode"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samplers", default=",".join(fixed))
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--channels", type=int, default=64)
    args = parser.parse_args()

    net = UNet(3, channels=args.channels, multipliers=(1, 2, 2), blocks=1, attention=(2,))
    shape = (args.size, args.size, 3)
    x, t = jnp.zeros((args.batch, *shape)), jnp.zeros(args.batch)
    params = jax.jit(net.init)(jax.random.key(0), x, t)
    schedule = SCHEDULES["linear"]()
    times = uniform()(schedule, args.steps)

    forward = jax.jit(lambda params, x, t: net.apply(params, x, t))

    def bare(calls: int) -> jax.Array:
        out = x
        for _ in range(calls):
            out = forward(params, out, t)
        return out

    seconds(lambda: bare(1))
    one = statistics.median(seconds(lambda: bare(1)) for _ in range(5))
    print(f"{jax.devices()[0].device_kind}: one forward pass of {args.batch} x {shape} takes {1e3 * one:.1f} ms")
    medians = []
    for name in args.samplers.split(","):
        sampler = SAMPLERS[name]()
        calls = evaluations(sampler, schedule, times)

        def program(apply, params, seeds, sampler=sampler):
            network = lambda x, t, cond: apply(params, x, t)  # noqa: E731
            denoise = condition(from_network(network, schedule, PREDICTIONS["eps"]()), {})
            return sample(denoise, sampler, schedule, times, seeds, shape)

        run = jax.jit(functools.partial(program, net.apply))
        free = jax.jit(functools.partial(program, lambda params, x, t: 0.5 * x))
        seeds = iter(np.arange(10**6, dtype=np.int32).reshape(-1, args.batch))
        for compiled in (run, free):
            seconds(lambda compiled=compiled, seeds=seeds: compiled(params, next(seeds)))
        turns = []
        for _ in range(args.turns):
            alone = seconds(lambda calls=calls: bare(calls))
            whole = seconds(lambda run=run, seeds=seeds: run(params, next(seeds)))
            own = seconds(lambda free=free, seeds=seeds: free(params, next(seeds)))
            turns.append((alone, whole, own))
        low, middle, high = statistics.quantiles([whole / alone for alone, whole, _ in turns], n=4)
        alone, whole, own = (min(column) for column in zip(*turns, strict=True))
        medians.append(middle)
        print(
            f"{name:20} {calls:3} evaluations: {middle:.3f} ({low:.3f} to {high:.3f}), fastest {whole / alone:.3f}; "
            f"own {1e3 * own / calls:.2f} ms, {own / alone:.2%}; {run._cache_size()} compilation",
            flush=True,
        )
    print(f"largest median {max(medians):.3f}")


if __name__ == "__main__":
    main()
