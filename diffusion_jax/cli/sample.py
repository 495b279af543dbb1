"""Draws samples from a checkpoint; the workdir is all it needs.

diffusion-jax sample --workdir=runs/digits --out=samples --num=64 --label=3 --guidance=2.0 --sampler=ddim --steps=50
diffusion-jax sample --workdir=runs/shapes_text --out=samples --prompt='a small red circle' --negative_prompt='a square'
diffusion-jax sample --workdir=runs/shapes_upscale --out=large --low_res=small.png
diffusion-jax sample --workdir=runs/digits --out=edited --init_image=a.png --strength=0.6
diffusion-jax sample --workdir=runs/digits --out=turned --init_image=a.png --invert --label=3 --guidance=2.0
diffusion-jax sample --workdir=runs/digits --out=painted --init_image=a.png --mask=mask.png --resample=10 --jump=10
diffusion-jax sample --workdir=runs/sd --out=wide --prompt='a wide valley' --size=768x512
diffusion-jax sample --workdir=runs/digits --out=wider --init_image=a.png --expand=8,0,8,0
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from diffusion_jax.cli import sampling
from diffusion_jax.errors import UserError


def define(values: flags.FlagValues, arguments: Sequence[str]) -> None:
    """The command's flags."""
    flags.DEFINE_string("workdir", None, "Folder of the run to sample from.", flag_values=values)
    flags.DEFINE_string("out", None, "Folder to write; new, or empty.", flag_values=values)
    sampling.define(values, num=64)
    flags.DEFINE_integer("batch", 64, "Samples drawn at once; changes a sample by rounding alone.", flag_values=values)
    flags.DEFINE_string("init_image", None, "Image to edit; scaled and cropped unless expanded.", flag_values=values)
    flags.DEFINE_float(
        "strength", None, "How far --init_image is diffused, in (0, 1]; 0.6, or 1 where painted.", flag_values=values
    )
    flags.DEFINE_string("mask", None, "White where --init_image is painted, black where kept.", flag_values=values)
    flags.DEFINE_list("paint", None, "FROM,TO: what is painted of an array or, in seconds, audio.", flag_values=values)
    flags.DEFINE_list("expand", None, "left,top,right,bottom: pixels painted around --init_image.", flag_values=values)
    flags.DEFINE_integer(
        "resample", 4, "Turns of each jump where a part is kept (RePaint); more fit better.", flag_values=values
    )
    flags.DEFINE_integer("jump", 1, "Steps of a jump where a part is kept (RePaint's j).", flag_values=values)
    sampling.define_guides(values)
    flags.DEFINE_bool("invert", False, "Start from the noise that DDIM finds in --init_image.", flag_values=values)
    flags.DEFINE_string(
        "size", None, "WIDTHxHEIGHT of images, of a model that draws any size; its own if left out.", flag_values=values
    )
    flags.DEFINE_string("noise", None, ".npy of standard normal noise [N, *S, C] to start from.", flag_values=values)
    flags.DEFINE_bool("save_noise", False, "Write the noise that samples start from, noise.npy.", flag_values=values)
    flags.DEFINE_bool("overwrite", False, "Replace the samples in --out.", flag_values=values)


def run(values: flags.FlagValues) -> None:
    """Samples."""
    if not values.workdir or not values.out:
        raise UserError("sample needs --workdir=FOLDER and --out=FOLDER")
    edit_request, guided_by = _edit_request(values), sampling.guided_by(values)
    arguments = sampling.arguments(values)
    overrides = {name: arguments.pop(name) for name in sampling.OVERRIDES}
    from diffusion_jax.runs.sample.noise_request import NoiseRequest
    from diffusion_jax.runs.sample.run import Request, sample
    from diffusion_jax.runs.sample.size import read_size

    noise = NoiseRequest(Path(values.noise) if values.noise else None, values.save_noise)
    chosen = {
        "batch": values.batch,
        "edit_request": edit_request,
        "guided_by": guided_by,
        "noise": noise,
        "size": read_size(values.size) if values.size is not None else None,
        "overrides": overrides,
    }
    sample(Request(Path(values.workdir), **chosen, **arguments), Path(values.out), overwrite=values.overwrite)


def _edit_request(values: flags.FlagValues) -> Any:
    if not values.init_image:
        of_edits = ("strength", "mask", "paint", "expand", "resample", "jump", "invert")
        if alone := [name for name in of_edits if values[name].present]:
            raise UserError(f"--{alone[0]} is of an edit; give what is edited too, as --init_image=FILE")
        return None
    try:
        expand = tuple(int(text) for text in values.expand or (0, 0, 0, 0))
    except ValueError:
        expand = ()
    if len(expand) != 4:
        raise UserError(f"--expand is left,top,right,bottom in pixels, as in 8,0,8,0; got {','.join(values.expand)}")
    from diffusion_jax.runs.sample.edit import EditRequest

    mask = Path(values.mask) if values.mask else None
    options = (values.strength, values.resample, values.invert, values.jump, _paint(values))
    return EditRequest(Path(values.init_image), mask, expand, *options)


def _paint(values: flags.FlagValues) -> tuple[float, float] | None:
    if values.paint is None:
        return None
    try:
        first, last = (float(text) for text in values.paint)
    except ValueError:
        raise UserError(f"--paint is FROM,TO, as in 0.25,0.5; got {','.join(values.paint)}") from None
    return first, last
