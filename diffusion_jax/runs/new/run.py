"""`diffusion-jax new`: surveys data, prints what they are, and writes a config that trains on them."""

from pathlib import Path

import numpy as np
from PIL import Image

from diffusion_jax.data import transforms
from diffusion_jax.data.sources import CAPTION
from diffusion_jax.errors import UserError
from diffusion_jax.report import pictures
from diffusion_jax.report.atomic import replace_file
from diffusion_jax.runs.new.data_survey import Survey, survey
from diffusion_jax.runs.new.fitting import Fit, fit, machine
from diffusion_jax.runs.new.writing import config_text
from diffusion_jax.runs.workdir.output_folder import check_writable

_OF_FILES = ("folder", "parquet", "webdataset", "array_record")
"""Sources that are named by a path."""


def new(data: str, out: Path, *, caption: str = CAPTION) -> Path:
    """Writes a config for the data set that data names, such as folder:PATH, to the new file out.

    Prints the survey and the choices, and writes a picture of nine examples, as the network will see them, beside out.
    Returns out. Raises UserError where out exists, or the data cannot be read.
    """
    if out.suffix != ".py" or out.exists():
        raise UserError(f"--out={out} is to be a new .py file; give another")
    check_writable(out.parent)
    kind, separator, path = data.partition(":")
    if kind in _OF_FILES and separator and "://" not in path:
        data = f"{kind}:{Path(path).expanduser().resolve()}"  # the config is used from other folders too
    found = survey(data, caption)
    chosen = fit(found, machine())
    picture = out.with_suffix(".png")
    replace_file(picture, pictures.encode_png(pictures.grid(_as_seen(found, chosen), columns=3)))
    replace_file(out, config_text(found, chosen, out.name).encode())
    print(*found.lines(), sep="\n")
    print(*(f"chosen      {reason}" for reason in chosen.reasons), sep="\n")
    print(f"{picture}: {len(found.pictured)} examples as the network will see them")
    print(f"{out}: diffusion-jax train --config={out} --workdir=runs/{out.stem}", flush=True)
    return out


def _as_seen(found: Survey, chosen: Fit) -> np.ndarray:
    """uint8 [N, H, W, C], scaled, cropped and in the channels that are trained on."""
    mode = {1: "L", 3: "RGB", 4: "RGBA"}[chosen.channels]
    images = [transforms.to_pixels(Image.fromarray(image), mode) for image in found.pictured]
    return np.stack([transforms.resize_crop(image, chosen.height, chosen.width) for image in images])
