"""Plain arrays of one file as a source: `arrays:FILE.npy`, `arrays:FILE.npz`, `arrays:FOLDER.zarr`."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, cast

import numpy as np

from diffusion_jax.data.example import Example
from diffusion_jax.errors import UserError

LABELS = ("labels", "label", "y")
"""Names of the entry with the class of each array."""

_CHANNELS = 4
"""The longest last side that counts as channels where `data.shape` is open."""

_HASHED = 2**16  # bytes at each of a few places, for the fingerprint


class Sliced(Protocol):
    """An array [N, ...] of which single examples are read: in memory, mapped from a file, or in chunks."""

    @property
    def shape(self) -> tuple[int, ...]: ...  # noqa: D102

    @property
    def dtype(self) -> np.dtype: ...  # noqa: D102

    def __getitem__(self, index: int) -> np.ndarray: ...


class ArrayFile:
    """The arrays [N, *S, C] or [N, *S] of a file, and the class of each where the file has a second entry for it.

    shape, which is `data.shape`, says which of the two it is. Where that is open, the last side counts as channels if
    it is at most 4 and there is a side before it. `adds_channel` says whether the file holds [N, *S].
    """

    modality = "array"
    class_names = None

    def __init__(self, path: str, shape: tuple[int, ...] = ()):
        self._path, self._shape = path, shape
        self._open()

    def _open(self) -> None:
        self._arrays, labels = _entries(self._path)
        shape = self._arrays.shape
        if len(shape) < 2 or 0 in shape:
            raise UserError(
                f"{self._path} holds an array {list(shape)}; expected [N, *S, C] or [N, *S], with no side of 0"
            )
        if self._arrays.dtype.kind not in "biuf":
            raise UserError(f"{self._path} holds {self._arrays.dtype}; expected numbers, integer or floating-point")
        self.adds_channel = _lacks_channels(self._path, shape[1:], self._shape)
        self._labels = None if labels is None else _checked(self._path, labels, shape[0])

    def __getstate__(self) -> dict[str, object]:  # for a worker, which opens the file itself
        return {"_path": self._path, "_shape": self._shape}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._open()

    @property
    def num_classes(self) -> int | None:
        """One more than the largest label; None without labels."""
        return None if self._labels is None else int(self._labels.max()) + 1

    @property
    def fingerprint(self) -> str:
        """A digest of shape, type, labels and the bytes of a few examples: equal for equal files in all folders."""
        digest = hashlib.sha256(f"{self._arrays.shape} {self._arrays.dtype}".encode())
        for place in np.unique(np.linspace(0, len(self) - 1, 16).round().astype(int)):
            digest.update(np.ascontiguousarray(self._arrays[int(place)]).tobytes()[:_HASHED])
        if self._labels is not None:
            digest.update(self._labels.tobytes())
        return f"arrays {digest.hexdigest()[:16]}"

    def __len__(self) -> int:
        return int(self._arrays.shape[0])

    def __getitem__(self, index: int) -> Example:
        array = np.asarray(self._arrays[index])
        example: Example = {
            "array": array[..., None] if self.adds_channel else array,
            "name": f"{self._path}[{index}]",
        }
        if self._labels is not None:
            example["label"] = int(self._labels[index])
        return example


def array_file(path: str, split: str, shape: tuple[int, ...] = ()) -> ArrayFile:
    """The arrays of a file, whose only split is train; raises UserError for another split, and as `ArrayFile`."""
    if split != "train":
        raise UserError(f"arrays:{path} has the split train alone; got {split!r}; name another file as the data source")
    return ArrayFile(path, shape)


def _lacks_channels(path: str, sides: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Whether arrays with these sides lack an axis of channels, by shape or, where that is open, by their last side."""
    if not shape:
        return len(sides) == 1 or sides[-1] > _CHANNELS
    if sides == shape:
        return False
    if (*sides, 1) == shape:
        return True
    raise UserError(f"{path} holds arrays of shape {sides}, and data.shape is {shape}; they are not resized")


def _checked(path: str, labels: Sliced, count: int) -> np.ndarray:
    """The labels as int64 [N]; raises UserError where they are not N integers from 0."""
    values = np.asarray(labels)
    if values.shape != (count,) or values.dtype.kind not in "iu" or values.min() < 0:
        raise UserError(
            f"{path} holds labels {list(values.shape)} of {values.dtype}; expected integers from 0 for each of the "
            f"{count:,} arrays"
        )
    return values.astype(np.int64)


def _entries(path: str) -> tuple[Sliced, Sliced | None]:
    """(arrays, labels or None) of a file; raises UserError where it cannot be read or is ambiguous."""
    file = Path(path)
    kinds = {".npy": _npy, ".npz": _npz, ".zarr": _zarr}
    if file.suffix not in kinds:
        raise UserError(
            f"arrays:{path} is a file of none of the kinds {', '.join(kinds)}; save the arrays as one of them"
        )
    if not file.exists():
        raise UserError(f"arrays:{path}: there is no such file")
    try:
        found = kinds[file.suffix](file)
    except UserError:
        raise
    except Exception as error:  # a damaged file makes its reader raise nearly anything
        raise UserError(f"{path} cannot be read ({error or type(error).__name__}); replace the file") from error
    labels = next((found[name] for name in LABELS if name in found), None)
    arrays = {name: entry for name, entry in found.items() if name not in LABELS}
    if len(arrays) != 1:
        raise UserError(
            f"{path} has the entries {', '.join(found) or 'none'}; expected one of arrays and, for classes, one with a "
            f"name of {', '.join(LABELS)}"
        )
    return next(iter(arrays.values())), labels


def _npy(file: Path) -> Mapping[str, Sliced]:
    _check_format(file, b"\x93NUMPY", "np.save")
    return {"": np.load(file, mmap_mode="r", allow_pickle=False)}


def _npz(file: Path) -> Mapping[str, Sliced]:
    _check_format(file, b"PK", "np.savez")
    with np.load(file, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def _check_format(file: Path, start: bytes, writer: str) -> None:
    """Raises UserError unless the file begins as those of a function of NumPy, which takes any other for a pickle."""
    with open(file, "rb") as opened:
        if not opened.read(len(start)) == start:
            raise UserError(f"{file} is no {file.suffix} file, whatever its name; write it by {writer}")


def _zarr(file: Path) -> Mapping[str, Sliced]:
    try:
        import zarr  # of the extra "zarr", which no other data needs
    except ImportError:
        raise UserError(f"{file} needs the package zarr; install diffusion-jax[zarr]") from None
    found = zarr.open(file, mode="r")
    return cast(Mapping[str, Sliced], {"": found} if isinstance(found, zarr.Array) else dict(found.arrays()))
