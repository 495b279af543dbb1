"""Machines to plan for: the peaks of their chips, and their devices to compile for, which need not be here."""

import dataclasses
import importlib.util
import math
import os
import re

import jax
from jax.experimental import topologies

from diffusion_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Chip:
    """The peak speeds of one chip."""

    kind: str  # what jax calls it: the beginning of `device_kind`
    flops: float  # a second, bfloat16, dense
    hbm: int  # bytes
    hbm_bandwidth: float  # bytes a second
    interconnect: float  # bytes a second that it sends, over all its links together


_GIB = 2**30

# cloud.google.com/tpu/docs/v4, /v5e, /v5p, /v6e, "key chip specifications"; the interconnect is half the bidirectional
# bandwidth given there (2,400, 1,600, 4,800 and 3,200 Gbit/s a direction). Device kinds: libtpu.
# H100 SXM: nvidia.com/en-us/data-center/h100, dense bf16, 900 GB/s of NVLink in both directions.
CHIPS = {
    "v4": Chip("TPU v4", 275e12, 32 * _GIB, 1228e9, 300e9),
    "v5e": Chip("TPU v5 lite", 197e12, 16 * _GIB, 819e9, 200e9),
    "v5p": Chip("TPU v5", 459e12, 95 * _GIB, 2765e9, 600e9),
    "v6e": Chip("TPU v6 lite", 918e12, 32 * _GIB, 1640e9, 400e9),
    "h100": Chip("NVIDIA H100", 989e12, 80 * 10**9, 3350e9, 450e9),
}

# Without v4: libtpu compiles ahead of time for its two cores a chip, which no v4 machine offers today.
TOPOLOGIES = {
    "v5e": ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
    "v6e": ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
    "v5p": ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8"),
}
"""Common shapes of slices. A v5p slice may also have any AxBxC with even A and B."""


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds that each resource of a chip is busy at its peak. No run is faster than the longest (Williams 2009)."""

    compute: float
    hbm: float
    interconnect: float

    @property
    def seconds(self) -> float:
        """The least time of a run, in seconds."""
        return max(dataclasses.astuple(self))

    @property
    def bound(self) -> str:
        """The resource that takes longest."""
        return max(dataclasses.asdict(self).items(), key=lambda item: item[1])[0]


def roofline(chip: Chip, *, flops: float, accessed: float, sent: float) -> Roofline:
    """The roofline of one chip by the FLOPs that it computes, and the bytes that it reads and writes, and sends."""
    return Roofline(flops / chip.flops, accessed / chip.hbm_bandwidth, sent / chip.interconnect)


def chip_of(device: jax.Device) -> Chip | None:
    """The chip of a device; None for one whose peaks are not known."""
    named = [chip for chip in CHIPS.values() if device.device_kind.startswith(chip.kind)]
    return max(named, key=lambda chip: len(chip.kind), default=None)  # "TPU v5 lite" begins with "TPU v5"


def chip(name: str) -> Chip:
    """The chip of a name in `CHIPS`. Raises UserError for another name."""
    if name not in CHIPS:
        raise UserError(f"unknown chip {name!r}; choose from {', '.join(CHIPS)}")
    return CHIPS[name]


def sides(name: str) -> tuple[int, ...]:
    """The sides of a slice: (4, 4) for "v5e:4x4". Raises UserError for an unknown slice."""
    family, _, shape = name.partition(":")
    found = tuple(int(side) for side in shape.split("x")) if re.fullmatch(r"[1-9]\d*(x[1-9]\d*)+", shape) else ()
    cube = family == "v5p" and len(found) == 3 and not (found[0] % 2 or found[1] % 2)
    if shape not in TOPOLOGIES.get(family, ()) and not cube:
        raise UserError(f"unknown topology {name!r}; known are {_known()}")
    return found


def accelerator_type(name: str) -> str:
    """Google Cloud's name of a slice: "v5litepod-16" for "v5e:4x4". For v5p it counts cores, two a chip."""
    chips = math.prod(sides(name))
    return {"v5e": f"v5litepod-{chips}", "v6e": f"v6e-{chips}", "v5p": f"v5p-{2 * chips}"}[name.partition(":")[0]]


def _known() -> str:
    return "; ".join(f"{family}:{', '.join(shapes)}" for family, shapes in TOPOLOGIES.items())


def topology(name: str) -> list[jax.Device]:
    """The devices of a TPU slice such as v5e:4x4. Programs can be compiled for them, with libtpu, on any machine.

    It must be called before jax starts, which it makes start on the CPU alone. Raises UserError for an unknown slice,
    and where libtpu is not installed or does not compile for it.
    """
    count, accelerator = math.prod(sides(name)), accelerator_type(name)
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            f"planning for {name} needs the TPU compiler, which is not installed; pip install 'diffusion-jax[tpu]'"
        )
    for variable, value in {
        "TPU_SKIP_MDS_QUERY": "1",  # only a TPU machine has a metadata server
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": accelerator,
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # several plans may run at once: none of them uses a TPU
    }.items():
        os.environ.setdefault(variable, value)
    jax.config.update("jax_platforms", "cpu")
    alone = {"chips_per_host_bounds": (1, 1, 1)} if count == 1 else {}
    try:
        return list(topologies.get_topology_desc(name, platform="tpu", **alone).devices)
    except jax.errors.JaxRuntimeError as error:
        raise UserError(f"libtpu does not compile for {name} ({error}); known are {_known()}") from error


def virtual(count: int) -> list[jax.Device]:
    """`count` virtual devices on this CPU. After jax has started there are only those that it started with.

    Raises UserError where there are fewer.
    """
    if count < 1:
        raise UserError(f"--devices is at least 1; got {count}")
    try:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError:  # jax has started
        pass
    devices = jax.devices("cpu")
    if len(devices) < count:
        raise UserError(f"jax has started with {len(devices)} CPU devices; --devices={count} asks for more")
    return devices[:count]
