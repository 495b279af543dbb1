"""The ways to name a data set: `digits`, `tfds:NAME`, `folder:PATH`, `parquet:PATH`, `webdataset:PATH`, ..."""

import dataclasses
from collections.abc import Callable

from diffusion_jax import extensions
from diffusion_jax.data.array_file import array_file
from diffusion_jax.data.array_record_source import array_records
from diffusion_jax.data.audio_folder import audio_folder
from diffusion_jax.data.example import Source
from diffusion_jax.data.image_folder import image_folder
from diffusion_jax.data.notes import notes_source
from diffusion_jax.data.parquet_source import WINDOW, parquet_images
from diffusion_jax.data.tfds_source import digits, drawn_shapes, tfds_source
from diffusion_jax.data.webdataset_source import webdataset
from diffusion_jax.errors import UserError
from diffusion_jax.spec import from_spec

CAPTION = "text"
"""The default column of captions in a table."""

OF_IMAGES = frozenset({"digits", "shapes", "tfds", "folder", "parquet", "webdataset", "array_record"})
"""Names of sources whose examples are images; for others the data are opened to know the modality."""


@dataclasses.dataclass(frozen=True)
class Opening:
    """Options of opening a data set."""

    split: str = "train"
    data_dir: str | None = None  # where TFDS keeps its data sets; None: its default
    caption: str = CAPTION
    needs: frozenset[str] = frozenset()  # of "caption" and "label": the fields that the model is trained on
    shape: tuple[int, ...] = ()  # of an example, `data.shape`; (): open
    shuffle_bytes: int = WINDOW  # of blocks that are shuffled together, where examples are read by blocks


# name: opens the source from what follows the colon
SOURCES: dict[str, Callable[[str, Opening], Source]] = {
    "digits": lambda _, opening: digits(opening.split, data_dir=opening.data_dir),
    "shapes": lambda numbers, opening: drawn_shapes(opening.split, data_dir=opening.data_dir, **_numbers(numbers)),
    "tfds": lambda name, opening: tfds_source(
        name,
        opening.split,
        data_dir=opening.data_dir,
        caption_key=None if opening.caption == CAPTION else opening.caption,
    ),
    "folder": lambda path, opening: image_folder(path, opening.split, caption=opening.caption, needs=opening.needs),
    "parquet": lambda path, opening: parquet_images(
        path, opening.split, caption=opening.caption, needs=opening.needs, window=opening.shuffle_bytes
    ),
    "webdataset": lambda path, opening: webdataset(path, opening.split, caption=opening.caption, needs=opening.needs),
    "array_record": lambda path, opening: array_records(
        path, opening.split, caption=opening.caption, needs=opening.needs
    ),
    "arrays": lambda path, opening: array_file(path, opening.split, opening.shape),
    "audio": lambda path, opening: audio_folder(path, opening.split, caption=opening.caption, needs=opening.needs),
    "notes": lambda numbers, opening: notes_source(numbers, opening.split),
}


def open_source(
    spec: str,
    *,
    split: str = "train",
    data_dir: str | None = None,
    caption: str = CAPTION,
    needs: frozenset[str] = frozenset(),
    shape: tuple[int, ...] = (),
    shuffle_bytes: int = WINDOW,
) -> Source:
    """The split of the source that spec names; raises UserError where there is none, or it can't be read.

    needs has the fields, of "caption" and "label", that the model is trained on; files of a folder that hold them are
    read only for these. shape is `data.shape`, which says whether arrays have channels; (): open. shuffle_bytes is
    `data.shuffle_bytes`. A dotted name with arguments, "mypkg.data.MySource(count=64)", is a class or function of a
    trusted package, which is also called with those of split, data_dir, caption, needs, shape and shuffle_bytes that it
    takes.
    """
    name, _, argument = spec.partition(":")
    opening = Opening(split, data_dir, caption, needs, shape, shuffle_bytes)
    if extensions.is_dotted(spec.partition("(")[0]):
        return from_spec(spec, {}, "data source", dataclasses.asdict(opening))
    if name not in SOURCES or (name not in ("shapes", "notes") and bool(argument) == (name == "digits")):
        raise UserError(
            f"unknown data source {spec!r}; write digits, shapes:SIZE,COUNT, tfds:NAME, folder:PATH (images, a folder "
            "or a zip of one), parquet:PATH, webdataset:PATH, array_record:PATH (shards, here or in a bucket), "
            "audio:PATH (sounds, likewise), notes:RATE,SECONDS,COUNT or arrays:FILE"
        )
    if caption != CAPTION and name in ("digits", "shapes", "notes", "arrays"):
        raise UserError(
            f"data.caption={caption!r} is of data from folder:, parquet:, webdataset:, array_record:, audio: or tfds:; "
            f"leave it at {CAPTION!r} for {name}"
        )
    return SOURCES[name](argument, opening)


def _numbers(text: str) -> dict[str, int]:
    """The size and the count in the text after `shapes:`; either may be missing."""
    parts = text.split(",") if text else []
    if len(parts) > 2 or not all(part.isascii() and part.isdigit() for part in parts):
        raise UserError(f"unknown data source 'shapes:{text}'; write shapes, shapes:SIZE or shapes:SIZE,COUNT")
    return {name: int(part) for name, part in zip(("size", "count"), parts, strict=False)}
