"""What every test shares: eight CPU devices, a compilation cache, a user's home that is empty."""

import gc
import os
import signal
from importlib.metadata import version
from pathlib import Path

import pytest

# Before jax starts: it reads these once.
# Most of a test's time is compilation: a third without LLVM's optimizations, and of that two thirds without MLIR.
os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 "
    "--xla_llvm_disable_expensive_passes=true"
)
if version("jaxlib").startswith("0.10."):  # 0.12 does not know it, and XLA aborts at an unknown flag
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
# A script's background job ignores Ctrl-C, and whatever it starts does too; the tests send it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# Files of the longest tests, handed out first: pytest-xdist would begin with the files of most tests, and leave one
# worker alone with a long one at the end.
LONG = (
    "cli/conditions_command",
    "train/step",
    "nets/unet",
    "cli/commands",
    "runs/train_faults",
    "runs/sweep_vectorised",
    "runs/gauntlet",
    "runs/restarts",
    "build",
    "core/samplers_loop",
    "core/samplers_order",
    "runs/training_evaluation",
    "cli/edit_command",
    "train/autoencoder_step",
    "cli/evaluate_command",
    "runs/mirror",
    "runs/sweep_processes",
    "runs/evaluate_resume",
    "cli/plan_command",
    "cli/figures_command",
)
# Tracing makes many objects that live on, which Python would look through again and again.
gc.set_threshold(100_000, 20, 50)


def pytest_collection_modifyitems(items):
    """The LONG files come first, in their order; all others stay as they are."""
    tests = Path(__file__).parent
    rank = {tests / f"{name}_test.py": place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: rank.get(item.path, len(rank)))


@pytest.fixture(scope="session", autouse=True)
def two_devices():
    """A mesh whose size nobody gives has two of the eight devices: every further one costs time and shows little."""
    from diffusion_jax.train import sharding

    whole = sharding.mesh

    def mesh(data=-1, fsdp=1, tensor=1, devices=None, **others):
        if devices is None and (data, fsdp, tensor, *others.values()) == (-1, 1, 1, *(1 for _ in others)):
            import jax

            devices = jax.devices()[:2]
        return whole(data, fsdp, tensor, devices, **others)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "mesh", mesh)
        yield


@pytest.fixture(scope="session")
def one_device():
    """The environment of a process that compiles as the tests do, for one device."""
    return os.environ | {"XLA_FLAGS": os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1")}


@pytest.fixture(scope="session", autouse=True)
def tfds_home(tmp_path_factory):
    """Data sets built by a test never reach the user's home."""
    folder = tmp_path_factory.mktemp("tfds")
    os.environ["TFDS_DATA_DIR"] = str(folder)
    os.environ["DIFFUSION_JAX_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    return folder
