"""Makes a workdir of published weights, from a folder that diffusers wrote: to sample, edit, plan and fine-tune.

diffusion-jax import --from=stable-diffusion-v1-5 --workdir=runs/sd15 --variant=fp16
diffusion-jax import --from=stable-diffusion-v1-5 --part=autoencoder --workdir=runs/sd_autoencoder
diffusion-jax sample --workdir=runs/sd15 --out=samples --num=4 --prompt='a photograph of an astronaut'
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from diffusion_jax.errors import UserError

NEEDS = ("from=FOLDER", "workdir=FOLDER")
"""Flags without which the command is an error."""


def define(values: flags.FlagValues, arguments: Sequence[str]) -> None:
    """The command's flags."""
    flags.DEFINE_string("from", None, "Folder of a pipeline or model that diffusers wrote.", flag_values=values)
    flags.DEFINE_string("workdir", None, "New folder.", flag_values=values)
    flags.DEFINE_string("variant", "", "Of files such as model.fp16.safetensors: fp16.", flag_values=values)
    flags.DEFINE_string("part", "", "autoencoder: that of a pipeline alone.", flag_values=values)


def run(values: flags.FlagValues) -> None:
    """Imports."""
    source = str(values["from"].value)
    if "://" in source:
        raise UserError(
            f"--from={source} is no local folder; fetch it first, as with: hf download OWNER/NAME --local-dir=FOLDER"
        )
    from diffusion_jax.runs.interchange.importing import import_diffusers

    import_diffusers(Path(source), Path(values.workdir), variant=values.variant, part=values.part)
