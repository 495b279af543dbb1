"""Draws schedules and forward processes and, for a workdir, samples' reverse paths, latents and attention to words.

diffusion-jax figures --out=figures --schedule=linear --schedule='cosine | zero_snr' --workdir=runs/digits --label=3
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from diffusion_jax.cli import sampling
from diffusion_jax.errors import UserError


def define(values: flags.FlagValues, arguments: Sequence[str]) -> None:
    """The command's flags. Flags of sampling that are left out have the values of the workdir's config."""
    flags.DEFINE_string("out", None, "Folder to write; new, or empty.", flag_values=values)
    flags.DEFINE_multi_string(
        "schedule",
        [],
        "Schedule, such as cosine or 'linear | zero_snr'; may be repeated. The workdir's, linear and cosine if left "
        "out.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "image",
        None,
        "Picture for the forward process, and for latents where the data are elsewhere; a photograph if left out.",
        flag_values=values,
    )
    flags.DEFINE_integer("size", 64, "Pixels that the picture is cropped to, as high as wide.", flag_values=values)
    flags.DEFINE_string(
        "workdir", None, "Folder of the run to draw: of a diffusion model, or of an autoencoder.", flag_values=values
    )
    sampling.define(values, num=8)
    flags.DEFINE_bool("overwrite", False, "Replace the figures in --out.", flag_values=values)


def run(values: flags.FlagValues) -> None:
    """Draws."""
    if not values.out:
        raise UserError("figures needs --out=FOLDER")
    alone = [name for name in sampling.FLAGS if name != "seed" and values[name].present]  # noise has a seed too
    if alone and not values.workdir:
        raise UserError(f"--{alone[0]} is of a trained model; give its --workdir=FOLDER too")
    arguments = sampling.arguments(values)
    overrides = {name: arguments.pop(name) for name in sampling.OVERRIDES}
    from diffusion_jax.runs.sample.diffusion_figures import Request, figures

    request = Request(
        schedules=values.schedule,
        image=Path(values.image) if values.image else None,
        size=values.size,
        root=Path(values.workdir) if values.workdir else None,
        overrides=overrides,
        **arguments,
    )
    figures(request, Path(values.out), overwrite=values.overwrite)
