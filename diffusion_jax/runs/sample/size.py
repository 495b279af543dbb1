"""The size of the images that are drawn, where it is another than a model was trained with."""

import dataclasses
import re

from diffusion_jax import experiment
from diffusion_jax.errors import UserError
from diffusion_jax.models.sizing import resized
from diffusion_jax.runs.workdir.restored import Trained

Size = tuple[int, int]
"""(width, height) in pixels."""


def read_size(text: str) -> Size:
    """The size of a text such as "768x512"; raises UserError for another text."""
    found = re.fullmatch(r"([1-9][0-9]{0,5})x([1-9][0-9]{0,5})", text)
    if not found:
        raise UserError(f"--size is WIDTHxHEIGHT in pixels, as in 768x512; got {text}")
    return int(found[1]), int(found[2])


def of_size(trained: Trained, size: Size | None) -> Trained:
    """The model, and the weaker model that guides it, for images of a size; None: the size that it was trained with.

    Raises UserError where the model, or what guides it, draws no such images.
    """
    if size is None:
        return trained
    if len(size) != 2 or not all(isinstance(side, int) and side > 0 for side in size):
        raise UserError(f"--size is a width and a height in pixels, as in 768 and 512; got {size!r}")
    model, guides = resized(trained.model, *size), trained.guides
    if guides.weak is not None:
        guides = guides._replace(weak=resized(guides.weak, *size))
    experiment.sample_program(model, trained.how, trained.mesh, guides)  # raises where a classifier does not take them
    return dataclasses.replace(trained, model=model, guides=guides)
