"""Computes latents and text features of a config's data once, so that training need not compute them at every step.

diffusion-jax precompute --config=configs/shapes_latent.py --out=runs/latents
diffusion-jax train --config=configs/shapes_latent.py --config.data.precomputed=runs/latents --workdir=runs/latent
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import config_flags

NEEDS = ("config=FILE", "out=FOLDER")
"""Flags without which the command is an error."""


def define(values: flags.FlagValues, arguments: Sequence[str]) -> None:
    """The command's flags."""
    config_flags.DEFINE_config_file(
        "config", None, "Config file; --config.KEY=VALUE changes a key.", flag_values=values, sys_argv=list(arguments)
    )
    flags.DEFINE_integer("batch", 64, "Examples at once; changes no result but by rounding.", flag_values=values)
    flags.DEFINE_string("dtype", "float32", "float32, or float16 in half of the space.", flag_values=values)
    flags.DEFINE_string("out", None, "New folder.", flag_values=values)


def run(values: flags.FlagValues) -> None:
    """Writes the folder."""
    from diffusion_jax.runs.interchange.precomputing import precompute

    precompute(values.config, Path(values.out), batch=values.batch, dtype=values.dtype)
