"""`diffusion-jax new`: surveys data, prints what they are, and writes a config that trains on them."""

from pathlib import Path

from diffusion_jax.data.sources import CAPTION
from diffusion_jax.errors import UserError
from diffusion_jax.report import pictures
from diffusion_jax.report.atomic import replace_file
from diffusion_jax.runs.new.data_survey import survey
from diffusion_jax.runs.new.fitting import machine
from diffusion_jax.runs.new.writing import config_text
from diffusion_jax.runs.workdir.output_folder import check_writable

_OF_FILES = ("folder", "parquet", "webdataset", "array_record", "audio", "arrays")
"""Sources that are named by a path."""


def new(data: str, out: Path, *, caption: str = CAPTION, shape: tuple[int, ...] = ()) -> Path:
    """Writes a config for the data set that data names, such as folder:PATH, to the new file out.

    Prints the survey and the choices, and writes a picture of nine examples, as the network will see them, beside out.
    caption and shape are those of `survey`. Returns out. Raises UserError where out exists, the data cannot be read, or
    no network suits them.
    """
    if out.suffix != ".py" or out.exists():
        raise UserError(f"--out={out} is to be a new .py file; give another")
    check_writable(out.parent)
    kind, separator, path = data.partition(":")
    if kind in _OF_FILES and separator and "://" not in path:
        data = f"{kind}:{Path(path).expanduser().resolve()}"  # the config is used from other folders too
    found = survey(data, caption, shape)
    chosen = found.fit(machine())
    tiles = found.tiles(chosen)
    picture = out.with_suffix(".png")
    replace_file(picture, pictures.encode_png(pictures.grid(tiles, columns=3)))
    replace_file(out, config_text(found, chosen, out.name).encode())
    print(*found.lines(), sep="\n")
    print(*(f"chosen      {reason}" for reason in chosen.reasons), sep="\n")
    print(f"{picture}: {len(tiles)} examples as the network will see them")
    print(f"{out}: diffusion-jax train --config={out} --workdir=runs/{out.stem}", flush=True)
    return out
