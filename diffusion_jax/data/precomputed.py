"""Arrays computed once for every example: latents, and features of captions (`experiment.precompute`)."""

import dataclasses
import functools
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter

from diffusion_jax.errors import UserError

RECORDS, META = "examples.array_record", "meta.json"


@dataclasses.dataclass(frozen=True)
class Precomputed:
    """A folder with the arrays of each example of one data set and, with flip, of its mirror image.

    A record is the bytes of the arrays of one example, one after the other. Records of mirror images follow all others.
    """

    folder: str
    fingerprint: str  # of the data set
    count: int  # of its examples
    flip: bool  # whether there are records of mirror images: record count + i is of the mirror image of example i
    arrays: tuple[tuple[str, tuple[int, ...], str], ...]  # name, shape and dtype, in the order of a record
    weights: tuple[tuple[str, str], ...]  # (network, digest of its weights) that computed the arrays

    @functools.cached_property
    def _records(self) -> ArrayRecordDataSource:
        return ArrayRecordDataSource([str(Path(self.folder) / RECORDS)])

    def __getstate__(self) -> dict[str, object]:  # for a worker, which opens the file itself
        return {key: value for key, value in self.__dict__.items() if key != "_records"}

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the arrays."""
        return tuple(name for name, _, _ in self.arrays)

    def read(self, indices: np.ndarray, mirrored: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """The arrays of the examples at indices [B], each [B, ...]; those of the mirror images where mirrored [B].

        float16 is read as float32.
        """
        places = indices if mirrored is None or not self.flip else indices + self.count * mirrored
        records = self._records.__getitems__([int(place) for place in places])
        found = {}
        at = 0
        for name, shape, kind in self.arrays:
            dtype = np.dtype(kind)
            end = at + dtype.itemsize * math.prod(shape)
            array = np.stack([np.frombuffer(record[at:end], dtype).reshape(shape) for record in records])
            found[name] = array.astype(np.float32) if dtype == np.float16 else array
            at = end
        return found


def open_precomputed(folder: str) -> Precomputed:
    """The arrays in a folder; raises UserError where there are none or some are missing."""
    root = Path(folder)
    if not (root / META).is_file():
        raise UserError(f"no precomputed arrays in {folder}; make them with diffusion-jax precompute --out={folder}")
    try:
        meta = json.loads((root / META).read_text())
        found = Precomputed(
            folder,
            meta["fingerprint"],
            meta["count"],
            meta["flip"],
            tuple((name, tuple(shape), kind) for name, shape, kind in meta["arrays"]),
            tuple(sorted(meta["weights"].items())),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{root / META} is damaged: {error}; precompute the folder again") from error
    wanted = found.count * (2 if found.flip else 1)
    if not (root / RECORDS).is_file() or len(found._records) != wanted:
        raise UserError(f"{folder} does not hold the {wanted} records that its {META} tells of; precompute them again")
    return found


def write_precomputed(
    folder: Path,
    records: Iterable[Mapping[str, np.ndarray]],
    *,
    fingerprint: str,
    count: int,
    flip: bool,
    weights: Mapping[str, str],
) -> None:
    """Writes the arrays of count examples, then of their mirror images with flip, as a new folder: all or nothing."""
    if folder.exists():
        raise UserError(f"{folder} exists already; give --out a new folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        unfinished.chmod(0o755)  # mkdtemp makes it private
        writer = ArrayRecordWriter(str(unfinished / RECORDS), "group_size:1")
        arrays: list[tuple[str, tuple[int, ...], str]] = []
        for record in records:
            arrays = [(name, array.shape, array.dtype.name) for name, array in record.items()]
            writer.write(b"".join(np.ascontiguousarray(array).tobytes() for array in record.values()))
        writer.close()
        meta = {
            "fingerprint": fingerprint,
            "count": count,
            "flip": flip,
            "arrays": arrays,
            "weights": dict(weights),
        }
        (unfinished / META).write_text(json.dumps(meta, indent=2))
        os.rename(unfinished, folder)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
