"""`export --check` of a pipeline that gives a U-Net images: random images for both sides."""

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.models.conditions.small_image import SmallImage
from diffusion_jax.models.model import Model
from diffusion_jax.runs.interchange.exported_image_inputs import image_condition

Arrays = dict[str, np.ndarray]

LEVEL = 20
"""noise_level of an upscaling pipeline where none is given."""


def random_image_inputs(model: Model, count: int) -> tuple[Arrays, dict[str, jax.Array | np.ndarray]]:
    """(inputs of `diffusers_twin`, entries of cond) for count samples of random images; both {} where it takes none."""
    condition = image_condition(model)
    if condition is None:
        return {}, {}
    image = jax.random.uniform(jax.random.key(0), (count, *model.shape), minval=-1.0)
    if not isinstance(condition, SmallImage):
        image = jnp.repeat(image[:1], count, axis=0)
        unknown = jnp.zeros((count, *model.shape[:2], 1), bool).at[:, : model.shape[0] // 2].set(True)
        inputs = {"known_image": np.asarray(image[:1] / 2 + 0.5), "unknown": np.asarray(unknown[:1], np.float32)}
        return inputs, {**condition.of_edit(image, unknown)}
    level = min(LEVEL, condition.steps - 1)
    small = image[:, :: condition.factor, :: condition.factor]
    noise = jax.random.normal(jax.random.key(1), small.shape)
    step = jnp.full(count, float(level))
    noisy = condition.repeated(condition.noised(small, noise, step))
    inputs = {"small_image": np.asarray(small / 2 + 0.5), "small_noise": np.asarray(noise), "level": np.array(level)}
    return inputs, dict(zip((*condition.channels(1), *condition.levels), (noisy, step), strict=True))
