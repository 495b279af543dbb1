"""Looks at your own data and writes a config for it, with the reasons for each choice.

diffusion-jax new --data=folder:PATH --out=my.py
diffusion-jax train --config=my.py --workdir=runs/my

folder:PATH is a folder of images, audio:PATH one of sounds; either may be a zip. Sub-folders are classes; captions are
in metadata.jsonl, metadata.csv or a .txt beside each file. arrays:FILE is a .npy, .npz or .zarr file of plain arrays.
Beside my.py it writes my.png, with nine examples as the network will see them.
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from diffusion_jax.errors import UserError

NEEDS = ("data=folder:PATH", "out=FILE.py")
"""Flags without which the command is an error."""


def define(values: flags.FlagValues, arguments: Sequence[str]) -> None:
    """The command's flags."""
    flags.DEFINE_string(
        "data", None, "The data, as data.source names it: folder:PATH, audio:PATH, arrays:FILE.", flag_values=values
    )
    flags.DEFINE_string("out", None, "New config file, .py.", flag_values=values)
    flags.DEFINE_string("caption", "text", "Column of metadata.jsonl or .csv with the captions.", flag_values=values)
    flags.DEFINE_list(
        "shape", [], "Sides and channels of plain arrays, where it cannot be seen: 1000,12.", flag_values=values
    )


def run(values: flags.FlagValues) -> None:
    """Looks and writes."""
    from diffusion_jax.runs.new.run import new

    new(values.data, Path(values.out), caption=values.caption, shape=_shape(values.shape))


def _shape(texts: Sequence[str]) -> tuple[int, ...]:
    if not all(text.strip().isascii() and text.strip().isdigit() for text in texts):
        raise UserError(f"--shape={','.join(texts)} is to be whole numbers, as in --shape=1000,12")
    return tuple(int(text) for text in texts)
