"""Scores over checkpoints, guidance, steps, samplers and averages: a picture and a table of each score.

diffusion-jax evaluate heatmap --workdir=runs/digits --metrics=fd --features=runs/digits_classifier --num=1000
    --over=step=all --over=guidance=1,2,4 --out=heatmap

The axes are step (of checkpoints, or all), ema, guidance, steps (of the sampler), sampler, grid and guidance_rescale;
the first is that of the rows, the second of the columns, a third of panels. What is in --out already is not measured
again: the same command goes on where it was stopped.
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from diffusion_jax.cli import evaluate
from diffusion_jax.errors import UserError


def define(values: flags.FlagValues, arguments: Sequence[str]) -> None:
    """The command's flags."""
    flags.DEFINE_multi_string("over", [], "Axis and values, as in guidance=1,2,4; up to three.", flag_values=values)
    flags.DEFINE_string("out", None, "Folder to write.", flag_values=values)
    evaluate.define_measuring(values)


def run(values: flags.FlagValues) -> None:
    """Measures every combination."""
    if not values.workdir or not values.out:
        raise UserError(
            "evaluate heatmap needs --workdir=FOLDER, --metrics=NAME,..., --over=AXIS=VALUES and --out=FOLDER"
        )
    from diffusion_jax.runs.evaluate.evaluation_heatmap import heatmap

    heatmap(evaluate.request(values), values.over, Path(values.out), save_seconds=values.save_seconds)
