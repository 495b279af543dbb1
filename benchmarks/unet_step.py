"""One training step of our U-Net in JAX against diffusers' UNet2DModel in eager PyTorch, on the CPU's cores.

Forward, mean squared error, backward and Adam, of the same network, float32, in alternating turns so that whatever
else the machine does hits both; prints the median of each and of the ratios of the turns. Both have the huge pages that
`diffusion-jax` asks for; with GLIBC_TUNABLES= in the environment, neither. Needs the `parity` extra.

    python benchmarks/unet_step.py --net=digits
    python benchmarks/unet_step.py --net=cifar10 --turns=5
    for turn in 1 2 3 4 5; do for side in jax torch; do
        python benchmarks/unet_step.py --net=cifar10 --side=$side; done; done  # each alone in its process
"""

import argparse
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from diffusers import UNet2DModel

from diffusion_jax.cli.memory import ask_for_huge_pages
from diffusion_jax.nets.unet import UNet

NETS = {  # network, height and width, image channels, batch size, steps a turn
    "digits": (UNet(1, channels=32, multipliers=(1, 2), blocks=1, attention=(2,), groups=8, dropout=0.1), 8, 1, 64, 5),
    "cifar10": (UNet(3, dropout=0.1), 32, 3, 8, 1),
}


def jax_step(net: UNet, x: np.ndarray, t: np.ndarray, target: np.ndarray) -> Callable[[], float]:
    optimizer = optax.adam(2e-4)

    def init(key):
        params = net.init(key, x, t)["params"]
        return params, optimizer.init(params), key

    def step(state, x, t, target):
        params, moments, key = state
        key, dropout = jax.random.split(key)

        def loss(params):
            out = net.apply({"params": params}, x, t, train=True, rngs={"dropout": dropout})
            return jnp.square(out - target).mean()

        value, gradient = jax.value_and_grad(loss)(params)
        updates, moments = optimizer.update(gradient, moments)
        return (optax.apply_updates(params, updates), moments, key), value

    state = jax.jit(init)(jax.random.key(0))
    step = jax.jit(step, donate_argnums=0)
    batch = jax.device_put((x, t, target))

    def run() -> float:
        nonlocal state
        state, value = step(state, *batch)
        return float(value)

    return run


def torch_step(net: UNet, x: np.ndarray, t: np.ndarray, target: np.ndarray) -> Callable[[], float]:
    attended = [2**i in net.attention for i in range(len(net.multipliers))]
    model = UNet2DModel(
        in_channels=x.shape[-1],
        out_channels=net.out_channels,
        block_out_channels=tuple(net.channels * m for m in net.multipliers),
        layers_per_block=net.blocks,
        down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attended),
        up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attended)),
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
        norm_eps=1e-6,
        norm_num_groups=net.groups,
        attention_head_dim=None,
        dropout=net.dropout,
    ).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-4)
    batch = [torch.from_numpy(np.ascontiguousarray(np.moveaxis(a, -1, 1))) for a in (x, target)]
    times = torch.from_numpy(t)

    def run() -> float:
        loss = torch.nn.functional.mse_loss(model(batch[0], times).sample, batch[1])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return run


SIDES = {"jax": jax_step, "torch": torch_step}


def seconds(run: Callable[[], float], steps: int) -> float:
    start = time.perf_counter()
    for _ in range(steps):
        run()
    return (time.perf_counter() - start) / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", choices=NETS, default="digits")
    parser.add_argument("--batch", type=int, default=0, help="examples a step; 0 takes the net's own")
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--side", choices=SIDES, help="this one alone")
    parser.add_argument("--threads", type=int, default=2, help="torch's; XLA takes every core")
    args = parser.parse_args()
    ask_for_huge_pages()
    torch.set_num_threads(args.threads)
    net, size, channels, batch, steps = NETS[args.net]
    rng = np.random.default_rng(0)
    x, target = rng.standard_normal((2, args.batch or batch, size, size, channels), np.float32)
    t = rng.integers(0, 1000, len(x)).astype(np.float32)
    sides = [args.side] if args.side else list(SIDES)
    runs = [SIDES[side](net, x, t, target) for side in sides]
    for run in runs:
        seconds(run, 2)  # compilation, allocation
    turns = [tuple(seconds(run, steps) for run in runs) for _ in range(args.turns)]
    medians = [statistics.median(column) for column in zip(*turns, strict=True)]
    print(
        f"{args.net}, batch {len(x)}:", *(f"{side} {m:.3f} s" for side, m in zip(sides, medians, strict=True)), "a step"
    )
    if len(sides) == 2:
        ratios = sorted(a / b for a, b in turns)
        print(f"JAX / torch {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}, {len(ratios)} turns)")


if __name__ == "__main__":
    main()
