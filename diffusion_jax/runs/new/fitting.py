"""A network, a batch and a size that suit a data set and a machine, with the reason for each."""

import dataclasses
import os
import statistics

import jax

from diffusion_jax.runs.new.data_survey import Survey

_MOST = {"cpu": 64 * 64, "other": 128 * 128}
"""The most pixels of an image; with more, a first run takes hours."""


@dataclasses.dataclass(frozen=True)
class Machine:
    """The machine that trains."""

    platform: str  # cpu, gpu or tpu
    devices: int
    kind: str  # of a device
    cores: int

    @property
    def words(self) -> str:
        """The machine in a sentence."""
        return f"{self.cores} CPU cores" if self.platform == "cpu" else f"{self.devices} x {self.kind}"


def machine() -> Machine:
    """The machine that this process runs on."""
    devices = jax.devices()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Machine(devices[0].platform, len(devices), devices[0].device_kind, cores)


@dataclasses.dataclass(frozen=True)
class Fit:
    """The choices of a config: size, network and training, with the reasons."""

    height: int
    width: int
    channels: int
    patch: int
    model_channels: int
    multipliers: tuple[int, ...]
    blocks: int
    batch_size: int
    steps: int
    reasons: tuple[str, ...]

    @property
    def factor(self) -> int:
        """The number that divides both sides."""
        return self.patch * 2 ** (len(self.multipliers) - 1)


def fit(found: Survey, on: Machine) -> Fit:
    """The choices for the data of a survey, on a machine."""
    small = on.platform == "cpu"
    area, aspect, why = _wanted(found, _MOST["cpu" if small else "other"])
    if small:
        patch, channels, multipliers, blocks = (
            (1, 32, (1, 2), 1) if area <= 256 else (2, 48, (1, 2), 1) if area <= 2304 else (2, 48, (1, 2, 2), 1)
        )
        batch, steps = (64, 1000) if area <= 256 else (32, 1000) if area <= 2304 else (16, 1000)
    else:
        patch, channels, multipliers, blocks = (1, 64, (1, 2, 2), 2) if area <= 2304 else (2, 128, (1, 2, 2), 2)
        batch, steps = 64 * on.devices, 20_000
    factor = patch * 2 ** (len(multipliers) - 1)
    height, width = _sides(found, area, aspect, factor)
    while batch > max(found.count, on.devices) and batch % 2 == 0:  # stays a multiple of the devices
        batch //= 2
    sizes = list(found.sizes)
    done = "as they are" if sizes == [(height, width)] else "scaled to cover that and cropped in the middle"
    kind = {1: "gray", 3: "RGB", 4: "RGB with alpha"}
    shape = 4 if found.transparent else 3 if found.colour else 1
    reasons: tuple[str, ...] = (
        f"{height} x {width} pixels: {why}; images are {done}",
        f"{kind[shape]}: " + _colours(found),
        f"a U-Net of {channels} channels on patches of {patch}, {len(multipliers)} levels: small enough for {on.words} "
        f"at this size; both sides are divisible by {factor}",
        f"batches of {batch} of {found.count:,} images",
        f"{steps:,} steps: a first result, not the best; raise train.steps and go on by the same command",
    )
    if found.count < 1000:
        reasons += (f"{found.count:,} images are few: the model will come to repeat them",)
    return Fit(height, width, shape, patch, channels, multipliers, blocks, batch, steps, reasons)


def _wanted(found: Survey, most: int) -> tuple[float, float, str]:
    """(pixels of an image, height / width, the reason)."""
    sizes = [size for size, count in found.sizes.items() for _ in range(count)]
    aspects = [h / w for h, w in sizes]
    same_shape = max(aspects) / min(aspects) < 1.03
    aspect = statistics.median(aspects) if same_shape else 1.0
    area = statistics.median(h * w if same_shape else min(h, w) ** 2 for h, w in sizes)
    if len(found.sizes) == 1:
        why = f"all images are {sizes[0][0]} x {sizes[0][1]}"
    elif same_shape:
        why = f"{len(found.sizes)} sizes of one shape, and their median"
    else:
        why = f"{len(found.sizes)} sizes of several shapes, so a square, of the median shorter side"
    if area > most:
        why += f", scaled down to about {most:,} pixels, for a first run within minutes or hours"
    return min(area, most), aspect, why


def _sides(found: Survey, area: float, aspect: float, factor: int) -> tuple[int, int]:
    """Height and width, divisible by factor."""
    if len(found.sizes) == 1:
        ((h, w),) = found.sizes
        if h * w <= area and h % factor == 0 and w % factor == 0:
            return h, w
    width = (area / aspect) ** 0.5
    return tuple(max(int(side / factor + 0.01), 1) * factor for side in (width * aspect, width))  # type: ignore[return-value]


def _colours(found: Survey) -> str:
    kinds = " and ".join(found.modes)
    if found.transparent:
        return f"files are {kinds}, and some pixels are transparent"
    text = f"files are {kinds}, and {'some pixels have colour' if found.colour else 'no pixel has colour'}"
    return text + ("; 16 bits become 8" if any("16 bits" in kind for kind in found.modes) else "")
