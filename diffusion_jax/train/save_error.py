"""The error of a checkpoint that could not be written, in one sentence."""

import errno
import os
import warnings
from pathlib import Path

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG, errno.EIO)
"""Errors of the disk, which the user can mend. tensorstore has them at the end of long messages."""


class SaveError(OSError):
    """A checkpoint could not be written. Earlier checkpoints are unchanged."""


def save_error(step: int, directory: Path, error: Exception) -> SaveError:
    """The error of a save of a step in directory that failed, by its cause."""
    # Orbax drops coroutines that it had made. Python's warnings about them would hide the error.
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    text = " ".join(str(error).split())
    reason = next((known for known in map(os.strerror, _DISK) if known.lower() in text.lower()), text[:300])
    return SaveError(f"saving step {step} in {directory} failed, earlier checkpoints are as they were: {reason}")
