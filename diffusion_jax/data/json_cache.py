"""What was read of a user's files once, such as indexes of tar shards, as JSON in the cache folder."""

import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from diffusion_jax.cache_folder import CACHE, cache_folder


def key_of(*parts: object) -> str:
    """A name for what depends on parts alone."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


class JsonCache:
    """JSON values by key, a file each, below a sub-folder of the cache."""

    def __init__(self, name: str):
        self._folder = cache_folder(name)
        self._told = False

    def get(self, key: str) -> Any:
        """The value of key; None where there is none, or its file is damaged."""
        try:
            return json.loads((self._folder / f"{key}.json").read_bytes())
        except (OSError, ValueError):
            return None

    def put(self, key: str, value: object) -> None:
        """Stores the value of key. A cache that cannot be written is said once, and the value computed again later."""
        try:
            write_whole(self._folder / f"{key}.json", [json.dumps(value).encode()])
        except OSError as error:
            if not self._told:
                print(
                    f"diffusion-jax: {self._folder} cannot be written ({error}), so indexes are made anew at each "
                    f"start; set {CACHE} to a folder that can",
                    file=sys.stderr,
                    flush=True,
                )
            self._told = True


def write_whole(path: Path, content: Iterable[bytes]) -> None:
    """Writes a file, given in pieces, that appears whole or not at all, also where other processes write it too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".part-", delete=False) as file:
        try:
            file.writelines(content)
            file.close()
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise
