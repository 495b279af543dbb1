"""`diffusion-jax doctor`: the facts about this machine that a bug report needs."""

import importlib.metadata
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from diffusion_jax import __version__
from diffusion_jax.train import memory
from diffusion_jax.train.provenance import source_commit

PACKAGES = (
    "jax",
    "jaxlib",
    "libtpu",
    "jax-cuda12-plugin",
    "jax-cuda13-plugin",
    "flax",
    "optax",
    "orbax-checkpoint",
    "ml-collections",
    "chex",
    "numpy",
    "grain",
    "tensorflow-datasets",
    "pillow",
    "tokenizers",
    "optuna",
)
"""Packages whose versions are printed, if they are installed."""

_SETTINGS = (
    "XLA_",
    "JAX_",
    "DIFFUSION_JAX_",
    "TF_CPP_",
    "TFDS_",
    "LIBTPU_",
    "TPU_",
    "CUDA_",
    "NVIDIA_",
    "NCCL_",
    "GLIBC_TUNABLES",
    "OMP_NUM_THREADS",
)
"""Beginnings of the names of environment variables that are printed."""


def report(environment: Mapping[str, str] = os.environ) -> Iterator[str]:
    """The lines of the report. The user's home is written ~. What cannot be found out is said, and nothing raises."""
    commit = source_commit()
    yield f"diffusion-jax   {__version__}" + (f", commit {commit}" if commit else "")
    yield f"python          {platform.python_version()}, {_home(sys.executable)}"
    yield f"system          {platform.system()} {platform.release()}, {platform.machine()}, {_libc()}"
    yield f"packages        {', '.join(_versions())}"
    yield f"processor       {_processor()}, {_cores()} cores for this process"
    free = memory.host()
    yield f"memory          {'unknown' if free is None else _size(free)} free for this process"
    yield from _devices()
    set_ = [f"{name}={_home(value)}" for name, value in sorted(environment.items()) if name.startswith(_SETTINGS)]
    yield f"environment     {set_[0] if set_ else 'nothing of jax, XLA or the devices is set'}"
    yield from (f"                {line}" for line in set_[1:])
    yield f"compile cache   {_cache()}"
    for name, folder in {"current": Path.cwd(), "temporary": Path(tempfile.gettempdir())}.items():
        yield f"disk            {_size(shutil.disk_usage(folder).free)} free in the {name} folder"


def _devices() -> Iterator[str]:
    try:
        import jax

        devices = jax.devices()
    except Exception as error:  # a driver that fails raises nearly anything
        said = ": ".join(part for part in (type(error).__name__, " ".join(str(error).split())) if part)
        yield f"devices         none; jax raises {said}"
        return
    processes = f", {jax.process_count()} processes" if jax.process_count() > 1 else ""
    yield f"devices         {len(devices)} {devices[0].platform}{processes}, {devices[0].client.platform_version}"
    for device in jax.local_devices():
        try:
            stats = device.memory_stats() or {}
        except Exception:  # a backend without statistics
            stats = {}
        limit = stats.get("bytes_limit")
        used = f": {_size(stats.get('bytes_in_use', 0))} of {_size(limit)} in use" if limit else ""
        yield f"                {device.device_kind} {device.id}{used}"


def _cache() -> str:
    import jax

    folder = jax.config.values["jax_compilation_cache_dir"]
    if not folder:
        return "none; JAX_COMPILATION_CACHE_DIR=FOLDER keeps compiled programs for the next start"
    if "://" in folder or not Path(folder).is_dir():
        return folder
    sizes = [file.stat().st_size for file in Path(folder).iterdir() if file.is_file()]
    return f"{_home(folder)}, {len(sizes):,} files, {_size(sum(sizes))}"


def _versions() -> Iterator[str]:
    for name in PACKAGES:
        try:
            yield f"{name} {importlib.metadata.version(name)}"
        except importlib.metadata.PackageNotFoundError:
            continue


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"


def _libc() -> str:
    return " ".join(part for part in platform.libc_ver() if part) or "no glibc"


def _home(text: str) -> str:
    home = str(Path.home())
    return text.replace(home, "~") if len(home) > 1 else text


def _size(count: float) -> str:
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:,.1f} MiB"
