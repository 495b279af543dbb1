"""Draws samples from a checkpoint; the workdir is all it needs.

diffusion-jax sample --workdir=runs/digits --out=samples --num=64 --label=3 --guidance=2.0 --sampler=ddim --steps=50
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from diffusion_jax.cli import sampling
from diffusion_jax.errors import UserError


def define(values: flags.FlagValues, arguments: Sequence[str]) -> None:
    """The command's flags."""
    flags.DEFINE_string("workdir", None, "Folder of the run to sample from.", flag_values=values)
    flags.DEFINE_string("out", None, "Folder to write; new, or empty.", flag_values=values)
    sampling.define(values, num=64)
    flags.DEFINE_integer("batch", 64, "Samples drawn at once; changes no sample.", flag_values=values)
    flags.DEFINE_bool("overwrite", False, "Replace the samples in --out.", flag_values=values)


def run(values: flags.FlagValues) -> None:
    """Samples."""
    if not values.workdir or not values.out:
        raise UserError("sample needs --workdir=FOLDER and --out=FOLDER")
    from diffusion_jax.runs.sample import sample

    options = sampling.arguments(values)
    sample(Path(values.workdir), Path(values.out), batch=values.batch, overwrite=values.overwrite, **options)
