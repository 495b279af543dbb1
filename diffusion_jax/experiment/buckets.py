"""The sizes of a config's training batches, where data.modality trains on images in buckets."""

import math

from ml_collections import ConfigDict

from diffusion_jax.data.buckets import Buckets, bucket_sizes, bucketed
from diffusion_jax.data.example import Source
from diffusion_jax.data.image_sizes import image_ratios
from diffusion_jax.errors import UserError
from diffusion_jax.experiment import autoencoder, data
from diffusion_jax.models.model import Model
from diffusion_jax.models.sizing import size_unit


def training_sizes(config: ConfigDict, model: Model | None) -> tuple[tuple[int, int], ...]:
    """The sizes (height, width) that batches may have; () where config trains on one size.

    model is of task diffusion. Nothing is read. Raises UserError where config and buckets do not fit together.
    """
    if not data.modality(config).in_buckets:
        return ()
    spec = config.data.modality
    if model is not None:
        unit, takes = size_unit(model), type(model.network).__name__
        if unit and model.teacher is not None:
            unit, takes = math.lcm(unit, size_unit(model.teacher.model)), "the teacher"
    elif config.task == "autoencoder":
        unit, takes = autoencoder.network(config).factor, "AutoencoderKL"
    else:
        unit, takes = 0, "a classifier"
    if not unit:
        raise UserError(
            f"data.modality={spec} has images of several sizes, and {takes} takes one size alone, as it is told "
            "positions; set data.modality='image', or train a network without them"
        )
    height, width, _ = data.shape(config)
    if height % unit or width % unit:
        near = [max(round(side / unit), 1) * unit for side in (height, width)]
        raise UserError(
            f"data.modality={spec} has sizes whose sides are multiples of {unit}, and data.shape is {height} x {width} "
            f"pixels; set it to {near[0]} x {near[1]}"
        )
    if config.train.steps_per_dispatch > 1:
        raise UserError(
            f"train.steps_per_dispatch={config.train.steps_per_dispatch} stacks batches of one size, and data.modality="
            f"{spec} has several; set train.steps_per_dispatch=1"
        )
    if config.mesh.context > 1:
        raise UserError(
            f"mesh.context={config.mesh.context} splits the tokens of one size, and data.modality={spec} has several; "
            "set mesh.context=1"
        )
    return bucket_sizes(height, width, unit)


def buckets(config: ConfigDict, model: Model | None, source: Source) -> Buckets | None:
    """The buckets of the images of source, by their headers; None where config trains on one size.

    Raises UserError as `training_sizes`, and for a source that cannot read single images.
    """
    found = training_sizes(config, model)
    if not found or not len(source):  # the pipeline says that there is nothing to train on
        return None
    height, width, _ = data.shape(config)
    return bucketed(image_ratios(source, unknown=height / width), found, config.train.batch_size)
