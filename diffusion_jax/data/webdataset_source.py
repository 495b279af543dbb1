"""Tar shards of WebDataset as a source: `webdataset:PATH/{000..012}.tar`.

A shard is indexed once, so that each image is read by its place, and any order is possible: an index has the offset
and size of each image, and its class and caption. Indexes are kept in the cache folder, by file and its version.
"""

import dataclasses
import functools
import hashlib
import json
import sys
import tarfile
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from diffusion_jax.data.classes import counted, natural_order
from diffusion_jax.data.example import BytesRead, Example
from diffusion_jax.data.json_cache import JsonCache, key_of
from diffusion_jax.data.storage import Shards, find_shards
from diffusion_jax.data.text_file import decode_text
from diffusion_jax.data.transforms import SUFFIXES
from diffusion_jax.errors import UserError

CAPTION = "text"
"""The value of `data.caption` that stands for the .txt or, in a .json, for "text" or "caption"."""

_FORMAT = 1  # of an index
_AT_ONCE = 16  # shards of a bucket that are indexed at once
_LARGEST_TEXT = 2**20  # bytes of a .cls, .txt or .json


class Member(NamedTuple):
    """The image of an example in its shard, and what the files beside it say."""

    name: str
    offset: int
    size: int
    label: int | str | None
    caption: str | None


@dataclasses.dataclass(frozen=True, eq=False)
class WebDataset:
    """The images of tar shards; labels and captions, where there are any, are in the order of names."""

    shards: Shards
    shard: np.ndarray  # int64 [N], of each image
    offsets: np.ndarray  # int64 [N]: the image's first byte in its shard
    sizes: np.ndarray  # int64 [N]: bytes
    names: Sequence[str]  # of the images in their shards
    labels: Sequence[int] | None = None
    captions: Sequence[str] | None = None
    class_names: tuple[str, ...] | None = None
    bytes_read: BytesRead = dataclasses.field(default_factory=BytesRead)

    @functools.cached_property
    def num_classes(self) -> int | None:
        """The number of class names, or one more than the largest label."""
        return counted(self.class_names, self.labels)

    @functools.cached_property
    def fingerprint(self) -> str:
        """The number of images and a hash of their names, sizes, classes and captions, wherever the shards lie."""
        content = json.dumps([self.names, self.sizes.tolist(), self.labels, self.captions, self.class_names])
        return f"{len(self)} images of tar shards, {hashlib.sha256(content.encode()).hexdigest()[:16]}"

    def read_captions(self) -> Iterator[str]:
        """Yields the captions, which are at hand."""
        return iter(self.captions or ())

    def read_head(self, index: int, most: int) -> bytes:
        """The first `most` bytes of the image at index, or all of it."""
        start = int(self.offsets[index])
        return self.shards.read(int(self.shard[index]), start, start + min(int(self.sizes[index]), most))

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(index)
        shard, start, size = int(self.shard[index]), int(self.offsets[index]), int(self.sizes[index])
        example: Example = {"name": f"{self.shards.name(shard)}/{self.names[index]}"}
        data = self.shards.read(shard, start, start + size)
        self.bytes_read.add(len(data))
        if len(data) < size:
            raise UserError(
                f"{example['name']} is cut off after {len(data):,} of {size:,} bytes; fetch its shard again"
            )
        example["image"] = data
        if self.labels is not None:
            example["label"] = self.labels[index]
        if self.captions is not None:
            example["caption"] = self.captions[index]
        return example


def webdataset(
    address: str, split: str = "train", *, caption: str = CAPTION, needs: Collection[str] = ()
) -> WebDataset:
    """The images of the tar shards at an address, as `storage.find_shards` finds them.

    Members whose names are equal up to the first dot are one example: an image, and beside it .cls, the class as a
    number or name, .txt, the caption, and .json, an object with "label" and the caption by the name of `data.caption`.
    A caption that is missing is empty. Raises UserError for shards that are no whole tars, for an example with two
    images, for a label that some examples lack, and where needs has "caption" or "label" and no example has one.
    """
    shards = find_shards(address, (".tar",), split, "tar shards")
    found = _indexed(shards, caption)
    members = [member for each in found for member in each]
    if not members:
        raise UserError(f"{address} holds no images, members that end in {', '.join(SUFFIXES)}; check the shards")
    labels, names = _numbered(shards, found, needed="label" in needs)
    captions = [member.caption or "" for member in members] if any(m.caption is not None for m in members) else None
    if "caption" in needs and captions is None:
        raise UserError(
            f"{address} has no captions: no .txt, and no .json with {caption!r}, beside its images; name the entry of "
            "the .json with data.caption"
        )
    return WebDataset(
        shards,
        np.repeat(np.arange(len(found)), [len(each) for each in found]),
        np.array([member.offset for member in members], np.int64),
        np.array([member.size for member in members], np.int64),
        [member.name for member in members],
        labels,
        captions,
        names,
    )


def _numbered(
    shards: Shards, found: Sequence[Sequence[Member]], *, needed: bool
) -> tuple[list[int] | None, tuple[str, ...] | None]:
    """(the label of each example, the names of the classes if they are no numbers); None without labels."""
    labels = [member.label for each in found for member in each]
    if all(label is None for label in labels):
        return None, None
    if any(label is None for label in labels):
        if not needed:
            return None, None
        shard, name = next((i, m.name) for i, each in enumerate(found) for m in each if m.label is None)
        raise UserError(f"{shards.name(shard)}/{name} has no label, and others have; give all of them one, or none")
    if all(isinstance(label, int) for label in labels):
        return labels, None  # type: ignore[return-value]
    if any(isinstance(label, int) for label in labels):
        raise UserError(f"{shards.address} has both numbers and names as labels; keep one kind")
    names = natural_order(str(label) for label in labels)
    number = {name: i for i, name in enumerate(names)}
    return [number[str(label)] for label in labels], names


def _indexed(shards: Shards, caption: str) -> list[list[Member]]:
    """The members of each shard, from the cache or, for shards that are new, from their tars."""
    cache = JsonCache("tar")
    keys = [key_of(_FORMAT, shards.name(i), shard.version, caption) for i, shard in enumerate(shards.shards)]
    found = [cache.get(key) for key in keys]
    missing = [i for i, each in enumerate(found) if each is None]
    if missing and not shards.local:
        print(f"diffusion-jax: indexing {len(missing):,} shards of {shards.address}, once", file=sys.stderr, flush=True)

    def index(i: int) -> None:
        found[i] = _index(shards, i, caption)
        cache.put(keys[i], found[i])

    if shards.local:
        for i in missing:
            index(i)
    else:
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            list(pool.map(index, missing))
    return [[Member(*member) for member in each] for each in found]


def _index(shards: Shards, shard: int, caption: str) -> list[Member]:
    """The examples of a shard in the order of their images; raises UserError where it is no whole tar."""
    name = shards.name(shard)
    images: dict[str, tarfile.TarInfo] = {}
    texts: dict[str, dict[str, str]] = {}  # {key: {suffix: content}}
    try:
        with shards.open(shard, 2**23) as file, tarfile.open(fileobj=file, mode="r:") as archive:
            for info in archive:
                folder, _, base = info.name.rpartition("/")
                stem, _, suffix = base.partition(".")
                if not info.isfile() or not stem or not suffix:
                    continue
                key, suffix = f"{folder}/{stem}", suffix.lower()
                if f".{suffix}" in SUFFIXES:
                    if key in images:
                        raise UserError(
                            f"{name} has two images of one example, {images[key].name} and {info.name}; keep one"
                        )
                    images[key] = info
                elif suffix in ("cls", "txt", "json") and info.size <= _LARGEST_TEXT:
                    read = archive.extractfile(info)
                    if read is not None:
                        texts.setdefault(key, {})[suffix] = decode_text(read.read(), f"{name}/{info.name}")
    except UserError:
        raise
    except (tarfile.TarError, EOFError) as error:
        raise UserError(f"{name} is no whole, uncompressed tar ({error}); fetch it again, or unpack its .gz") from error
    except OSError as error:
        raise UserError(f"{name} can't be read ({error}); check the file and the network") from error
    return [
        Member(info.name, info.offset_data, info.size, *_told(texts.get(key, {}), f"{name}/{info.name}", caption))
        for key, info in images.items()
    ]


def _told(texts: dict[str, str], name: str, caption: str) -> tuple[int | str | None, str | None]:
    """(label, caption) of an example, from the files beside its image."""
    entries: dict[str, Any] = {}
    if "json" in texts:
        try:
            entries = json.loads(texts["json"])
        except ValueError as error:
            raise UserError(f"the .json beside {name} is not JSON ({error}); write the shard anew") from None
        if not isinstance(entries, dict):
            raise UserError(f"the .json beside {name} is no object; write the shard anew")
    label: object = texts["cls"].strip() if "cls" in texts else entries.get("label")
    if isinstance(label, str) and label.isascii() and label.isdigit():
        label = int(label)
    if type(label) not in (int, str) or (type(label) is int and label < 0):  # a .json may call other things a label
        label = None
    if caption == CAPTION:
        told = texts.get("txt", entries.get("text", entries.get("caption")))
    else:
        told = entries.get(caption)
    if told is not None and not isinstance(told, str):
        raise UserError(f"{name} has the caption {told!r} in its .json; expected a text")
    return label, None if told is None else told.strip()  # type: ignore[return-value]
