"""A trained model that draws images of another size than those that it was trained with."""

import dataclasses
import math

from diffusion_jax.errors import UserError
from diffusion_jax.models.model import Model


def resized(model: Model, width: int, height: int) -> Model:
    """The model of images of height x width, with the same parameters.

    Raises UserError for data that are no images, for a network that draws one size alone, and for sides that are no
    multiples of what the network, the autoencoder and the conditions divide them by.
    """
    asked = f"--size={width}x{height}"
    if len(model.shape) != 3:
        raise UserError(
            f"{asked} is the width and height of an image; this model draws arrays of shape "
            f"{' x '.join(map(str, model.shape))}, and no other; leave out --size"
        )
    sides, unit = (height, width), size_unit(model)
    if sides == model.shape[:2]:
        return model
    if not unit:
        raise UserError(
            f"{asked}: this model draws {model.shape[1]}x{model.shape[0]} alone, as its network "
            f"({type(model.network).__name__}) is told positions, and knows those of this size; leave out --size"
        )
    if min(sides) < 1 or any(side % unit for side in sides):
        near = [max(round(side / unit), 1) * unit for side in (width, height)]
        raise UserError(
            f"{asked}: the sides of this model's images are multiples of {unit}; the nearest that fits is "
            f"--size={near[0]}x{near[1]}"
        )
    return of_sides(model, sides)


def size_unit(model: Model) -> int:
    """The number of which the sides of the model's images are multiples; 0 for a network that draws one size alone."""
    factor = model.autoencoder.network.factor if model.autoencoder else 1
    # The least common multiple with 0 is 0.
    return math.lcm(model.network.size_unit * factor, *(condition.size_unit for condition in model.conditions))


def of_sides(model: Model, sides: tuple[int, ...]) -> Model:
    """The model of examples with these sides *S, whether or not its network draws them."""
    return dataclasses.replace(model, shape=(*sides, model.shape[-1]))
