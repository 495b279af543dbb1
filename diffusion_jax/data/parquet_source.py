"""Parquet files of images as a source: `parquet:PATH`, such as a Hugging Face data set as it is downloaded.

Parquet is compressed by row groups, of which no single row can be read: they are the `Blocks` of the source.
"""

import dataclasses
import functools
import hashlib
import itertools
import json
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from diffusion_jax.data.block_cache import BlockCache
from diffusion_jax.data.classes import counted, natural_order
from diffusion_jax.data.example import Blocks, BytesRead, Example
from diffusion_jax.data.parquet_columns import CAPTION, Columns, columns_of
from diffusion_jax.data.storage import Shards, StorageError, find_shards
from diffusion_jax.errors import UserError

if TYPE_CHECKING:  # pyarrow is of the extra "parquet", which no other data needs
    import pyarrow
    import pyarrow.parquet

WINDOW = 2**30
"""The default of `data.shuffle_bytes`."""

_AT_ONCE = 16  # files of a bucket whose ends are read at once
_KEPT = 1.25  # times the window: examples that are prepared ahead are of blocks that come next


class Group(NamedTuple):
    """A row group."""

    shard: int
    number: int  # in its file
    first: int  # row in its file
    rows: int
    stored: int  # bytes of what is read of it, as they are in the file
    unpacked: int  # ... and in memory


@dataclasses.dataclass(frozen=True, eq=False)
class ParquetImages:
    """The images of the Parquet files of one split, with labels and captions where there are any."""

    shards: Shards
    footers: tuple["pyarrow.parquet.FileMetaData", ...]  # of the shards
    groups: tuple[Group, ...]
    columns: Columns
    window: int  # bytes of row groups that are shuffled together
    bytes_read: BytesRead = dataclasses.field(default_factory=BytesRead)

    @functools.cached_property
    def blocks(self) -> Blocks:
        """The row groups."""
        return Blocks(
            tuple(each.rows for each in self.groups), tuple(each.unpacked for each in self.groups), self.window
        )

    @functools.cached_property
    def class_names(self) -> tuple[str, ...] | None:
        """The names as the files list them, or the texts of the column of labels; None for numbers."""
        if self.columns.class_names is not None or self.columns.label is None:
            return self.columns.class_names
        schema = self.footers[0].schema.to_arrow_schema()
        if "string" not in str(schema.field(self.columns.label).type):
            return None
        return natural_order(str(each) for each in self._labels() if each is not None)

    @functools.cached_property
    def num_classes(self) -> int | None:
        """The number of class names, or one more than the largest label."""
        if self.class_names is not None:  # the labels of all files need not be read
            return len(self.class_names)
        return counted(None, [each for each in self._labels() if isinstance(each, int)])

    @functools.cached_property
    def fingerprint(self) -> str:
        """The number of images and a hash of the files' names and row groups, wherever they lie."""
        names = [shard.name for shard in self.shards.shards]
        content = json.dumps([names, [list(each) for each in self.groups], dataclasses.astuple(self.columns)])
        return f"{len(self)} images of Parquet, {hashlib.sha256(content.encode()).hexdigest()[:16]}"

    @functools.cached_property
    def _starts(self) -> np.ndarray:
        """The first example of each row group, and their number, int64 [groups + 1]."""
        return np.cumsum([0, *(each.rows for each in self.groups)])

    @functools.cached_property
    def _numbers(self) -> dict[str, int] | None:
        return None if self.class_names is None else {name: i for i, name in enumerate(self.class_names)}

    @functools.cached_property
    def _cache(self) -> BlockCache["pyarrow.Table"]:
        sizes = [each.unpacked for each in self.groups]
        return BlockCache(self._group, sizes, int(_KEPT * self.window))

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        group, row = self.groups[number], index - int(self._starts[number])
        example: Example = {"name": f"{self.shards.name(group.shard)}, row {group.first + row}"}
        table = self._cache.get(number)
        image = table[self.columns.image][row].as_py()
        if self.columns.nested and image is not None:
            image = image["bytes"]
        if image is None:
            raise UserError(f"{example['name']} has no bytes of an image; leave the row out, or write its bytes")
        example["image"] = image
        label = None if self.columns.label is None else self._label(table[self.columns.label][row].as_py(), example)
        if label is not None:
            example["label"] = label
        if self.columns.caption is not None:
            example["caption"] = table[self.columns.caption][row].as_py() or ""
        return example

    def _label(self, found: int | str | None, example: Example) -> int | None:
        """The number of a label; None for null and -1, which Hugging Face writes where a label is not told."""
        if found is None or found == -1:
            return None
        if isinstance(found, str) and self._numbers is not None:
            return self._numbers[found]
        count = self.num_classes
        if not isinstance(found, int) or count is None or not 0 <= found < count:
            raise UserError(f"{example['name']} has label {found}, but a label must lie in [0, {count})")
        return found

    def _group(self, number: int) -> "pyarrow.Table":
        """A row group; raises UserError where it is damaged, and StorageError where its file can't be read."""
        group = self.groups[number]
        table = self._read(group.shard, [group.number], self.columns.read)
        self.bytes_read.add(group.stored)
        return table.combine_chunks()

    def _read(self, shard: int, groups: list[int], columns: list[str]) -> "pyarrow.Table":
        parquet = _parquet(self.shards.address)
        with self.shards.open(shard, 2**16) as file:
            try:
                # A file of its own for each reading thread: it has one place only.
                found = parquet.ParquetFile(file, metadata=self.footers[shard], pre_buffer=True)
                return found.read_row_groups(groups, columns=columns, use_threads=False)
            except StorageError:
                raise
            except Exception as error:  # damaged data make pyarrow raise nearly anything
                raise UserError(
                    f"{self.shards.name(shard)} can't be read from row group {groups[0]} on ({_line(error)}); fetch "
                    "the file again"
                ) from error

    def read_captions(self) -> Iterator[str]:
        """Yields the captions, from their column alone."""
        return (str(caption or "") for caption in self._values(self.columns.caption))

    def _labels(self) -> Iterator[int | str | None]:
        """Yields the labels, from their column alone."""
        return self._values(self.columns.label)

    def _values(self, column: str | None) -> Iterator[int | str | None]:
        """Yields the values of a column, none of None; a file at a time."""
        groups = () if column is None else self.groups
        for shard, each in itertools.groupby(groups, lambda group: group.shard):
            table = self._read(shard, [group.number for group in each], [str(column)])
            yield from table[column].to_pylist()


def parquet_images(
    address: str,
    split: str = "train",
    *,
    caption: str = CAPTION,
    needs: Collection[str] = (),
    window: int = WINDOW,
) -> ParquetImages:
    """The images of the Parquet files at an address, as `storage.find_shards` finds them.

    Raises UserError for files that are no Parquet, or differ in their columns, and as `columns_of` does.
    """
    parquet = _parquet(address)
    shards = find_shards(address, (".parquet",), split, "Parquet files")

    def footer(shard: int) -> "pyarrow.parquet.FileMetaData":
        with shards.open(shard, 2**18) as file:
            try:
                return parquet.read_metadata(file)
            except StorageError:
                raise
            except Exception as error:
                raise UserError(
                    f"{shards.name(shard)} is no whole Parquet file ({_line(error)}); fetch it again"
                ) from error

    with ThreadPoolExecutor(1 if shards.local else _AT_ONCE) as pool:
        footers = tuple(pool.map(footer, range(len(shards.shards))))
    schema = footers[0].schema.to_arrow_schema()
    for shard, each in enumerate(footers):
        if (other := each.schema.to_arrow_schema()).names != schema.names or other.types != schema.types:
            raise UserError(
                f"{shards.name(shard)} has other columns than {shards.name(0)}, so they are two data sets; give the "
                "folder of one"
            )
    columns = columns_of(schema, shards.name(0), caption, needs)
    groups = tuple(group for i, each in enumerate(footers) for group in _groups(i, each, columns))
    return ParquetImages(shards, footers, groups, columns, window)


def _groups(shard: int, footer: "pyarrow.parquet.FileMetaData", columns: Columns) -> Iterator[Group]:
    """Yields the row groups of a file that have rows."""
    wanted, first = set(columns.read), 0
    for number in range(footer.num_row_groups):
        group = footer.row_group(number)
        if not group.num_rows:
            continue
        each = [group.column(i) for i in range(group.num_columns)]
        read = [column for column in each if column.path_in_schema in wanted]
        stored, unpacked = (
            sum(getattr(c, f"total_{kind}_size") for c in read) for kind in ("compressed", "uncompressed")
        )
        yield Group(shard, number, first, group.num_rows, stored, unpacked)
        first += group.num_rows


def _parquet(address: str) -> ModuleType:
    """pyarrow.parquet; raises UserError where pyarrow is not installed."""
    try:
        import pyarrow.parquet  # of the extra "parquet", which no other data needs
    except ImportError:
        raise UserError(f"parquet:{address} needs the package pyarrow; install diffusion-jax[parquet]") from None
    return pyarrow.parquet


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
