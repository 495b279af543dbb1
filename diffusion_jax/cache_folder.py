"""The folder of what is computed once and kept between commands: compiled programs, plans, indexes of shards."""

import os
from collections.abc import Mapping
from pathlib import Path

CACHE = "DIFFUSION_JAX_CACHE"
"""The environment variable with the folder; otherwise it is diffusion_jax in XDG_CACHE_HOME, or in ~/.cache."""


def cache_folder(name: str, environment: Mapping[str, str] = os.environ) -> Path:
    """The sub-folder of this name, which may not exist yet."""
    if chosen := environment.get(CACHE):
        return Path(chosen).expanduser() / name
    return Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "diffusion_jax" / name
