"""SHA-256s of the files that are imported."""

import hashlib
import re
from pathlib import Path

from diffusion_jax.errors import UserError


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes.

    Raises UserError where the file is a link into a cache of the Hugging Face hub, which names a large file by its
    SHA-256, and has another.
    """
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    stored = path.resolve()
    if stored.parent.name == "blobs" and re.fullmatch(r"[0-9a-f]{64}", stored.name) and stored.name != found:
        raise UserError(
            f"{path} has SHA-256 {found}, and its name in the cache says {stored.name}; it is damaged, so delete "
            f"{stored} and fetch it anew"
        )
    return found
