"""A workdir to a folder that others load: diffusers' own layout, or parameters under our names; with a model card.

diffusion-jax export --workdir=runs/sd --out=sd --dtype=float16 --check
diffusion-jax export --workdir=runs/digits --out=digits --sampler=ddim --grid=trailing
diffusion-jax export --workdir=runs/shapes_map --out=shapes_map --format=safetensors
diffusion-jax export --workdir=runs/digits --out=digits_program --format=stablehlo
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from diffusion_jax.cli import sampling

NEEDS = ("workdir=FOLDER", "out=FOLDER")
"""Flags without which the command is an error."""

SAMPLING = ("sampler", "grid", "steps", "guidance", "threshold")
"""Flags that replace a key of the config's sampling."""


def define(values: flags.FlagValues, arguments: Sequence[str]) -> None:
    """The command's flags."""
    flags.DEFINE_string("workdir", None, "Folder of the run to export.", flag_values=values)
    flags.DEFINE_string("out", None, "Folder to write; new, or empty.", flag_values=values)
    flags.DEFINE_string(
        "format",
        "diffusers",
        "diffusers, which loads it with no code of ours, safetensors, or stablehlo: the sampler as a program.",
        flag_values=values,
    )
    flags.DEFINE_string("dtype", "float32", "Of the parameters: float32 or float16.", flag_values=values)
    flags.DEFINE_string("sampler", None, "Instead of the run's: what a scheduler's config says.", flag_values=values)
    flags.DEFINE_string("grid", None, "Instead of the run's time grid.", flag_values=values)
    flags.DEFINE_integer("steps", None, "Instead of the run's steps of the sampler.", flag_values=values)
    flags.DEFINE_float("guidance", None, "Instead of the run's guidance.", flag_values=values)
    flags.DEFINE_string("threshold", None, "Instead of the run's threshold.", flag_values=values)
    sampling.define_checkpoint(values)
    flags.DEFINE_bool("check", False, "Compare with what diffusers and torch make of it.", flag_values=values)
    flags.DEFINE_bool("overwrite", False, "Replace the export in --out.", flag_values=values)


def run(values: flags.FlagValues) -> None:
    """Exports."""
    average = sampling.average(values)
    from diffusion_jax.runs.interchange.exporting import ExportRequest, export

    request = ExportRequest(
        format=values.format,
        dtype=values.dtype,
        step=values.step,
        average=average,
        sampling={name: values[name].value for name in SAMPLING},
        overwrite=values.overwrite,
        check=values.check,
    )
    export(Path(values.workdir), Path(values.out), request)
