"""Manifests: the SHA-256 of every file of a folder, written when the folder is complete and verified before reading."""

import concurrent.futures
import contextlib
import hashlib
import json
import os
import secrets
from pathlib import Path
from typing import NamedTuple

NAME = "manifest.json"

_READERS = 4  # threads; hashing releases the interpreter

Listing = dict[str, str | None]
"""{path within the folder: SHA-256 in hex}; a folder's path ends in "/" and has None."""


class Verdict(NamedTuple):
    """The result of `verify`: the status `VERIFIED`, `DAMAGED` or `UNVERIFIED`, and a reason for the last two."""

    status: str
    reason: str = ""


VERIFIED, DAMAGED, UNVERIFIED = "verified", "damaged", "without a manifest"


def write(folder: Path) -> None:
    """Writes the manifest of the folder, whole or not at all. It is on the disk when this returns."""
    part = folder / f".{NAME}.{secrets.token_hex(4)}.part"
    try:
        with part.open("wb") as file:
            file.write(_encode(listing(folder)))
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, folder / NAME)
    finally:
        part.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # some file systems cannot sync a folder
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def verify(folder: Path) -> Verdict:
    """Reads every file of the folder and compares it with the manifest. The reason names the first wrong path.

    A file or folder that the manifest does not list counts as damage, and so does any change of the manifest itself.
    """
    try:
        data = (folder / NAME).read_bytes()
    except FileNotFoundError:
        return Verdict(UNVERIFIED, f"it has no {NAME}")
    except OSError as error:
        return Verdict(DAMAGED, f"{NAME} cannot be read: {error.strerror}")
    try:
        written = json.loads(data)["files"]
        sound = _encode(written) == data
    except (ValueError, KeyError, TypeError):
        sound = False
    if not sound:
        return Verdict(DAMAGED, f"{NAME} is itself damaged")
    try:
        found = listing(folder)
    except OSError as error:
        return Verdict(DAMAGED, f"{error.filename} cannot be read: {error.strerror}")
    for path in sorted(written.keys() | found.keys()):
        if path not in found:
            return Verdict(DAMAGED, f"{path} is missing")
        if path not in written:
            return Verdict(DAMAGED, f"{path} is not in the manifest")
        if written[path] != found[path]:
            return Verdict(DAMAGED, f"{path} differs from its SHA-256")
    return Verdict(VERIFIED)


def listing(folder: Path) -> Listing:
    """Every file of the folder with its SHA-256, and every folder in it; the manifest itself is left out."""
    paths = sorted(path for path in folder.rglob("*") if path.parent != folder or not _is_manifest(path.name))
    with concurrent.futures.ThreadPoolExecutor(_READERS) as pool:
        digests = pool.map(lambda path: None if path.is_dir() else _sha256(path), paths)
        names = (path.relative_to(folder).as_posix() + "/" * path.is_dir() for path in paths)
        return dict(zip(names, digests, strict=True))


def _is_manifest(name: str) -> bool:
    """Whether a file is the manifest, or an unfinished one that a crash has left."""
    return name == NAME or (name.startswith(f".{NAME}.") and name.endswith(".part"))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _encode(files: Listing) -> bytes:
    body = json.dumps(files, sort_keys=True, indent=1)
    digest = hashlib.sha256(body.encode()).hexdigest()
    return json.dumps({"files": files, "sha256": digest}, sort_keys=True, indent=1).encode()
