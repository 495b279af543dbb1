"""Files of array_record as a source: `array_record:PATH`.

A record is an encoded image, or a serialized tf.train.Example. A folder with the features.json of TFDS is read as
that data set. The library reads this machine's disks alone, so files in buckets are copied to the cache folder first.
"""

import bisect
import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import sys
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from array_record.python.array_record_data_source import ArrayRecordDataSource
from google.protobuf.message import DecodeError
from tensorflow_datasets.proto import tf_example_pb2

from diffusion_jax.cache_folder import CACHE, cache_folder
from diffusion_jax.data.classes import shown
from diffusion_jax.data.example import Example
from diffusion_jax.data.json_cache import JsonCache, key_of, write_whole
from diffusion_jax.data.storage import Shards, all_files, file_system, find_shards, splits_of
from diffusion_jax.data.tfds_source import TfdsSource, tfds_folder
from diffusion_jax.errors import UserError

CAPTION = "text"
"""The value of `data.caption` that stands for "caption" or "text"."""

FEATURES = "features.json"
"""The file by which a folder is one of TFDS."""

_IMAGES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF", b"BM", b"P5", b"P6")  # the first bytes of transforms.FORMATS
_FORMAT = 1  # of a stored list of labels
_AT_ONCE = 8  # files that are copied at once
_PIECE = 2**24  # bytes of a file that are copied at a time


class Fields(NamedTuple):
    """Names of the features of a tf.train.Example; image None for records that are an image themselves."""

    image: str | None
    label: str | None
    caption: str | None


@dataclasses.dataclass(frozen=True, eq=False)
class ArrayRecords:
    """The images of array_record files; labels and captions come from the records themselves."""

    shards: Shards
    records: ArrayRecordDataSource
    counts: tuple[int, ...]  # records of each file
    fields: Fields

    class_names = None

    @functools.cached_property
    def num_classes(self) -> int | None:
        """One more than the largest label, for which all records are read once; None without labels."""
        if self.fields.label is None:
            return None
        cache, first, largest = JsonCache("labels"), 0, -1
        for i, count in enumerate(self.counts):
            key = key_of(_FORMAT, self.shards.name(i), self.shards.shards[i].version, self.fields)
            if (found := cache.get(key)) is None:
                found = max(self._labels(range(first, first + count)), default=-1)
                cache.put(key, found)
            first, largest = first + count, max(largest, found)
        return largest + 1

    def _labels(self, records: range) -> Iterator[int]:
        """Yields the labels of the records that can be read; training names the others."""
        for index in records:
            with contextlib.suppress(UserError):
                yield self[index]["label"]

    @functools.cached_property
    def fingerprint(self) -> str:
        """The number of records and a hash of the files' names, sizes and features, wherever they lie."""
        names = [(shard.name, shard.size) for shard in self.shards.shards]
        content = json.dumps([names, self.counts, self.fields])
        return f"{len(self)} records, {hashlib.sha256(content.encode()).hexdigest()[:16]}"

    def __len__(self) -> int:
        return sum(self.counts)

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(index)
        example: Example = {"name": self._name(index)}
        try:
            record = self.records[index]
        except Exception as error:  # damaged data make the library raise nearly anything
            raise UserError(f"{example['name']} can't be read ({_line(error)}); fetch the file again") from error
        if self.fields.image is None:
            example["image"] = record
            return example
        features = _features(record)
        if features is None:
            raise UserError(f"{example['name']} is no tf.train.Example, as the first record is; write it anew")
        image, label, caption = (None if name is None else features.get(name) for name in self.fields)
        if not image or not isinstance(image[0], bytes):
            raise UserError(f"{example['name']} has no image {self.fields.image!r}; write it anew")
        example["image"] = image[0]
        if self.fields.label is not None:
            if not label or not isinstance(label[0], int) or label[0] < 0:
                raise UserError(f"{example['name']} has the label {label}; expected a number from 0 on")
            example["label"] = label[0]
        if self.fields.caption is not None:
            told = caption[0] if caption else b""
            example["caption"] = told.decode() if isinstance(told, bytes) else str(told)
        return example

    def _name(self, index: int) -> str:
        shard = bisect.bisect_right(self._ends, index)
        return f"{self.shards.name(shard)}, record {index - self._ends[shard] + self.counts[shard]}"

    @functools.cached_property
    def _ends(self) -> list[int]:
        """The number of records up to the end of each file."""
        return list(itertools.accumulate(self.counts))


def array_records(
    address: str, split: str = "train", *, caption: str = CAPTION, needs: Collection[str] = ()
) -> ArrayRecords | TfdsSource:
    """The images of the array_record files at an address, as `storage.find_shards` finds them.

    The first record says what they hold. Of a tf.train.Example the image is the feature "image", or the only one that
    is an encoded image; the class is the number "label", the caption that of `data.caption`. Raises UserError for
    files and records of other kinds, and where needs has "caption" and there is none.
    """
    files, path = file_system(address)
    if files.exists(f"{path.rstrip('/')}/{FEATURES}"):
        return tfds_folder(_folder_here(address, split), split, caption_key=None if caption == CAPTION else caption)
    shards = find_shards(address, (".array_record", ".arrayrecord"), split, "array_record files")
    paths = _copied(shards)
    try:
        records = ArrayRecordDataSource(paths)
        counts = tuple(each.num_records for each in records._read_instructions)
    except Exception as error:  # damaged files make the library raise nearly anything
        raise UserError(
            f"{address} holds a file that is no whole array_record ({_line(error)}); fetch it again"
        ) from error
    if not sum(counts):
        raise UserError(f"{address} holds no records; check the files")
    fields = _fields(records[0], f"{shards.name(0)}, record 0", caption, needs)
    return ArrayRecords(shards, records, counts, fields)


def _fields(record: bytes, name: str, caption: str, needs: Collection[str]) -> Fields:
    """The features with image, class and caption, from the first record."""
    if record.startswith(_IMAGES):
        if caption != CAPTION or "caption" in needs:
            raise UserError(f"{name} is an image without a caption; write a tf.train.Example with image and text")
        return Fields(None, None, None)
    features = _features(record)
    if not features:
        raise UserError(
            f"{name} is neither an encoded image nor a tf.train.Example, which are all that is read; write it as one"
        )
    kinds = {key: values[0] for key, values in features.items() if values}
    images = [key for key, value in kinds.items() if isinstance(value, bytes) and value.startswith(_IMAGES)]
    image = "image" if "image" in images else images[0] if len(images) == 1 else None
    if image is None:
        found = f"the images {shown(images)}, none of them called image" if images else "no image"
        raise UserError(f"{name} has {found}; its features are {shown(sorted(features))}")
    wanted = ("text", "caption") if caption == CAPTION else (caption,)
    told = next((key for key in wanted if isinstance(kinds.get(key), bytes)), None)
    if told is None and (caption != CAPTION or "caption" in needs):
        raise UserError(
            f"{name} has no text {caption!r}; its features are {shown(sorted(features))}: name one with data.caption"
        )
    return Fields(image, "label" if isinstance(kinds.get("label"), int) else None, told)


def _features(record: bytes) -> dict[str, list[Any]] | None:
    """{name: values} of a serialized tf.train.Example; None for other bytes."""
    try:
        found = tf_example_pb2.Example.FromString(record).features.feature
    except DecodeError:
        return None
    return {key: list(getattr(each, each.WhichOneof("kind") or "bytes_list").value) for key, each in found.items()}


def _folder_here(address: str, split: str) -> str:
    """The TFDS folder at an address or, of one in a bucket, a copy without the files of other splits."""
    found = all_files(address, (), "files")
    if found.local:
        return file_system(address)[1]
    base = split.partition("[")[0]  # of "train[:90%]"
    chosen = found.only([each in (None, base) for each in splits_of(found)])
    return str(Path(_copied(chosen)[0]).parent)


def _copied(shards: Shards) -> list[str]:
    """The paths of files on this machine: their own or, of files in a bucket, those of copies in the cache folder."""
    if shards.local:
        return [shard.path for shard in shards.shards]
    folder = cache_folder("shards") / key_of(shards.address, [shard.version for shard in shards.shards])
    paths = [folder / shard.name for shard in shards.shards]
    missing = [i for i, path in enumerate(paths) if not path.exists()]
    if missing:
        size = sum(shards.shards[i].size for i in missing)
        print(
            f"diffusion-jax: copying {len(missing):,} files of {shards.address}, {size:,} bytes, to {folder}",
            file=sys.stderr,
            flush=True,
        )

    def copy(i: int) -> None:
        try:
            with shards.open(i, _PIECE) as file:
                write_whole(paths[i], iter(lambda: file.read(_PIECE), b""))
        except OSError as error:
            raise UserError(
                f"{shards.name(i)} can't be copied to {folder} ({error}); set {CACHE} to a larger disk"
            ) from error

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        list(pool.map(copy, missing))
    return [str(path) for path in paths]


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
