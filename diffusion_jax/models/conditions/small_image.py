"""A smaller image at its own size beside latents of that size, which Stable Diffusion's upscaler enlarges."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffusion_jax.core.conditions import shrunk
from diffusion_jax.core.process import diffuse
from diffusion_jax.core.schedules import SCHEDULES, Schedule
from diffusion_jax.errors import UserError
from diffusion_jax.models.conditions.condition import Condition, Entries
from diffusion_jax.models.conditions.low_resolution import small_images
from diffusion_jax.models.conditions.picture_request import refused
from diffusion_jax.models.conditions.request import RequestSetting, SampleRequest
from diffusion_jax.spec import from_spec

_LEVEL = "small_image_level"


@dataclasses.dataclass(frozen=True)
class SmallImage(Condition):
    """The image `factor` times smaller, as noisy as at a step of a schedule's chain, and the number of that step.

    It is what the x4 upscaler of Stable Diffusion 2 is told. In training the step is uniform in [0, steps). Entries
    "small_image" [B, H, W, colors], in which each pixel is repeated to the image's size, and "small_image_level" [B],
    the step as a whole number. The model shrinks an entry to the size of its latents, which takes the repetition back.
    """

    factor: int = 4
    colors: int = 3
    """Channels of the image."""
    schedule: str = "cosine"
    steps: int = 350
    """Of the schedule's chain, counted from the data, that training takes noise of."""
    dropout: float = 0.0

    name: ClassVar[str] = "small_image"
    takes: ClassVar[Mapping[str, str]] = {"low_res": "--low_res", "augment": "--augment"}
    of_images: ClassVar[bool] = True
    restores = True
    levels = (_LEVEL,)

    def __post_init__(self) -> None:
        self.check_dropout()
        if self.factor < 2 or self.colors < 1 or not 1 <= self.steps <= (self.chain.steps or 0):
            raise UserError(
                "small_image takes a factor of at least 2, colors from 1 and steps of a schedule that is a chain; got "
                f"factor={self.factor}, colors={self.colors} and {self.steps} steps of {self.schedule}"
            )

    @property
    def level_count(self) -> int | None:
        """As `Condition`: the steps of the chain."""
        return self.chain.steps

    @property
    def chain(self) -> Schedule:
        """The schedule of the noise."""
        return from_spec(self.schedule, SCHEDULES, "schedule")

    @property
    def size_unit(self) -> int:
        """As `Condition`."""
        return self.factor

    def channels(self, c: int) -> dict[str, int]:
        """As `Condition`."""
        return {"small_image": self.colors}

    def entries(self, batch: Mapping[str, chex.Array]) -> Entries:
        """As `Condition`, without noise."""
        small = shrunk(jnp.asarray(batch["x"]), self.factor)
        return {"small_image": self.repeated(small), _LEVEL: jnp.zeros(len(small))}

    def augment(self, key: Array, entries: Entries) -> Entries:
        """With the noise of a random step."""
        level_key, noise_key = jax.random.split(key)
        small = entries["small_image"]
        step = jax.random.randint(level_key, small.shape[:1], 0, self.steps)
        return {"small_image": self.noised(small, jax.random.normal(noise_key, small.shape), step), _LEVEL: step * 1.0}

    def noised(self, small: Array, noise: Array, step: Array) -> Array:
        """Images [B, ...] with the noise of steps [B] of the chain, from standard normal noise [B, ...]."""
        chain = self.chain
        assert chain.steps is not None
        return diffuse(small, noise, chain.level((step + 1) / chain.steps).like(small))

    def request(self, request: SampleRequest, setting: RequestSetting) -> dict[str, np.ndarray]:
        """The small image or images of request.low_res, with the noise of step augment * T of the chain of T steps."""
        low = small_images(request, setting, self.factor)
        if not 0 <= request.augment < 1:
            raise UserError(f"--augment is in [0, 1); got {request.augment}")
        seeds, chain = setting.seeds, self.chain
        assert chain.steps is not None
        small = jnp.asarray(low)[jnp.arange(len(seeds)) % len(low)]
        step = np.full(len(seeds), round(request.augment * chain.steps), np.float32)
        keys = jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(seed), 1))(jnp.asarray(seeds))
        noise = jax.vmap(lambda key: jax.random.normal(key, small.shape[1:]))(keys)
        noisy = self.noised(small, noise, jnp.asarray(step))
        return {"small_image": np.asarray(self.repeated(noisy)), _LEVEL: step}

    def repeated(self, small: Array) -> Array:
        """[B, h, w, C] -> [B, factor h, factor w, C]."""
        return small.repeat(self.factor, 1).repeat(self.factor, 2)

    @classmethod
    def refusal(cls, field: str, told: tuple[Condition, ...]) -> str:
        """As `Condition`."""
        return refused("--low_res", told)
