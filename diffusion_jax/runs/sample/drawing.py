"""Samples from a compiled program, batch after batch: what the command and the Python function share."""

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

_WINDOWS = 2000  # of one image; each is traced by itself


def batch_size(trained: Trained, batch: int, num: int) -> int:
    """How many of num samples are drawn at once: about batch, and a multiple of the devices' share."""
    return -(-min(batch, num) // trained.share) * trained.share


def draw(
    program: Callable[..., jax.Array],
    trained: Trained,
    seeds: np.ndarray,
    cond: Mapping[str, np.ndarray],
    size: int,
    bar: Progress,
) -> Iterator[np.ndarray]:
    """Samples float32 [b, *S, C] on the host in the order of seeds [N], at most size at once; N in all.

    program takes (params, pretrained, seeds [size], cond); cond has an array [N, ...] for each condition. The last
    batch is padded, so that one program is compiled. bar shows the way.
    """
    num = len(seeds)
    for start in range(0, num, size):
        take = np.arange(start, start + size).clip(max=num - 1)
        told = {name: a[take] for name, a in cond.items()}
        with bar.doing(f"drawing {size} samples at once: {trained.how.sampler}, {trained.how.steps:,} steps"):
            drawn = interruptible(functools.partial(_computed, program, trained, seeds[take], told))
        yield drawn[: num - start]
        bar.update(min(start + size, num))


def _computed(program: Callable[..., jax.Array], trained: Trained, seeds: np.ndarray, told: dict) -> np.ndarray:
    """On the host, once it is drawn."""
    return np.asarray(program(trained.params, trained.pretrained, seeds, told), np.float32)


def check_memory(trained: Trained, size: int, canvas: tuple[int, ...]) -> None:
    """Raises UserError where a batch of size samples cannot be drawn as the first activations alone do not fit.

    A canvas [*S] larger than the model's examples is drawn in windows, all of them at once; how many is said, and
    refused where they are so many that tracing them would take hours.
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
