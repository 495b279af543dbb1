"""A copy of a workdir at an address that fsspec knows, such as gs://bucket/run: what is left when the machine is gone.

A folder of a step, under checkpoints/ or snapshots/, is copied once its manifest is there, and its manifest last: in
the mirror too, a step without one does not exist. One that the workdir no longer has is taken away, its manifest first.
"""

import json
import secrets
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fsspec

from diffusion_jax.errors import UserError
from diffusion_jax.report.atomic import replace_file
from diffusion_jax.train import manifest
from diffusion_jax.train.checkpoint import SaveError

NAME = "mirror.json"
"""Which run it is, in the workdir and in the mirror: no run overwrites another's mirror."""

CHECKPOINTS = "checkpoints"

STEPS = (CHECKPOINTS, "snapshots")
"""Folders of one folder a step."""

COPIES = ("autoencoder", "text_encoder", "tokenizer.json")
"""What a workdir keeps of what its model needs beside its parameters: of one run alone, here and in the mirror."""

WAITS = (1.0, 5.0, 25.0)
"""Seconds before each further attempt to copy a file."""


class MirrorError(SaveError):
    """The mirror could not be read or written; the workdir is whole, and the mirror has the steps before."""


class Mirror:
    """The mirror of the workdir root at address, used by one process of a run.

    Raises UserError where fsspec does not know the address, or its package for it is not installed.
    """

    def __init__(self, address: str, root: Path):
        self.address, self.root = address.rstrip("/"), root
        self._copied: dict[str, tuple[int, int]] = {}  # path: size and time of change when it was copied
        if "://" not in address:
            raise UserError(f"a mirror is an address such as gs://bucket/run or file:///folder; got {address!r}")
        try:
            self._files, self._path = fsspec.core.url_to_fs(self.address)
        except (ValueError, ImportError) as error:
            raise UserError(f"the mirror {address} is not at hand: {error}") from error
        if "file" in self._files.protocol and root.resolve() in (path := Path(self._path).resolve(), *path.parents):
            raise UserError(f"the mirror {address} lies in the workdir {root}, and would hold itself; give another")

    def catch_up(self) -> None:
        """Brings the workdir to the mirror's newest step, if that is newer than its own.

        Raises UserError where the mirror is of another run, or all that it has is damaged.
        """
        here, there = self._identity(), self._read(NAME)
        own, theirs = (_newest(steps) for steps in (self._steps_here(), self._steps_there()))
        if there is not None and json.loads(there) != here and (here is not None or own >= 0):
            raise UserError(
                f"the mirror {self.address} is of another run than {self.root}; give another, or an empty --workdir "
                "to go on with the mirror's run"
            )
        if theirs > own:
            print(f"step {self.fetch()} of the mirror {self.address} is now in {self.root}", flush=True)

    def begin(self) -> None:
        """Makes the two one run's, and the first copy: a mirror that cannot be written says so before training."""
        if self._identity() is None:
            replace_file(self.root / NAME, json.dumps({"run": secrets.token_hex(16)}).encode())
        self.push()
        for path in set(self._listed()) - set(self._loose()):
            if path.partition("/")[0] in COPIES:  # of a run that was killed before its first checkpoint
                self._attempt(self._remove_file, path)

    def fetch(self) -> int:
        """Copies the mirror into the workdir: its newest step that verifies, which is returned, and all but others.

        Raises UserError where none verifies; what is not a checkpoint may then have been copied.
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
                    for copy in COPIES:  # of a run that never saved a checkpoint
                        _delete(self.root / copy)
                    for path in self._listed():
                        if not path.startswith(f"{CHECKPOINTS}/"):
                            self._download(path, self.root / path)
                    shutil.rmtree(target, ignore_errors=True)
                    whole.rename(target)  # last: what is cut short is fetched anew
                    return _number(step)
            reasons.append(f"step {_number(step)}: {reason}")
        found = f"every checkpoint there is damaged ({'; '.join(reasons)})" if reasons else "it has no checkpoint"
        raise UserError(f"nothing to fetch from {self.address}: {found}")

    def push(self) -> None:
        """Copies what is new or changed; returns when it is all there. Raises MirrorError where that failed."""
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

    def _identity(self) -> dict[str, Any] | None:
        file = self.root / NAME
        return json.loads(file.read_text()) if file.is_file() else None

    def _steps_here(self) -> list[str]:
        """Those with a manifest: checkpoints/100, ..."""
        folders = [folder for kind in STEPS for folder in (self.root / kind).glob("*") if folder.name.isdecimal()]
        return sorted(f.relative_to(self.root).as_posix() for f in folders if (f / manifest.NAME).is_file())

    def _steps_there(self) -> list[str]:
        found = (Path(path) for path in self._listed() if path.count("/") == 2 and path.startswith(STEPS))
        return [path.parent.as_posix() for path in found if path.name == manifest.NAME and path.parent.name.isdecimal()]

    def _loose(self) -> list[str]:
        """Every file that is in no folder of `STEPS`; hidden ones and parts of files are none."""
        files = (path.relative_to(self.root) for path in self.root.rglob("*") if path.is_file())
        loose = [path for path in files if path.parts[0] not in STEPS or len(path.parts) == 1]
        shown = [path.as_posix() for path in loose if not any(part.startswith(".") for part in path.parts)]
        return sorted(shown, key=lambda path: (path != NAME, path))  # whose it is comes first

    def _listed(self, under: str = "") -> list[str]:
        """The paths of all files in the mirror, or under one of its folders."""
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
        except FileNotFoundError:  # of an evaluation that has ended meanwhile
            return
        if self._copied.get(path) == (found.st_size, found.st_mtime_ns):
            return
        self._files.makedirs(there.rpartition("/")[0], exist_ok=True)
        self._files.put_file(str(file), there)
        self._copied[path] = found.st_size, found.st_mtime_ns

    def _remove(self, step: str) -> None:
        """The manifest first: what is left of a folder by an end amid this is no step."""
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

    def _attempt(self, action: Any, path: str) -> None:
        for wait in (*WAITS, None):
            try:
                return action(path)
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
    """The last checkpoint; -1 for none. Snapshots may be ahead of it: the run that goes on drops those."""
    return max((_number(step) for step in steps if step.startswith(f"{CHECKPOINTS}/")), default=-1)


def _said(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _make_folders(folder: Path) -> None:
    """The empty folders of a step: an object store keeps none, and the manifest lists them."""
    listed = folder / manifest.NAME
    if listed.is_file():
        try:
            names = json.loads(listed.read_text())["files"]
        except (ValueError, KeyError, UnicodeDecodeError):
            return  # which the check will say
        for name in names:
            if name.endswith("/") and ".." not in Path(name).parts:
                (folder / name).mkdir(parents=True, exist_ok=True)
