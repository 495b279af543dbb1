"""What a command sets in its environment where it finds a GPU or a TPU; jax and XLA read it as they start.

A setting of the user's own is never replaced. Devices are found by the files of their drivers: jax takes seconds to
import, and reads the environment as it is imported.
"""

import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import MutableMapping, Sequence
from pathlib import Path

from diffusion_jax.cache_folder import cache_folder

COMMANDS = ("train", "sample", "figures", "evaluate", "precompute", "import", "export", "plan", "sweep", "doctor")
"""Those that run or compile programs here, or tell of it."""

ROOT = Path("/")
"""In which the drivers' files are looked for."""

GPU_FLAGS = {
    # Collectives begin as soon as they can and end as late as they may; in between the GPU computes.
    "xla_gpu_enable_latency_hiding_scheduler": "true",
    # The collectives of one turn of a loop, over layers or micro-batches, run beside the arithmetic of the next.
    "xla_gpu_enable_pipelined_all_gather": "true",
    "xla_gpu_enable_pipelined_all_reduce": "true",
    "xla_gpu_enable_pipelined_reduce_scatter": "true",
}
"""XLA's flags for NVIDIA GPUs that are off by default. Command buffers (CUDA graphs), of which a sampler's loop has
most, are on by default."""

_JAXLIB = ("0.10.", "0.12.")
"""Versions whose parser takes all of `GPU_FLAGS`, as a test shows of the one that is installed: XLA ends a process at a
flag that it does not know."""

SWITCH = "DIFFUSION_JAX_XLA_FLAGS"
"""The variable that, set to "none", keeps `GPU_FLAGS` out of XLA_FLAGS."""

CACHE = "JAX_COMPILATION_CACHE_DIR"


def prepare(arguments: Sequence[str]) -> None:
    """Sets what suits the devices of this machine, for a command line that will use them, and says it on stderr."""
    if list(arguments[:2]) == ["launch", "worker"] and "--" in arguments:  # this process is the one that trains
        arguments = arguments[arguments.index("--") + 1 :]
    if not arguments or arguments[0] not in COMMANDS or {"--help", "-h"} & set(arguments):
        return
    elsewhere = any(argument.startswith("--topology") for argument in arguments)  # another machine's compiler
    if not elsewhere and (said := set_for_devices(os.environ, ROOT)):
        print(f"diffusion-jax: {said}", file=sys.stderr, flush=True)


def set_for_devices(environment: MutableMapping[str, str], root: Path = ROOT) -> str:
    """Sets XLA's flags for a GPU, and for a GPU or TPU where compiled programs are kept; returns one sentence on it.

    root is that of the file system in which the drivers' files are looked for. "" is returned where nothing was set.
    """
    gpu = has_gpu(environment, root)
    said = []
    if gpu and (flags := _flags(environment)):
        environment["XLA_FLAGS"] = " ".join([environment.get("XLA_FLAGS", ""), *flags]).strip()
        said.append(f"for the GPU, XLA_FLAGS has {' '.join(flags)} ({SWITCH}=none leaves it alone)")
    if (gpu or has_tpu(environment, root)) and CACHE not in environment:
        environment[CACHE] = str(cache_folder("compiled", environment))
        said.append(f"compiled programs are kept in {environment[CACHE]} ({CACHE}= keeps none)")
    return "; ".join(said)


def has_gpu(environment: MutableMapping[str, str], root: Path = ROOT) -> bool:
    """Whether jax will find an NVIDIA GPU: its driver's files and jax's plug-in are there, and nothing hides it."""
    hidden = environment.get("CUDA_VISIBLE_DEVICES", "all") in ("", "-1", "NoDevFiles")
    driver = any((root / path).exists() for path in ("dev/nvidia0", "proc/driver/nvidia/version"))
    plugin = any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13))
    return driver and plugin and not hidden and _allowed(environment, "cuda", "gpu")


def has_tpu(environment: MutableMapping[str, str], root: Path = ROOT) -> bool:
    """Whether jax will find a TPU: its device's file and libtpu are there, and nothing hides it."""
    device = any((root / path).exists() for path in ("dev/accel0", "dev/vfio/0"))
    installed = importlib.util.find_spec("libtpu") is not None
    return device and installed and "TPU_SKIP_MDS_QUERY" not in environment and _allowed(environment, "tpu")


def _allowed(environment: MutableMapping[str, str], *platforms: str) -> bool:
    """Whether JAX_PLATFORMS, where it is set, names one of the platforms."""
    chosen = environment.get("JAX_PLATFORMS", "")
    return not chosen or bool(set(chosen.split(",")) & set(platforms))


def _flags(environment: MutableMapping[str, str]) -> list[str]:
    """`GPU_FLAGS` as XLA reads them, less those that the user has set; none for an unknown jaxlib."""
    given = environment.get("XLA_FLAGS", "").strip()
    if given and not given.startswith("-"):  # a file of flags
        return []
    own = {flag.lstrip("-").partition("=")[0] for flag in given.split()}
    if environment.get(SWITCH) == "none" or not importlib.metadata.version("jaxlib").startswith(_JAXLIB):
        return []
    return [f"--{name}={value}" for name, value in GPU_FLAGS.items() if name not in own]
