"""The ways to name a data set: `digits`, `shapes`, `shapes:SIZE,COUNT`, `tfds:NAME`, `folder:PATH`."""

from collections.abc import Callable

from diffusion_jax import extensions
from diffusion_jax.data.example import Source
from diffusion_jax.data.image_folder import image_folder
from diffusion_jax.data.tfds_source import digits, drawn_shapes, tfds_source
from diffusion_jax.errors import UserError
from diffusion_jax.spec import from_spec

# name: opens the source from what follows the colon, a split, and where TFDS keeps its data sets (None: its default)
SOURCES: dict[str, Callable[[str, str, str | None], Source]] = {
    "digits": lambda _, split, data_dir: digits(split, data_dir=data_dir),
    "shapes": lambda numbers, split, data_dir: drawn_shapes(split, data_dir=data_dir, **_numbers(numbers)),
    "tfds": lambda name, split, data_dir: tfds_source(name, split, data_dir=data_dir),
    "folder": lambda path, split, _: image_folder(path, split),
}


def open_source(spec: str, *, split: str = "train", data_dir: str | None = None) -> Source:
    """The split of the source that spec names; raises UserError where there is none, or it can't be read.

    A dotted name with arguments, "mypkg.data.MySource(count=64)", is a class or function of a trusted package, which is
    called with split and data_dir too if it takes them.
    """
    name, _, argument = spec.partition(":")
    if extensions.is_dotted(spec.partition("(")[0]):
        return from_spec(spec, {}, "data source", {"split": split, "data_dir": data_dir})
    if name not in SOURCES or (name != "shapes" and bool(argument) == (name == "digits")):
        raise UserError(
            f"unknown data source {spec!r}; write digits, shapes:SIZE,COUNT, tfds:NAME or folder:PATH "
            "(a folder or a zip of one)"
        )
    return SOURCES[name](argument, split, data_dir)


def _numbers(text: str) -> dict[str, int]:
    """The size, and the count, that follow `shapes:`, as far as they are there."""
    parts = text.split(",") if text else []
    if len(parts) > 2 or not all(part.isascii() and part.isdigit() for part in parts):
        raise UserError(f"unknown data source 'shapes:{text}'; write shapes, shapes:SIZE or shapes:SIZE,COUNT")
    return {name: int(part) for name, part in zip(("size", "count"), parts, strict=False)}
