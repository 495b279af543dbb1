"""The folder that a command writes: checked before the work begins, and then complete or as it was before."""

import contextlib
import dataclasses
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from diffusion_jax.errors import UserError
from diffusion_jax.train.interruptible import uninterrupted

_UNFINISHED = ".unfinished-"
"""Beginning of the names of folders whose content is not complete yet."""

_SMALLEST = 4
"""The greatest compression that `check_room` expects of a file of pictures."""


@dataclasses.dataclass(frozen=True)
class OutputFolder:
    """A folder, given as --out, in which all files of a command appear at once.

    Where the folder exists, its entries are replaced and not the folder itself. So it may be the current folder, a
    symbolic link, a mount, or a folder whose parent cannot be written. Old entries are moved aside, new entries are
    moved in, and then the old ones are deleted. After an error everything is as it was before.
    """

    path: Path
    replaces: Callable[[str], bool] = lambda name: True
    """Whether an old entry of this name is replaced by the new ones."""
    marker: str = ""
    """The file that marks a complete folder. It is the first old entry to go and the last new entry to come."""

    def entries(self) -> list[str]:
        """The names of the present entries, without unfinished ones that a killed command has left."""
        if not self.path.is_dir():
            return []
        return sorted(entry.name for entry in self.path.iterdir() if not entry.name.startswith(_UNFINISHED))

    def check(self) -> None:
        """Raises UserError unless the folder can be written, which is tried out."""
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"--out={self.path} is a file; give a folder")
        check_writable(self.path)
        mounts = [name for name in self.entries() if self.replaces(name) and os.path.ismount(self.path / name)]
        if mounts:
            raise UserError(
                f"--out={self.path} has a mount, {mounts[0]}, which cannot be replaced; give another folder"
            )

    def check_replaceable(self, what: str, *, overwrite: bool) -> None:
        """`check`, and that no files are lost: the folder is new, empty or, with overwrite, one that has the marker.

        what ("samples") is the noun of messages. Raises UserError otherwise.
        """
        self.check()
        entries = self.entries()
        if entries and not overwrite:
            raise UserError(
                f"--out={self.path} already has files; give another folder, or --overwrite to replace its {what}"
            )
        if entries and self.marker not in entries:
            raise UserError(
                f"--out={self.path} has files but no {self.marker}, so it is not a folder of {what}; give another"
            )

    def check_room(self, pixels: int) -> None:
        """Raises UserError where the disk has no room for `pixels` bytes of pictures, even if they are compressed."""
        free = shutil.disk_usage(_existing(self.path)).free
        if pixels > _SMALLEST * free:
            raise UserError(
                f"--out={self.path}: {pixels / 2**30:,.1f} GiB of pixels do not fit on its disk, which has "
                f"{free / 2**30:,.1f} GiB free; draw fewer, or give a folder on another disk"
            )

    @contextlib.contextmanager
    def written(self) -> Iterator[Path]:
        """Yields an empty folder on the same disk. At the end of the block its entries are moved into place.

        An error within the block leaves everything as it was. Where the entries cannot be moved into place, UserError
        says in which folder they are.
        """
        target = Path(os.path.realpath(self.path))
        made = _make_folders(target.parent)
        exists = target.is_dir()
        work = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=target if exists else target.parent))
        new = work / "new"
        try:
            new.mkdir()  # with the permissions of the user's umask, which mkdtemp ignores
            yield new
        except BaseException:
            with uninterrupted():
                shutil.rmtree(work, ignore_errors=True)
                _remove_folders(made)
            raise
        with uninterrupted():
            try:
                self._replace(new, target, work / "old") if exists else new.rename(target)
            except OSError as error:
                raise UserError(
                    f"--out={self.path} could not be replaced: {_reason(error)}; all that was made is in {new}"
                ) from error
            shutil.rmtree(work, ignore_errors=True)

    def _replace(self, new: Path, target: Path, aside: Path) -> None:
        """Moves old entries of target aside and the entries of new into it; after an OSError moves all of them back."""
        aside.mkdir()
        old = sorted((name for name in self.entries() if self.replaces(name)), key=lambda name: name != self.marker)
        incoming = sorted(os.listdir(new), key=lambda name: name == self.marker)
        moves = [(target / name, aside / name) for name in old] + [(new / name, target / name) for name in incoming]
        done: list[tuple[Path, Path]] = []
        try:
            for source, to in moves:
                if os.path.lexists(to):
                    raise FileExistsError(17, "another file has come there", str(to))
                source.rename(to)
                done.append((source, to))
        except OSError:
            for source, to in reversed(done):
                to.rename(source)
            raise


def check_writable(folder: Path) -> None:
    """Raises UserError unless files can be written in the folder, or the folder can be made."""
    base = _existing(folder)
    try:
        os.rmdir(tempfile.mkdtemp(prefix=_UNFINISHED, dir=base))
    except OSError as error:
        where = "" if base == folder else f", in {base}"
        raise UserError(f"{folder} cannot be written{where}: {_reason(error)}; give another place") from error


def check_file(file: Path) -> None:
    """Raises UserError unless the file can be written. The file is not changed."""
    if file.is_dir():
        raise UserError(f"{file} is a folder; give a file")
    check_writable(file.parent)


def _existing(folder: Path) -> Path:
    """The folder, or the nearest existing folder above it, behind symbolic links."""
    path = Path(os.path.realpath(folder))
    return next(each for each in (path, *path.parents) if os.path.lexists(each))


def _make_folders(folder: Path) -> list[Path]:
    """Makes the folder and those above it. Returns those that are new, the innermost first."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def _remove_folders(folders: Sequence[Path]) -> None:
    for folder in folders:
        with contextlib.suppress(OSError):  # another process has put something there
            folder.rmdir()


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
