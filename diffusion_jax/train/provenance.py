"""Which code a run uses: the versions of the packages that decide its numbers, and the commit of this package."""

import functools
import importlib.metadata
import platform
import subprocess
from pathlib import Path

_PACKAGES = ("diffusion-jax", "jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def versions() -> dict[str, str]:
    """{name: version} of Python and of the packages that decide the numbers of a run."""
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in _PACKAGES}


@functools.cache
def source_commit() -> str | None:
    """The git commit of this package's source, with "-dirty" where files were changed since.

    None where git does not know the source: it is not installed, or the package is no clone.
    """
    folder = str(Path(__file__).parents[1])
    try:
        for command in (
            ["ls-files", "--error-unmatch", "__init__.py"],
            ["describe", "--always", "--dirty", "--abbrev=40"],
        ):
            run = subprocess.run(
                ["git", "-C", folder, *command], capture_output=True, text=True, timeout=10, check=True
            )
    except (OSError, subprocess.SubprocessError):
        return None
    return run.stdout.strip()
