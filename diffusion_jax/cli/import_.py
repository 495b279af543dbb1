"""Makes a workdir of published weights, from a diffusers folder or a file of Stable Diffusion's original layout.

diffusion-jax import --from=hf://OWNER/NAME --workdir=runs/sd
diffusion-jax import --from=stable-diffusion-v1-5 --workdir=runs/sd15 --variant=fp16
diffusion-jax import --from=stable-diffusion-v1-5 --part=autoencoder --workdir=runs/sd_autoencoder
diffusion-jax import --from=v1-5-pruned.safetensors --tokenizer=stable-diffusion-v1-5/tokenizer --workdir=runs/sd
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
    flags.DEFINE_string(
        "from",
        None,
        "Folder that diffusers wrote, hf://OWNER/NAME[@REVISION] of the Hugging Face hub, or a .safetensors file in "
        "the layout of Stable Diffusion's original code.",
        flag_values=values,
    )
    flags.DEFINE_string("workdir", None, "New folder.", flag_values=values)
    flags.DEFINE_string("variant", "", "Of files such as model.fp16.safetensors: fp16.", flag_values=values)
    flags.DEFINE_string("part", "", "autoencoder: that of a pipeline alone.", flag_values=values)
    flags.DEFINE_string(
        "tokenizer", "", "Folder of CLIP's tokenizer, which one file does not have.", flag_values=values
    )
    flags.DEFINE_string("prediction", "", "eps or v: of one file of Stable Diffusion 2.x.", flag_values=values)


def run(values: flags.FlagValues) -> None:
    """Imports."""
    source = str(values["from"].value)
    if "://" in source and not source.startswith("hf://"):
        raise UserError(
            f"--from={source} is no local path, nor hf://OWNER/NAME of the Hugging Face hub; fetch it first"
        )
    from diffusion_jax.runs.interchange.importing import ImportRequest, import_weights

    tokenizer = Path(values.tokenizer) if values.tokenizer else None
    request = ImportRequest(values.variant, values.part, tokenizer, values.prediction)
    import_weights(source, Path(values.workdir), request)
