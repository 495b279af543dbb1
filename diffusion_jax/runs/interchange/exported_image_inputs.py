"""The images that an exported U-Net takes beside text, and the pipeline of diffusers that gives them to it."""

import dataclasses

from diffusion_jax.interop.diffusers_image_inputs import INPAINT, INPAINTING, UPSCALE_NOTES, UPSCALING
from diffusion_jax.interop.diffusers_scheduler_config import (
    PIXELS,
    SamplingSpecs,
    SchedulerConfig,
    no_twin,
    scheduler_config,
)
from diffusion_jax.models.conditions import Condition
from diffusion_jax.models.conditions.small_image import SmallImage
from diffusion_jax.models.model import Model
from diffusion_jax.nets.unet import UNet

PIPELINES = {("inpaint",): (INPAINTING, INPAINT.notes), ("small_image",): (UPSCALING, UPSCALE_NOTES)}
"""{conditions beside text of a U-Net of latents: (the pipeline that gives them to it, its notes)}."""

ELSEWHERE = ("label", "text", "size_and_crop")
"""Conditions that are no images."""

UPSCALER_SCALE = 0.08333
"""The scaling_factor that an upscaling pipeline of diffusers sets, whatever its autoencoder says."""


@dataclasses.dataclass(frozen=True)
class ExportedImageInputs:
    """The images that a U-Net takes, and the pipeline that gives them."""

    pipeline: str = ""
    entries: tuple[str, ...] = ()  # of which the channels follow those of x, or which are embedded as a class
    channels: int = 0  # of these entries
    call: tuple[tuple[str, float], ...] = ()  # arguments of the pipeline's call
    notes: tuple[str, ...] = ()  # what is another in diffusers, which `export_check` makes the same
    low_res_scheduler: SchedulerConfig | None = None  # of the noise of what is enlarged
    settings: tuple[tuple[str, int], ...] = ()  # of the pipeline, in its index


NOTHING = ExportedImageInputs()


def exported_image_inputs(model: Model) -> ExportedImageInputs:
    """The images that the network of a model takes; raises UserError where no pipeline gives them."""
    others = [each for each in model.conditions if each.name not in ELSEWHERE]
    if not others:
        return NOTHING
    names = tuple(each.name for each in others)
    parts = model.text and model.autoencoder and isinstance(model.network, UNet) and not model.network.numbers
    if names not in PIPELINES or not parts:
        raise no_twin(f"a model that is told {', '.join(names)}")
    (condition,), (pipeline, notes) = others, PIPELINES[names]
    channels = condition.channels(model.x_shape[-1])
    found = ExportedImageInputs(pipeline, (*channels, *condition.levels), sum(channels.values()), notes=notes)
    if isinstance(condition, SmallImage):
        return _upscaler(model, condition, found)
    return dataclasses.replace(found, call=(("strength", 1.0),))


def _upscaler(model: Model, condition: SmallImage, found: ExportedImageInputs) -> ExportedImageInputs:
    """found, with the scheduler of the small image's noise; UserError where an upscaling pipeline does other things."""
    coder = model.autoencoder
    assert coder is not None
    if condition.factor != coder.network.factor or condition.colors != model.shape[-1]:
        raise no_twin(f"a small image of {condition.colors} colors, {condition.factor} times smaller,")
    if abs(coder.scale - UPSCALER_SCALE) > 1e-6:
        raise no_twin(f"an upscaler whose latents are scaled by {coder.scale:.6g}, not {UPSCALER_SCALE},")
    chain = condition.chain
    specs = SamplingSpecs(condition.schedule, "eps", "ddpm(variance='small')", "leading", "none")
    noise = scheduler_config(specs, chain, PIXELS, steps=chain.steps or 1)
    return dataclasses.replace(found, low_res_scheduler=noise, settings=(("max_noise_level", condition.steps),))


def image_condition(model: Model) -> Condition | None:
    """The condition of a model that is an image; None where there is none."""
    return next((each for each in model.conditions if each.name not in ELSEWHERE), None)
