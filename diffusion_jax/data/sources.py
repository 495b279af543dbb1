"""The ways to name a data set: `digits`, `shapes:...`, `tfds:NAME`, `folder:PATH`, `arrays:FILE`, `audio:PATH`, ..."""

import dataclasses
from collections.abc import Callable

from diffusion_jax import extensions
from diffusion_jax.data.array_file import array_file
from diffusion_jax.data.audio_folder import audio_folder
from diffusion_jax.data.example import Source
from diffusion_jax.data.image_folder import image_folder
from diffusion_jax.data.notes import notes_source
from diffusion_jax.data.tfds_source import digits, drawn_shapes, tfds_source
from diffusion_jax.errors import UserError
from diffusion_jax.spec import from_spec

CAPTION = "text"
"""The column of captions, or the feature of a TFDS data set, where none is chosen."""


OF_IMAGES = frozenset({"digits", "shapes", "tfds", "folder"})
"""Names whose examples are images, which nobody has to open the data to know."""


@dataclasses.dataclass(frozen=True)
class Opening:
    """Which part of a data set is read, and how."""

    split: str = "train"
    data_dir: str | None = None  # where TFDS keeps its data sets; None: its default
    caption: str = CAPTION
    needs: frozenset[str] = frozenset()  # of "caption" and "label": what the model is trained on
    shape: tuple[int, ...] = ()  # of an example, as `data.shape` says it; (): open


# name: opens the source from what follows the colon
SOURCES: dict[str, Callable[[str, Opening], Source]] = {
    "digits": lambda _, how: digits(how.split, data_dir=how.data_dir),
    "shapes": lambda numbers, how: drawn_shapes(how.split, data_dir=how.data_dir, **_numbers(numbers)),
    "tfds": lambda name, how: tfds_source(
        name, how.split, data_dir=how.data_dir, caption_key=None if how.caption == CAPTION else how.caption
    ),
    "folder": lambda path, how: image_folder(path, how.split, caption=how.caption, needs=how.needs),
    "arrays": lambda path, how: array_file(path, how.split, how.shape),
    "audio": lambda path, how: audio_folder(path, how.split, caption=how.caption, needs=how.needs),
    "notes": lambda numbers, how: notes_source(numbers, how.split),
}


def open_source(
    spec: str,
    *,
    split: str = "train",
    data_dir: str | None = None,
    caption: str = CAPTION,
    needs: frozenset[str] = frozenset(),
    shape: tuple[int, ...] = (),
) -> Source:
    """The split of the source that spec names; raises UserError where there is none, or it can't be read.

    needs, of "caption" and "label", is what the model is trained on: a folder may have it in files that are read for
    that alone. shape is `data.shape`, which says whether arrays have channels; (): open. A dotted name with arguments,
    "mypkg.data.MySource(count=64)", is a class or function of a trusted package, which is called with what it takes of
    split, data_dir, caption, needs and shape too.
    """
    name, _, argument = spec.partition(":")
    how = Opening(split, data_dir, caption, needs, shape)
    if extensions.is_dotted(spec.partition("(")[0]):
        return from_spec(spec, {}, "data source", dataclasses.asdict(how))
    if name not in SOURCES or (name not in ("shapes", "notes") and bool(argument) == (name == "digits")):
        raise UserError(
            f"unknown data source {spec!r}; write digits, shapes:SIZE,COUNT, tfds:NAME, folder:PATH (images, a folder "
            "or a zip of one), audio:PATH (sounds, likewise), notes:RATE,SECONDS,COUNT or arrays:FILE"
        )
    if caption != CAPTION and name in ("digits", "shapes", "notes", "arrays"):
        raise UserError(
            f"data.caption={caption!r} is of data from folder:, audio: or tfds:; leave it at {CAPTION!r} for {name}"
        )
    return SOURCES[name](argument, how)


def _numbers(text: str) -> dict[str, int]:
    """The size, and the count, that follow `shapes:`, as far as they are there."""
    parts = text.split(",") if text else []
    if len(parts) > 2 or not all(part.isascii() and part.isdigit() for part in parts):
        raise UserError(f"unknown data source 'shapes:{text}'; write shapes, shapes:SIZE or shapes:SIZE,COUNT")
    return {name: int(part) for name, part in zip(("size", "count"), parts, strict=False)}
