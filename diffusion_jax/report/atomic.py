"""Writing a whole file at once."""

import os
import secrets
from pathlib import Path


def replace_file(path: str | os.PathLike[str], data: bytes) -> None:
    """Makes path hold data, creating parent folders; a reader, or a crash, finds the old file or the new, never a part.

    An OSError (full disk, no permission) leaves the old file as it was and nothing beside it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(
        f".{path.name}.{secrets.token_hex(4)}.part"
    )  # beside it: a rename is atomic in one filesystem
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
