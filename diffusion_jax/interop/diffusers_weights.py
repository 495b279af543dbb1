"""The weights of one model in a folder as diffusers and transformers write them: safetensors, sharded or not, variants.

Nothing is unpickled, and no array is read before it is looked up.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax  # noqa: F401  with it numpy knows bfloat16, in which weights may be stored
import numpy as np
import safetensors.numpy
from safetensors import SafetensorError, safe_open

from diffusion_jax.errors import UserError

FLOATS = ("float64", "float32", "float16", "bfloat16")

FOR_TORCH = {"format": "pt"}
"""The metadata without which transformers does not read a file."""

CONVERT = (
    "python -c \"from diffusers import DiffusionPipeline as P; P.from_pretrained('{folder}', use_safetensors=False)"
    ".save_pretrained('{folder}-safetensors')\""
)
"""What writes a pipeline of pickles anew, with diffusers, which unpickles."""


class StateDict(Mapping[str, np.ndarray]):
    """{name: array} of some safetensors files; an array is read from its file when it is looked up.

    The file is opened for that alone: as long as it is open, all that was read of it counts as this process's memory.
    """

    def __init__(self, files: Mapping[str, Path]):
        self._files = files

    def __getitem__(self, name: str) -> np.ndarray:
        """Raises UserError for an array that is none of floats, and for a file that cannot be read."""
        file = self._files[name]
        try:
            with safe_open(file, "numpy") as arrays:
                array = arrays.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file} cannot be read ({error}); fetch it anew") from None
        if array.dtype.name not in FLOATS:
            raise UserError(f"{file}: {name} is stored as {array.dtype.name}; weights are read from float files alone")
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def weight_files(folder: Path, stem: str, variant: str = "") -> dict[str, Path] | list[Path]:
    """The file of each array where an index lists them, else the one file of them all; nothing of them is read.

    stem is "diffusion_pytorch_model" or "model". Raises UserError where there are none, where a shard is missing, and
    where there are pickles alone.
    """
    dotted = f".{variant}" if variant else ""
    file, index = folder / f"{stem}{dotted}.safetensors", folder / f"{stem}.safetensors.index{dotted}.json"
    if file.is_file():
        return [file]
    if not index.is_file():
        raise UserError(_none(folder, stem, variant))
    try:
        listed = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards = {str(name): str(shard) for name, shard in listed.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{index} is no index of weights ({error!r}); fetch it anew") from None
    if strange := [shard for shard in shards.values() if Path(shard).name != shard]:
        raise UserError(f"{index} names {strange[0]!r}, which is no file beside it; fetch it anew")
    if missing := sorted({shard for shard in shards.values() if not (folder / shard).is_file()}):
        raise UserError(f"{index} lists {', '.join(missing)}, which {folder} lacks; fetch it too")
    return {name: folder / shard for name, shard in shards.items()}


@contextlib.contextmanager
def opened(found: Mapping[str, Path] | list[Path]) -> Iterator[StateDict]:
    """The arrays of what `weight_files` found, while the block runs.

    Raises UserError where a file is damaged, and where an index and its shards do not list the same arrays.
    """
    paths = sorted(set(found.values())) if isinstance(found, Mapping) else found
    stored = {(name, path) for path in paths for name in _names(path)}
    if isinstance(found, Mapping) and stored != set(found.items()):
        lacking = sorted(name for name, path in set(found.items()) - stored)
        more = sorted(name for name, path in stored - set(found.items()))
        raise UserError(
            f"the index and the shards in {paths[0].parent} do not list the same arrays: the shards lack "
            f"{lacking}, the index lacks {more}; fetch them anew"
        )
    yield StateDict(dict(stored))


def _names(path: Path) -> list[str]:
    """The names of the arrays in a file; raises UserError where it is damaged."""
    try:
        with safe_open(path, "numpy") as arrays:
            return list(arrays.keys())
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} is no safetensors file that can be read ({error}); it is damaged or cut short, so fetch it anew"
        ) from None


def _none(folder: Path, stem: str, variant: str) -> str:
    """What to do where there are no such weights."""
    wanted = f"{stem}{f'.{variant}' if variant else ''}.safetensors"
    if others := sorted(path.name for path in folder.glob(f"{stem}*.safetensors*")):
        variants = {name.split(".")[1] for name in others if name.count(".") == 2 and name.endswith(".safetensors")}
        advice = f"give --variant={min(variants)}" if variants else "leave out --variant"
        return f"{folder} has no {wanted} but {', '.join(others)}; {advice}"
    if pickles := sorted(path.name for pattern in ("*.bin", "*.ckpt", "*.pt") for path in folder.glob(pattern)):
        pipeline = folder.parent if (folder.parent / "model_index.json").is_file() else folder
        return (
            f"{folder} has no {wanted} but {', '.join(pickles)}, and a pickle is not read, as it can run code; write "
            f"the folder anew with: {CONVERT.format(folder=pipeline)}"
        )
    return f"{folder} has no {wanted}; fetch the weights too"


def save(state: Mapping[str, np.ndarray], file: Path, dtype: str = "", about: Mapping[str, str] = FOR_TORCH) -> None:
    """Writes all arrays into one file of safetensors, floats as dtype where one is given; about is its metadata.

    Raises UserError where a value is too large for dtype.
    """
    safetensors.numpy.save_file({name: cast(name, value, dtype) for name, value in state.items()}, file, dict(about))


def copy(source: Path, file: Path, dtype: str, *, prefix: str = "", without: str = "") -> None:
    """Writes the arrays of one file anew, floats as dtype and all others as they are.

    They are those whose names begin with prefix and, where without is given, do not have it in them.
    Raises UserError where the file is damaged or a value too large.
    """
    try:
        with safe_open(source, "numpy") as arrays:
            names = [name for name in arrays.keys() if name.startswith(prefix)]  # noqa: SIM118
            names = [name for name in names if not without or without not in name]
            state = {name: arrays.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{source} cannot be read ({error}); restore it from a copy") from None
    save(state, file, dtype)


def cast(name: str, value: np.ndarray, dtype: str) -> np.ndarray:
    """The array, contiguous and, where it is one of floats and dtype is given, as dtype.

    Raises UserError where a value is too large for dtype.
    """
    if not dtype or value.dtype.name not in FLOATS:
        return np.ascontiguousarray(value)
    with np.errstate(over="ignore"):
        found = np.ascontiguousarray(value, np.dtype(dtype))
    if not np.isfinite(found).all() and np.isfinite(value.astype(np.float32)).all():
        largest = float(np.abs(value.astype(np.float32)).max())
        raise UserError(f"{name} has values up to {largest:.3g}, which {dtype} cannot hold; write it as float32")
    return found
