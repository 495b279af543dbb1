"""Files by name in a folder or, without unpacking, in a zip."""

import os
import threading
import zipfile
import zlib
from typing import Protocol

from diffusion_jax.errors import UserError

MAX_FILE = 2**28  # bytes that one file of a zip may unpack to

HIDDEN = frozenset(
    {
        "__macosx",
        "@eadir",
        "@tmp",
        "#recycle",
        "#snapshot",
        "@recycle",
        "@recently-snapshot",
        "$recycle.bin",
        "system volume information",
        "lost+found",
        "thumbs.db",
        "ehthumbs.db",
        "desktop.ini",
    }
)
"""Files that operating systems and viewers add, in lower case; names that begin with a dot are hidden too."""

_BROKEN = (OSError, EOFError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error)


class Files(Protocol):
    """A tree of files; names are relative to path, with / between their parts. Picklable, safe to read from threads."""

    path: str

    def names(self) -> list[str]:
        """The files, and the folders with a / at the end, sorted; without hidden ones and their contents."""
        ...

    def read(self, name: str, most: int = -1) -> bytes:
        """The file's bytes, or its first `most`; raises UserError that names it if it can't be read."""
        ...


def open_files(path: str, noun: str = "images") -> Files:
    """The files in the folder or zip at path; raises UserError, with noun for the files, if it is neither."""
    path = os.path.normpath(os.path.expanduser(path))
    if os.path.isdir(path):
        return _Folder(path)
    if not os.path.exists(path):
        raise UserError(f"there is no folder or zip of {noun} at {path}; check the path")
    return _Zip(path)


class _Folder:
    def __init__(self, path: str):
        self.path = path

    def names(self) -> list[str]:
        found: list[str] = []
        above: dict[str, tuple[str, ...]] = {}  # {folder: real paths of the folders above it and its own}
        for folder, folders, files in os.walk(self.path, followlinks=True):
            place, way = os.path.realpath(folder), above.get(os.path.dirname(folder), ())
            if place in way:  # a symbolic link to a folder above
                folders.clear()
                continue
            above[folder] = (*way, place)
            folders[:] = [name for name in folders if not _hidden(name)]
            prefix = os.path.join(os.path.relpath(folder, self.path), "").replace(os.sep, "/").removeprefix("./")
            found += [f"{prefix}{name}/" for name in folders]
            found += [prefix + name for name in files if not _hidden(name)]
        return sorted(found)

    def read(self, name: str, most: int = -1) -> bytes:
        try:
            with open(os.path.join(self.path, name), "rb") as file:
                return file.read(most)
        except OSError as error:
            raise UserError(f"{self.path}/{name} can't be read ({error}); check the file") from error


class _Zip:
    def __init__(self, path: str):
        self.path = path
        try:
            self._archive = zipfile.ZipFile(path)
        except _BROKEN as error:
            raise UserError(f"{path} is neither a folder nor a whole zip ({error}); check the file") from error
        self._lock = threading.Lock()  # ZipFile counts its readers without one
        self._entries: dict[str, str] = {}  # name: as the zip writes it, maybe with \\ (of Windows) or a ./ before
        for entry in self._archive.namelist():
            name = "/".join(part for part in entry.replace("\\", "/").split("/") if part != ".")
            if name == entry or name not in self._entries:
                self._entries[name] = entry

    def __reduce__(self) -> tuple[type["_Zip"], tuple[str]]:
        return _Zip, (self.path,)  # opened anew: two processes can't share one position in a file

    def names(self) -> list[str]:
        return sorted(name for name in self._entries if not any(map(_hidden, name.removesuffix("/").split("/"))))

    def read(self, name: str, most: int = -1) -> bytes:
        entry = self._entries[name]
        size = self._archive.getinfo(entry).file_size  # ZipFile unpacks no more than that, whatever the data says
        if size > MAX_FILE:
            raise UserError(f"{self.path}/{name} unpacks to {size:,} bytes, more than {MAX_FILE:,}; take it out")
        try:
            with self._lock, self._archive.open(entry) as file:
                return file.read(most)
        except _BROKEN as error:
            raise UserError(f"{self.path}/{name} can't be read ({error}); make the zip anew") from error


def _hidden(part: str) -> bool:
    """Whether a file or folder whose name has this part is hidden; so are names that go up or start at the root."""
    return not part or part.startswith(".") or part.lower() in HIDDEN
