"""The compilation of a plan's programs, with its numbers kept in a folder, and progress printed."""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import jax
from jax.sharding import Mesh
from jax.stages import Lowered

from diffusion_jax.cache_folder import cache_folder
from diffusion_jax.report.atomic import replace_file
from diffusion_jax.runs.plan import compiled
from diffusion_jax.train.interruptible import interruptible

_SIGN = 30.0  # seconds between two signs of life

_EFFORTS = ("jax_exec_time_optimization_effort", "jax_memory_fitting_effort", "jax_optimization_level")


def folder() -> Path:
    """The default folder of results."""
    return cache_folder("plans")


def compiled_once(what: str, lowered: Lowered, mesh: Mesh, kept: Path | None) -> compiled.Program:
    """Compiles a program, or reads the result from the folder `kept` where it was compiled before.

    A file is named by a digest of the program's text, its devices, and the compilers' versions and flags.
    """
    path = None if kept is None else kept / f"{_key(lowered, mesh)}.json"
    if path is not None and (found := _read(path)) is not None:
        print(f"the {what} was compiled before, in {found.seconds:.0f} s: {path}", file=sys.stderr, flush=True)
        return found
    with _signs_of_life(f"compiling the {what} for {mesh.size} x {mesh.devices.flat[0].device_kind}"):
        made = interruptible(lambda: compiled.compile_program(lowered, mesh.size))
    if path is not None:
        replace_file(path, (compiled.to_json(made) + "\n").encode())
    return made


def _key(lowered: Lowered, mesh: Mesh) -> str:
    versions = [jax.__version__]
    for name in ("jaxlib", "libtpu"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions.append(f"{name} {importlib.metadata.version(name)}")
    flags = [os.environ.get(name, "") for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")]
    # How hard the compiler is to try: JAX_EXEC_TIME_OPTIMIZATION_EFFORT and its like.
    flags += [str(getattr(jax.config, name, "")) for name in _EFFORTS]
    devices = [str(getattr(device, "coords", device.id)) for device in mesh.devices.flat]
    said = json.dumps([versions, flags, mesh.devices.flat[0].device_kind, list(mesh.shape.items()), devices])
    return hashlib.sha256(f"{said}\n{lowered.as_text()}".encode()).hexdigest()


def _read(path: Path) -> compiled.Program | None:
    try:
        return compiled.from_json(path.read_text())
    except (OSError, ValueError, KeyError, TypeError):  # of another version, or half a file: made anew
        return None


@contextlib.contextmanager
def _signs_of_life(what: str) -> Iterator[None]:
    """Prints to stderr that the work begins, at intervals that it goes on, and at the end how long it took."""
    begun, done = time.monotonic(), threading.Event()
    print(f"{what} ...", file=sys.stderr, flush=True)

    def tell() -> None:
        while not done.wait(_SIGN):
            print(f"{what}: {time.monotonic() - begun:.0f} s so far", file=sys.stderr, flush=True)

    thread = threading.Thread(target=tell, name="signs of life", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
    print(f"compiled in {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
