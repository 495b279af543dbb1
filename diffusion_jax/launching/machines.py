"""Machines to plan for: what their chips can do at best, and devices to compile for where there are none."""

import dataclasses
import importlib.util
import math
import os
import re
from typing import Any

import jax
from jax.experimental import topologies

from diffusion_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Chip:
    """The peaks of one chip."""

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

# v4 is not among them: libtpu compiles ahead of time for its cores, two a chip, which no v4 machine offers today.
TOPOLOGIES = {
    "v5e": ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
    "v6e": ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
    "v5p": ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8"),
}
"""The shapes of slices that are rented most; of v5p any AxBxC of even A and B is one."""


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds that each resource of a chip is busy at its peak; no run is faster than the longest (Williams 2009)."""

    compute: float
    hbm: float
    interconnect: float

    @property
    def seconds(self) -> float:
        """The least time."""
        return max(dataclasses.astuple(self))

    @property
    def bound(self) -> str:
        """Which of them that is."""
        return max(dataclasses.asdict(self).items(), key=lambda item: item[1])[0]


def roofline(chip: Chip, *, flops: float, accessed: float, sent: float) -> Roofline:
    """Of what one chip computes, reads and writes, and sends, in FLOPs and bytes."""
    return Roofline(flops / chip.flops, accessed / chip.hbm_bandwidth, sent / chip.interconnect)


def chip_of(device: Any) -> Chip | None:
    """The chip of a device of jax; None for one whose peaks are not known here."""
    named = [chip for chip in CHIPS.values() if device.device_kind.startswith(chip.kind)]
    return max(named, key=lambda chip: len(chip.kind), default=None)  # v5 lite is no v5


def chip(name: str) -> Chip:
    """The chip of that name; raises UserError where there is none."""
    if name not in CHIPS:
        raise UserError(f"unknown chip {name!r}; choose from {', '.join(CHIPS)}")
    return CHIPS[name]


def sides(name: str) -> tuple[int, ...]:
    """The sides of a slice, (4, 4) of "v5e:4x4"; raises UserError for one that there is not."""
    family, _, shape = name.partition(":")
    found = tuple(int(side) for side in shape.split("x")) if re.fullmatch(r"[1-9]\d*(x[1-9]\d*)+", shape) else ()
    cube = family == "v5p" and len(found) == 3 and not (found[0] % 2 or found[1] % 2)
    if shape not in TOPOLOGIES.get(family, ()) and not cube:
        raise UserError(f"unknown topology {name!r}; known are {_known()}")
    return found


def accelerator_type(name: str) -> str:
    """What Google Cloud calls a slice: "v5litepod-16" for "v5e:4x4". A v5p is counted in cores, two a chip."""
    chips = math.prod(sides(name))
    return {"v5e": f"v5litepod-{chips}", "v6e": f"v6e-{chips}", "v5p": f"v5p-{2 * chips}"}[name.partition(":")[0]]


def _known() -> str:
    return "; ".join(f"{family}:{', '.join(shapes)}" for family, shapes in TOPOLOGIES.items())


def topology(name: str) -> list[Any]:
    """Devices of a TPU slice such as v5e:4x4, to compile for on a machine that has none, with the compiler in libtpu.

    Call it before jax starts: it has jax start on the CPU alone.
    """
    count, accelerator = math.prod(sides(name)), accelerator_type(name)
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            f"planning for {name} needs the TPU compiler, which is not installed; pip install 'diffusion-jax[tpu]'"
        )
    for variable, value in {
        "TPU_SKIP_MDS_QUERY": "1",  # asks no metadata server, which only a TPU machine has
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": accelerator,
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # several plans at once: none of them holds a TPU
    }.items():
        os.environ.setdefault(variable, value)
    jax.config.update("jax_platforms", "cpu")
    alone = {"chips_per_host_bounds": (1, 1, 1)} if count == 1 else {}
    try:
        return list(topologies.get_topology_desc(name, platform="tpu", **alone).devices)
    except jax.errors.JaxRuntimeError as error:
        raise UserError(f"libtpu does not compile for {name} ({error}); known are {_known()}") from error


def virtual(count: int) -> list[Any]:
    """So many devices on this CPU. Call it before jax starts, or they are at most those that it started with."""
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
