"""What every test shares: eight CPU devices, a compilation cache, a user's home that is empty."""

import os
from pathlib import Path

import pytest

# Before jax starts: it reads these once.
# Without LLVM's optimizations a program compiles in a third of the time; most of a test's time is compilation.
os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 "
    "--xla_llvm_disable_expensive_passes=true"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")

# Each of xdist's workers has cores of its own: programs this small lose more to threads that wait for each other than
# they win by a second core.
worker, workers = os.environ.get("PYTEST_XDIST_WORKER", ""), int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
if worker and hasattr(os, "sched_setaffinity"):
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[int(worker.removeprefix("gw")) % len(cores) :: workers])


LONGEST_FIRST = ("runs", "cli", "train", "nets", "core")
"""Folders, so that xdist's workers, which take whole files, end at about the same time."""


def pytest_collection_modifyitems(items):
    def place(item):
        folder = item.path.relative_to(Path(__file__).parent).parts[0]
        return LONGEST_FIRST.index(folder) if folder in LONGEST_FIRST else len(LONGEST_FIRST)

    items.sort(key=place)


@pytest.fixture(scope="session", autouse=True)
def tfds_home(tmp_path_factory):
    """Data sets built by a test never reach the user's home."""
    folder = tmp_path_factory.mktemp("tfds")
    os.environ["TFDS_DATA_DIR"] = str(folder)
    return folder
