"""The ways to name a data set: `digits`, `tfds:NAME`, `folder:PATH`."""

from collections.abc import Callable

from diffusion_jax.data.example import Source
from diffusion_jax.data.image_folder import image_folder
from diffusion_jax.data.tfds_source import digits, tfds_source
from diffusion_jax.errors import UserError

# name: opens the source from what follows the colon, a split, and where TFDS keeps its data sets (None: its default)
SOURCES: dict[str, Callable[[str, str, str | None], Source]] = {
    "digits": lambda _, split, data_dir: digits(split, data_dir=data_dir),
    "tfds": lambda name, split, data_dir: tfds_source(name, split, data_dir=data_dir),
    "folder": lambda path, split, _: image_folder(path, split),
}


def open_source(spec: str, *, split: str = "train", data_dir: str | None = None) -> Source:
    """The split of the source that spec names; raises UserError where there is none, or it can't be read."""
    name, _, argument = spec.partition(":")
    if name not in SOURCES or bool(argument) == (name == "digits"):
        raise UserError(
            f"unknown data source {spec!r}; write digits, tfds:NAME or folder:PATH (a folder or a zip of one)"
        )
    return SOURCES[name](argument, split, data_dir)
