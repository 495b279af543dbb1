"""Samples from a compiled program, batch after batch, for the command and for the Python function."""

import functools
import math
from collections.abc import Callable, Iterator, Mapping

import jax
import numpy as np

from diffusion_jax.core.editing import count_windows
from diffusion_jax.errors import UserError
from diffusion_jax.report.progress import Progress
from diffusion_jax.runs.workdir.restored import Trained
from diffusion_jax.train import memory
from diffusion_jax.train.interruptible import interruptible

_WINDOWS = 2000  # at most, of one image; each is traced by itself


def batch_size(trained: Trained, batch: int, num: int) -> int:
    """The number of samples drawn at once: batch, at most num, rounded up to a multiple of trained.share."""
    return -(-min(batch, num) // trained.share) * trained.share


def draw(
    program: Callable[..., jax.Array],
    trained: Trained,
    seeds: np.ndarray,
    cond: Mapping[str, np.ndarray],
    size: int,
    bar: Progress,
) -> Iterator[np.ndarray]:
    """Yields samples float32 [b, *S, C] on the host, b <= size, in the order of seeds [N]; N in all.

    program takes (params, pretrained, seeds [size], cond); cond has an array [N, ...] for each condition. The last
    batch is padded, so that one program is compiled. bar shows how many are drawn.
    """
    num = len(seeds)
    for start in range(0, num, size):
        take = np.arange(start, start + size).clip(max=num - 1)
        padded = {name: a[take] for name, a in cond.items()}
        compiling = "" if start else "compiling, then "
        with bar.doing(
            f"{compiling}drawing {size} samples at once: {trained.how.sampler}, {trained.how.steps:,} steps"
        ):
            drawn = interruptible(functools.partial(_on_host, program, trained, seeds[take], padded))
        yield drawn[: num - start]
        bar.update(min(start + size, num))


def _on_host(program: Callable[..., jax.Array], trained: Trained, seeds: np.ndarray, cond: dict) -> np.ndarray:
    return np.asarray(program(trained.params, trained.pretrained, seeds, cond), np.float32)


def check_memory(trained: Trained, size: int, canvas: tuple[int, ...]) -> None:
    """Raises UserError where the first activations of a batch of size samples alone exceed the free memory.

    A canvas [*S] larger than the model's examples is drawn in windows, all of them at once. Their number is printed;
    raises UserError where it is so large that tracing them would take hours.
    """
    model = trained.model
    window, shown = model.x_shape[:-1], _sides(canvas)
    factor = model.shape[0] // window[0]
    sides = tuple(n // factor for n in canvas)
    windows = 1
    if sides != window:
        windows = count_windows(sides, window, tuple(max(n // 2, 1) for n in window))
        if windows > _WINDOWS:
            raise UserError(
                f"an image of {shown} pixels is drawn in {windows:,} windows of the model's "
                f"{_sides(model.shape[:-1])}, and {_WINDOWS:,} at most are compiled; expand it less"
            )
        print(f"each image of {shown} pixels is drawn in {windows:,} windows")
    free = memory.a_device(trained.mesh)
    channels = getattr(model.network, "channels", model.x_shape[-1])
    need = size // trained.share * windows * math.prod(window) * channels * 2  # bytes, of 16 bits at the least
    if free is not None and need > free:
        raise UserError(
            f"{size} samples of {shown} at once take more than {need / 2**30:,.1f} GiB a device, "
            f"and {free / 2**30:,.1f} GiB are free; give a smaller --batch"
            + (", or expand less" if windows > 1 else "")
        )


def _sides(sides: tuple[int, ...]) -> str:
    return " x ".join(f"{side:,}" for side in sides)
