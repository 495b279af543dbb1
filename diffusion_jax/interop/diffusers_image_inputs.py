"""The images that diffusers' pipelines give a U-Net beside text, in channels that follow those of the latents.

| pipeline | its images, in this order | condition of config.spatial |
|---|---|---|
| StableDiffusionInpaintPipeline | the mask, 1 channel; the latent of the image without what is masked | inpaint |
| StableDiffusionUpscalePipeline | the small image with noise, 3 channels, and as a class its level | small_image |
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from diffusion_jax.errors import UserError
from diffusion_jax.interop.diffusers_scheduler import DEFAULTS, SchedulerTwin, scheduler

INPAINTING = "StableDiffusionInpaintPipeline"
UPSCALING = "StableDiffusionUpscalePipeline"


@dataclasses.dataclass(frozen=True)
class ImageInputs:
    """The images that a pipeline gives its U-Net, and what else is its own."""

    spatial: tuple[str, ...] = ()  # conditions of config.spatial
    notes: tuple[str, ...] = ()  # the differences from diffusers, a sentence each
    guidance: float = 7.5  # guidance_scale of the pipeline where none is given
    steps: int = 50  # num_inference_steps, likewise


NOTHING = ImageInputs()

INPAINT = ImageInputs(
    ("inpaint",),
    (
        "diffusers tells what is known of an image by a draw of its latent, diffusion_jax by the latent's mean",
        "a latent is painted in diffusers where its first pixel is masked, in diffusion_jax where any of its pixels is",
        "pixels that are not masked come back from diffusers as decoded, from diffusion_jax as they were",
        "painting starts from noise alone, in diffusers where strength=1 is given",
    ),
)


def inpainted(in_channels: int, latent_channels: int) -> ImageInputs:
    """The images of an inpainting pipeline; a U-Net without channels for them gets none."""
    return INPAINT if in_channels == 2 * latent_channels + 1 else NOTHING


def scheduler_with_images(config: Mapping[str, Any], where: str, pipeline: str) -> SchedulerTwin:
    """The twin of the scheduler of an inpainting pipeline or an upscaler, as `scheduler`.

    Both pipelines leave clip_sample as their file has it, and an upscaler steps_offset too. Latents are not clipped
    here, which a note says where they are there.
    """
    twin = scheduler(dict(config) | {"clip_sample": False}, where, latent=pipeline == INPAINTING)
    if config.get("clip_sample", DEFAULTS[config["_class_name"]].get("clip_sample")):
        clips = "clip_sample clips the latents of this pipeline in diffusers, and no latents in diffusion_jax"
        twin = dataclasses.replace(twin, notes=(*twin.notes, clips))
    return twin


def upscaled(low_res: Mapping[str, Any], where: str, *, factor: int, colors: int, most: object) -> ImageInputs:
    """The images of an upscaling pipeline.

    low_res is the config of low_res_scheduler, which where names in messages, and most is the pipeline's
    max_noise_level. Raises UserError where there is no such condition.
    """
    if not isinstance(most, int) or most < 1:
        raise UserError(f"{where}: max_noise_level={most!r} has no twin here; it is a whole number from 1")
    twin = scheduler(low_res, where, latent=False)
    spec = f"small_image(factor={factor}, colors={colors}, schedule={twin.schedule!r}, steps={most})"
    return ImageInputs((spec,), UPSCALE_NOTES, guidance=9.0, steps=75)


UPSCALE_NOTES = (
    "noise_level of diffusers, 20 if left out, is --augment in diffusion_jax over the steps of the chain: 0.02 of 1000",
)
