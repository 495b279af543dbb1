"""How much memory is free on the host, and how much a device has."""

import re
from pathlib import Path

import jax
from jax.sharding import Mesh

_MEMINFO = Path("/proc/meminfo")

_CONTROL = Path("/sys/fs/cgroup")


def host() -> int | None:
    """Bytes of the host's memory that this process can still allocate without swap; None where unknown.

    It is the smaller of what the kernel calls available and what the container's limit (cgroup v2) leaves.
    """
    left = [_available(), _left_of_limit()]
    return min((each for each in left if each is not None), default=None)


def a_device(mesh: Mesh) -> int | None:
    """Bytes that programs can have on each device of a mesh; None where they are not known.

    A GPU or TPU has its own memory, of which this is jax's limit. CPU devices share what is free on the host equally.
    """
    local = mesh.local_mesh.devices.ravel()
    if local[0].platform == "cpu":
        free = host()
        return None if free is None else free // len(local)
    limits = [(device.memory_stats() or {}).get("bytes_limit") for device in local]
    return min((limit for limit in limits if limit), default=None)


def left_on(device: jax.Device) -> int | None:
    """Bytes of a GPU or TPU that no program has used at any time so far; None where unknown, and for a CPU."""
    stats = device.memory_stats() or {}
    if "bytes_limit" not in stats or "peak_bytes_in_use" not in stats:
        return None
    return stats["bytes_limit"] - stats["peak_bytes_in_use"]


def _available() -> int | None:
    try:
        found = re.search(r"^MemAvailable:\s+(\d+) kB", _MEMINFO.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def _left_of_limit() -> int | None:
    try:
        limit, used = ((_CONTROL / f"memory.{name}").read_text().strip() for name in ("max", "current"))
        cached = re.search(r"^inactive_file (\d+)", (_CONTROL / "memory.stat").read_text(), re.MULTILINE)
    except OSError:
        return None
    if not limit.isdecimal():  # "max"
        return None
    return int(limit) - int(used) + (int(cached[1]) if cached else 0)  # the cache of files is given up under pressure
