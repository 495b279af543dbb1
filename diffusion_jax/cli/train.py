"""Trains a config in a workdir, going on from its newest checkpoint if it has one.

diffusion-jax train --config=configs/digits.py --workdir=runs/digits [--config.KEY=VALUE ...]
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from diffusion_jax.errors import UserError


def define(values: flags.FlagValues, arguments: Sequence[str]) -> None:
    """The command's flags."""
    config_flags.DEFINE_config_file(
        "config", None, "Config file; --config.KEY=VALUE changes a key.", flag_values=values, sys_argv=list(arguments)
    )
    flags.DEFINE_string("workdir", None, "Folder of this run.", flag_values=values)


def run(values: flags.FlagValues) -> None:
    """Trains."""
    if not values.config or not values.workdir:
        raise UserError("train needs --config=FILE and --workdir=FOLDER")
    from diffusion_jax.runs.train import train

    train(values.config, Path(values.workdir))
