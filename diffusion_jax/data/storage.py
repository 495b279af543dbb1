"""The files of a data set, on a disk or at an address of fsspec such as gs://bucket/folder, read in ranges."""

import dataclasses
import hashlib
import io
import os
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, TYPE_CHECKING, Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from diffusion_jax.data.files import HIDDEN
from diffusion_jax.data.labelled_files import SPLITS
from diffusion_jax.errors import UserError

if TYPE_CHECKING:
    from typing_extensions import Buffer

WAITS = (0.5, 2.0, 8.0)
"""Seconds before the second, third and fourth attempt to read from a bucket."""

MOST_NAMES = 1_000_000
"""The most names that a brace range may stand for."""

_SPLIT = re.compile(rf"(?:^|[-_.])({'|'.join(sorted(SPLITS, key=len, reverse=True))})(?=[-_.]|$)")

_OF = re.compile(r"-\d+-of-\d+$", re.ASCII)  # behind the suffix of a TFDS shard

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)", re.ASCII)

_VERSIONS = (
    "size",
    "mtime",
    "ETag",
    "etag",
    "generation",
    "LastModified",
    "last_modified",
    "updated",
    "created",
    "oid",
    "blob_id",
)
"""Entries of a file's listing, in one file system or another, that change with the file."""


class StorageError(UserError):
    """A disk or a bucket that could not be read, although the examples in it may be sound: no example is skipped."""


@dataclasses.dataclass(frozen=True)
class Shard:
    """One file of a data set."""

    path: str  # as its file system takes it
    size: int  # bytes
    version: str  # a text that changes with the file

    @property
    def name(self) -> str:
        """The name of the file, without its folder."""
        return self.path.rpartition("/")[2]


@dataclasses.dataclass(frozen=True)
class Shards:
    """The files of one split of a data set, in the order of their paths."""

    address: str  # as the user gave it
    files: fsspec.AbstractFileSystem
    shards: tuple[Shard, ...]

    @property
    def local(self) -> bool:
        """Whether the files lie on this machine's disks."""
        return isinstance(self.files, LocalFileSystem)

    def only(self, chosen: Sequence[bool]) -> "Shards":
        """The files where chosen is true."""
        shards = zip(self.shards, chosen, strict=True)
        return dataclasses.replace(self, shards=tuple(shard for shard, taken in shards if taken))

    def name(self, shard: int) -> str:
        """The address of a shard, for messages."""
        path = self.shards[shard].path
        return path if self.local else str(self.files.unstrip_protocol(path))

    def read(self, shard: int, start: int, end: int) -> bytes:
        """The bytes [start, end) of a shard, fewer where it ends; raises StorageError where they can't be read."""
        path = self.shards[shard].path
        for wait in (*WAITS, None):
            try:
                if self.local:
                    with open(path, "rb", buffering=0) as file:
                        file.seek(start)
                        return file.read(end - start)
                return self.files.cat_file(path, start=start, end=end)
            except Exception as error:  # each file system has errors of its own
                if self.local or wait is None or isinstance(error, FileNotFoundError):
                    raise unreadable(self.name(shard), error) from error
                time.sleep(wait)
        raise AssertionError

    def open(self, shard: int, buffer: int) -> IO[bytes]:
        """A shard as a file, of which a bucket is asked for `buffer` bytes at a time or more."""
        if not self.local:
            return io.BufferedReader(_Ranges(self, shard), buffer)
        try:
            return open(self.shards[shard].path, "rb")
        except OSError as error:
            raise unreadable(self.name(shard), error) from error


class _Ranges(io.RawIOBase):
    """A shard as a file of which each read is a `Shards.read`, with its attempts."""

    def __init__(self, shards: Shards, shard: int):
        self._shards, self._shard, self._at = shards, shard, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + (0, self._at, self._shards.shards[self._shard].size)[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: "Buffer") -> int:
        view = memoryview(buffer)
        end = min(self._at + len(view), self._shards.shards[self._shard].size)
        data = self._shards.read(self._shard, self._at, end) if end > self._at else b""
        view[: len(data)] = data
        self._at += len(data)
        return len(data)


def unreadable(name: str, error: Exception) -> StorageError:
    """The error of a file that can't be read."""
    return StorageError(
        f"{name} can't be read ({' '.join(str(error).split())[:300] or type(error).__name__}); check the file, the "
        "network and who may read it"
    )


def all_files(address: str, suffixes: Sequence[str], noun: str) -> Shards:
    """The files at an address: a file, a folder, a pattern with * ? or [], or names with {000..012} or {a,b}.

    In a folder the files that end in one of suffixes count, in its sub-folders too. noun is the word for the files in
    errors. Raises UserError where there are none.
    """
    files, found = _matching(address, suffixes, noun)
    return Shards(address, files, tuple(Shard(path, int(i["size"]), _version(i)) for path, i in found.items()))


def find_shards(address: str, suffixes: Sequence[str], split: str, noun: str) -> Shards:
    """The files of a split at an address, among `all_files` there.

    The split of a file is the one of `SPLITS` that stands between - _ . in its name, or is a folder above it; files
    that have none are all "train". Raises UserError where there are none of the split.
    """
    found = all_files(address, suffixes, noun)
    splits = splits_of(found)
    known = sorted({each for each in splits if each is not None})
    if not known:
        if split != "train":
            raise UserError(
                f"{address} has no splits in the names of its {noun}, so all of it is 'train', not {split!r}; set the "
                "split to 'train'"
            )
        return found
    if None in splits:
        raise UserError(
            f"{address} holds {noun} with a split in their names ({', '.join(known)}) and others such as "
            f"{found.name(splits.index(None))}; keep one kind, or write a pattern for the names"
        )
    if split not in known:
        raise UserError(f"{address} has no split {split!r}; choose from {', '.join(known)}")
    return found.only([each == split for each in splits])


def splits_of(found: Shards) -> list[str | None]:
    """The split of each file; None where neither its name nor a folder above it tells one."""
    root = os.path.commonpath([shard.path.rpartition("/")[0] for shard in found.shards])
    return [_split_of(shard.path.removeprefix(root)) for shard in found.shards]


def file_system(address: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """(the file system of an address, the path in it); raises UserError for one of an unknown kind."""
    try:
        return fsspec.core.url_to_fs(os.path.expanduser(address))
    except (ValueError, ImportError) as error:
        raise UserError(f"{address} is not at hand: {' '.join(str(error).split())}") from error


Listing = dict[str, dict[str, Any]]
"""{path: what its file system tells of it}."""


def _matching(address: str, suffixes: Sequence[str], noun: str) -> tuple[fsspec.AbstractFileSystem, Listing]:
    """(the file system of an address, the files that it stands for, in the order of their paths)."""
    files, path = file_system(address)
    try:
        if "{" not in path and files.exists(path):
            found = _below(files, path, suffixes)
        elif names := list(_expanded(path)):
            found = _named(files, names)
    except UserError:
        raise
    except Exception as error:  # each file system has errors of its own
        raise unreadable(address, error) from error
    if not found:
        ends = ", ".join(suffixes)
        raise UserError(
            f"{address} holds no {noun}" + (f", files that end in {ends}" if ends else "") + "; check the path"
        )
    return files, dict(sorted(found.items()))


def _below(files: fsspec.AbstractFileSystem, path: str, suffixes: Sequence[str]) -> Listing:
    """The file at path, or the files in its folders that end in suffixes and are not hidden."""
    info = files.info(path)
    if info["type"] == "file":
        return {path: info}
    listed = files.find(path, detail=True)
    return {name: i for name, i in listed.items() if _counts(name.removeprefix(path), suffixes)}


def _counts(name: str, suffixes: Sequence[str]) -> bool:
    """Whether a file below a folder belongs to the data; a suffix may have -00000-of-00010 behind it."""
    parts = name.strip("/").split("/")
    if any(part.startswith(".") or part.lower() in HIDDEN for part in parts):
        return False
    return not suffixes or _OF.sub("", parts[-1]).lower().endswith(tuple(suffixes))


def _named(files: fsspec.AbstractFileSystem, names: Sequence[str]) -> Listing:
    """The files that names and patterns stand for; raises UserError for a name of which there is no file."""
    found: Listing = {}
    folders: dict[str, Listing] = {}  # listed once: in a bucket, a request for each name would take minutes
    for name in names:
        if any(mark in name for mark in "*?["):
            found |= {path: i for path, i in files.glob(name, detail=True).items() if i["type"] == "file"}
            continue
        folder = name.rpartition("/")[0]
        if folder not in folders:
            listed = files.ls(folder, detail=True) if files.exists(folder) else []
            folders[folder] = {each["name"]: each for each in listed}
        if name not in folders[folder]:
            raise UserError(f"there is no {name}; check the path")
        found[name] = folders[folder][name]
    return found


def _expanded(path: str) -> Iterator[str]:
    """Yields the names that a path with {000..012} or {a,b} stands for; raises UserError for too many or none."""
    braces = _BRACES.search(path)
    if braces is None:
        yield path
        return
    if bounds := _RANGE.fullmatch(braces[1]):
        low, high, width = int(bounds[1]), int(bounds[2]), len(bounds[1])
        if not 0 <= high - low < MOST_NAMES:
            raise UserError(f"{braces[0]} in {path} is no range of 1 to {MOST_NAMES:,} numbers; write {{000..012}}")
        choices: Iterable[str] = (f"{number:0{width}}" for number in range(low, high + 1))
    else:
        choices = braces[1].split(",")
    for choice in choices:
        yield from _expanded(path[: braces.start()] + choice + path[braces.end() :])


def _split_of(path: str) -> str | None:
    """The split in the name of a file or of the nearest folder above it; None where there is none."""
    *folders, name = path.split("/")
    if found := _SPLIT.search(name):
        return found[1]
    return next((folder for folder in reversed(folders) if folder in SPLITS), None)


def _version(info: dict[str, Any]) -> str:
    told = [(key, str(info[key])) for key in _VERSIONS if key in info]
    return hashlib.sha256(repr(told).encode()).hexdigest()
