"""The mirror: a copy of a workdir at an address of fsspec, such as gs://bucket/run, which outlives the machine.

A step under checkpoints/ or snapshots/ is copied once it has a manifest, and its manifest is copied last, so that a
step without one does not exist in the mirror either. A step that the workdir no longer has is deleted, its manifest
first.
"""

import json
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypedDict

import fsspec

from diffusion_jax.errors import UserError
from diffusion_jax.report.atomic import replace_file
from diffusion_jax.train import manifest
from diffusion_jax.train.checkpoint import SaveError

NAME = "mirror.json"
"""The file that identifies the run, in the workdir and in its mirror. No run overwrites the mirror of another."""

CHECKPOINTS = "checkpoints"

STEPS = (CHECKPOINTS, "snapshots")
"""Folders that have a folder for each step."""

COPIES = ("autoencoder", "text_encoder", "teacher", "tokenizer.json")
"""Copies in a workdir of what its model needs beside its parameters. They belong to one run, here and in the mirror."""

WAITS = (1.0, 5.0, 25.0)
"""Seconds before the second, third and fourth attempt to copy a file."""


class Identity(TypedDict):
    """What `NAME` says of a run."""

    run: str  # random


class MirrorError(SaveError):
    """The mirror could not be read or written. The workdir is intact, and the mirror has the earlier steps."""


class Mirror:
    """The mirror of the workdir root at an address, which one process of a run uses.

    Raises UserError for an address that fsspec does not know, or whose package is not installed, and for one inside the
    workdir.
    """

    def __init__(self, address: str, root: Path):
        self.address, self.root = address.rstrip("/"), root
        self._copied: dict[str, tuple[int, int]] = {}  # path: its size and time of change when it was copied
        if "://" not in address:
            raise UserError(f"a mirror is an address such as gs://bucket/run or file:///folder; got {address!r}")
        try:
            self._files, self._path = fsspec.core.url_to_fs(self.address)
        except (ValueError, ImportError) as error:
            raise UserError(f"the mirror {address} is not at hand: {error}") from error
        if "file" in self._files.protocol and root.resolve() in (path := Path(self._path).resolve(), *path.parents):
            raise UserError(f"the mirror {address} lies in the workdir {root}, and would hold itself; give another")

    def catch_up(self) -> None:
        """Fetches the mirror's newest step into the workdir, if the workdir has no step as new.

        Raises UserError where the mirror is of another run, and where all its checkpoints are damaged.
        """
        here, there = self._identity(), self._read(NAME)
        newest_here, newest_there = (_newest(steps) for steps in (self._steps_here(), self._steps_there()))
        if there is not None and json.loads(there) != here and (here is not None or newest_here >= 0):
            raise UserError(
                f"the mirror {self.address} is of another run than {self.root}; give another, or an empty --workdir "
                "to go on with the mirror's run"
            )
        if newest_there > newest_here:
            print(f"step {self.fetch()} of the mirror {self.address} is now in {self.root}", flush=True)

    def begin(self) -> None:
        """Gives workdir and mirror one identity and copies the workdir, so that an error comes before training.

        Raises MirrorError where the mirror cannot be written.
        """
        if self._identity() is None:
            replace_file(self.root / NAME, json.dumps({"run": secrets.token_hex(16)}).encode())
        self.push()
        for path in set(self._listed()) - set(self._loose()):
            if path.partition("/")[0] in COPIES:  # left by a run that was killed before its first checkpoint
                self._attempt(self._remove_file, path)

    def fetch(self) -> int:
        """Copies the mirror into the workdir without its older checkpoints, and returns its newest verified step.

        Raises UserError where no step verifies.
        """
        reasons = []
        for step in sorted(self._steps_there(), key=_number, reverse=True):
            if not step.startswith(CHECKPOINTS):
                continue
            target = self.root / step
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetched-") as folder:
                whole = Path(folder, "step")
                for path in self._listed(step):
                    self._download(path, whole / Path(path).relative_to(step))
                _make_folders(whole)
                status, reason = manifest.verify(whole)
                if status == manifest.VERIFIED:
                    for copy in COPIES:  # left by a run that never saved a checkpoint
                        _delete(self.root / copy)
                    for path in self._listed():
                        if not path.startswith(f"{CHECKPOINTS}/"):
                            self._download(path, self.root / path)
                    shutil.rmtree(target, ignore_errors=True)
                    whole.rename(target)  # last, so that an interrupted fetch starts again
                    return _number(step)
            reasons.append(f"step {_number(step)}: {reason}")
        found = f"every checkpoint there is damaged ({'; '.join(reasons)})" if reasons else "it has no checkpoint"
        raise UserError(f"nothing to fetch from {self.address}: {found}")

    def push(self) -> None:
        """Copies what is new or changed, and returns when all is copied. Raises MirrorError where that failed."""
        steps, there = self._steps_here(), set(self._steps_there())
        for path in self._loose():
            self._attempt(self._upload, path)
        for step in steps:
            listed = f"{step}/{manifest.NAME}"
            if step in there and self._read(listed) == (self.root / listed).read_bytes():
                continue
            self._attempt(self._remove, step)
            inside = sorted(p.relative_to(self.root).as_posix() for p in (self.root / step).rglob("*") if p.is_file())
            for path in [*(path for path in inside if path != listed), listed]:
                self._attempt(self._upload, path)
        for step in sorted(there - set(steps)):
            self._attempt(self._remove, step)

    def _identity(self) -> Identity | None:
        """The identity of the workdir's run; None where it has none yet."""
        file = self.root / NAME
        return json.loads(file.read_text()) if file.is_file() else None

    def _steps_here(self) -> list[str]:
        """The steps of the workdir that have a manifest, as checkpoints/100, ..."""
        folders = [folder for kind in STEPS for folder in (self.root / kind).glob("*") if folder.name.isdecimal()]
        return sorted(f.relative_to(self.root).as_posix() for f in folders if (f / manifest.NAME).is_file())

    def _steps_there(self) -> list[str]:
        """The steps of the mirror that have a manifest."""
        found = (Path(path) for path in self._listed() if path.count("/") == 2 and path.startswith(STEPS))
        return [path.parent.as_posix() for path in found if path.name == manifest.NAME and path.parent.name.isdecimal()]

    def _loose(self) -> list[str]:
        """Every file of the workdir in no folder of `STEPS`, except hidden files and parts of files."""
        files = (path.relative_to(self.root) for path in self.root.rglob("*") if path.is_file())
        loose = [path for path in files if path.parts[0] not in STEPS or len(path.parts) == 1]
        shown = [path.as_posix() for path in loose if not any(part.startswith(".") for part in path.parts)]
        return sorted(shown, key=lambda path: (path != NAME, path))  # the identity comes first

    def _listed(self, under: str = "") -> list[str]:
        """The paths of all files in the mirror, or in one of its folders."""
        base = self._path.rstrip("/")
        try:
            self._files.invalidate_cache()
            found = self._files.find(f"{base}/{under}".rstrip("/"))
        except FileNotFoundError:
            return []
        except Exception as error:  # each backend has its own
            raise MirrorError(f"cannot read the mirror {self.address}: {_said(error)}") from error
        return sorted(path[path.index(base) + len(base) :].lstrip("/") for path in found)

    def _read(self, path: str) -> bytes | None:
        try:
            return self._files.cat_file(f"{self._path}/{path}")
        except FileNotFoundError:
            return None
        except Exception as error:  # each backend has its own
            raise MirrorError(f"cannot read {path} of the mirror {self.address}: {_said(error)}") from error

    def _download(self, path: str, to: Path) -> None:
        to.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._files.get_file(f"{self._path}/{path}", str(to))
        except Exception as error:  # each backend has its own
            raise MirrorError(f"cannot read {path} of the mirror {self.address}: {_said(error)}") from error

    def _upload(self, path: str) -> None:
        file, there = self.root / path, f"{self._path}/{path}"
        try:
            found = file.stat()
        except FileNotFoundError:  # it belonged to an evaluation that has ended meanwhile
            return
        if self._copied.get(path) == (found.st_size, found.st_mtime_ns):
            return
        self._files.makedirs(there.rpartition("/")[0], exist_ok=True)
        self._files.put_file(str(file), there)
        self._copied[path] = found.st_size, found.st_mtime_ns

    def _remove(self, step: str) -> None:
        """Deletes a step of the mirror, its manifest first, so that a part of it is no step."""
        folder = f"{self._path}/{step}"
        for path in list(self._copied):
            if path.startswith(f"{step}/"):
                del self._copied[path]
        if self._files.exists(f"{folder}/{manifest.NAME}"):
            self._files.rm_file(f"{folder}/{manifest.NAME}")
        if self._files.exists(folder):
            self._files.rm(folder, recursive=True)

    def _remove_file(self, path: str) -> None:
        self._copied.pop(path, None)
        self._files.rm_file(f"{self._path}/{path}")

    def _attempt(self, action: Callable[[str], None], path: str) -> None:
        """action(path), several times where it fails; raises MirrorError where it always fails."""
        for wait in (*WAITS, None):
            try:
                action(path)
                return
            except Exception as error:  # each backend has its own
                if wait is None:
                    raise MirrorError(
                        f"copying {path} to the mirror {self.address} failed: {_said(error)}; {self.root} is whole, "
                        "and the same command goes on from it"
                    ) from error
                time.sleep(wait)


def _delete(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _number(step: str) -> int:
    return int(step.rpartition("/")[2])


def _newest(steps: Sequence[str]) -> int:
    """The newest checkpoint; -1 for none. Newer snapshots do not count: a run that goes on deletes them."""
    return max((_number(step) for step in steps if step.startswith(f"{CHECKPOINTS}/")), default=-1)


def _said(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _make_folders(folder: Path) -> None:
    """Makes the empty folders of a step, which the manifest lists and an object store does not keep."""
    listed = folder / manifest.NAME
    if listed.is_file():
        try:
            names = json.loads(listed.read_text())["files"]
        except (ValueError, KeyError, UnicodeDecodeError):
            return  # verifying the step reports it
        for name in names:
            if name.endswith("/") and ".." not in Path(name).parts:
                (folder / name).mkdir(parents=True, exist_ok=True)
