"""The lock by which one run at a time trains in a workdir. A run that ends before its first step leaves no files."""

import contextlib
import dataclasses
import datetime
import fcntl
import json
import os
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import jax

from diffusion_jax.errors import UserError
from diffusion_jax.report.atomic import replace_file
from diffusion_jax.runs.workdir.paths import Workdir
from diffusion_jax.train.interruptible import uninterrupted

NAME = ".training.json"
"""The file in the workdir that is locked. It names the process that has the lock. Hidden files are not mirrored."""


@dataclasses.dataclass
class Training:
    """The run that has the lock."""

    begun: bool = False
    """Whether a step is done, which the caller sets. From then on, what the run has written stays."""


@contextlib.contextmanager
def training_in(root: Path) -> Iterator[Training]:
    """While entered, no other run trains in the workdir root. Reading it, as `sample` and `evaluate` do, needs no lock.

    Raises UserError, with the host, process and start of the run that has the lock, where there is one. The kernel
    holds the lock (flock) and releases it when the process ends, in whatever way. On NFS, Linux makes it a lock of the
    server, which holds between hosts, unless the mount has nolock or local_lock; after a crash of the client it is free
    once the server has noticed. Mounted buckets (gcsfuse) and some parallel file systems have no locks between hosts.
    Where a file system refuses to lock, stderr says so and training goes on. One that locks on each host alone is not
    detected.

    Where the block raises before `Training.begun`, the workdir is as it was before: new files are deleted, and the old
    config and table of parameters are back. Of the processes of a run, the first has the lock and cleans up.
    """
    if jax.process_index() > 0:
        yield Training()
        return
    training = Training()
    missing = [each for each in (root, *root.parents) if not each.exists()]
    root.mkdir(parents=True, exist_ok=True)
    try:
        with _locked(root / NAME):
            workdir, before = Workdir(root), set(os.listdir(root))
            texts = {file: file.read_bytes() for file in (workdir.config, workdir.parameters) if file.is_file()}
            try:
                yield training
            except BaseException:
                if not training.begun:
                    with uninterrupted():
                        _restore(root, before, texts)
                raise
    finally:
        for folder in missing:
            with contextlib.suppress(OSError):  # the folder holds what the run has written
                folder.rmdir()


def _restore(root: Path, stays: set[str], texts: dict[Path, bytes]) -> None:
    """Deletes the entries of root that are not in stays, and gives files their texts back."""
    for entry in root.iterdir():
        if entry.name in stays:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)
    for file, text in texts.items():
        if file.read_bytes() != text:
            replace_file(file, text)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    descriptor = _lock(path)
    try:
        yield
    finally:
        if descriptor is not None:
            path.unlink(missing_ok=True)  # while it is locked, so that no other process can have it
            os.close(descriptor)


def _lock(path: Path) -> int | None:
    """A descriptor that holds the lock; None where the file system does not lock."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise UserError(
                f"{path.parent} is being trained by {_holder(path)}; wait for it, stop it, or give another --workdir"
            ) from None
        except OSError as error:
            os.close(descriptor)
            path.unlink(missing_ok=True)
            says = f"{path.parent} cannot be locked ({error.strerror}); see to it that no other run trains there"
            print(f"diffusion-jax: {says}", file=sys.stderr, flush=True)
            return None
        if _is_still(path, descriptor):
            record = {"host": socket.gethostname(), "pid": os.getpid(), "since": _now()}
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(record).encode(), 0)
            return descriptor
        os.close(descriptor)  # the run before has just ended and deleted its file: lock the file that is there now


def _is_still(path: Path, descriptor: int) -> bool:
    """Whether the file of the descriptor is still at path."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _holder(path: Path) -> str:
    """The run that has the lock, as the end of a sentence."""
    try:
        record = json.loads(path.read_text())
        return f"process {record['pid']} on {record['host']} since {record['since']}"
    except (OSError, ValueError, KeyError, TypeError):  # it has the lock, and has not written its name yet
        return "another run that has just begun"


def _now() -> str:
    return datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
