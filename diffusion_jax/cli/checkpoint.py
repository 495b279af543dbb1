"""Checks every file of a workdir's checkpoints against its SHA-256; the exit status is 2 where one is damaged.

diffusion-jax checkpoint verify --workdir=runs/digits [--step=1000]
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from diffusion_jax.errors import UserError


def define(values: flags.FlagValues, arguments: Sequence[str]) -> None:
    """The command's flags."""
    flags.DEFINE_string("workdir", None, "Folder of the run.", flag_values=values)
    flags.DEFINE_integer("step", None, "The one checkpoint to check; all without it.", flag_values=values)


def run(values: flags.FlagValues) -> None:
    """Verifies."""
    if not values.workdir:
        raise UserError("checkpoint verify needs --workdir=FOLDER")
    from diffusion_jax.runs.workdir.verification import verify

    verify(Path(values.workdir), step=values.step)
