"""A smaller image, which a super-resolution model enlarges."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffusion_jax.core.conditions import enlarged, noised, shrunk
from diffusion_jax.data import transforms
from diffusion_jax.errors import UserError
from diffusion_jax.models.conditions.condition import Condition, Entries
from diffusion_jax.models.conditions.picture_request import needed, refused, sides
from diffusion_jax.models.conditions.request import RequestSetting, SampleRequest

_LEVEL = "low_resolution_level"


@dataclasses.dataclass(frozen=True)
class LowResolution(Condition):
    """The image `factor` times smaller, enlarged again: super-resolution as in SR3 (arXiv:2104.07636).

    noise > 0 augments it in training: sqrt(1 - s^2) low + s z with s uniform in [0, noise], s being the level that the
    network is told (times the config's level_scale); Gaussian conditioning augmentation of cascades (arXiv:2106.15282,
    section 4.1). Entries "low_resolution" [B, H, W, C] and, with noise, "low_resolution_level" [B].
    """

    factor: int = 4
    noise: float = 0.0
    dropout: float = 0.0

    name: ClassVar[str] = "low_resolution"
    takes: ClassVar[Mapping[str, str]] = {"low_res": "--low_res", "augment": "--augment"}
    of_images: ClassVar[bool] = True
    images = ("low_resolution",)
    restores = True

    def __post_init__(self) -> None:
        self.check_dropout()
        if self.factor < 2 or not 0 <= self.noise < 1:
            raise UserError(
                f"low_resolution takes a factor of at least 2 and noise in [0, 1); got {self.factor} and {self.noise}"
            )

    def channels(self, c: int) -> dict[str, int]:
        """As `Condition`."""
        return {"low_resolution": c}

    @property
    def levels(self) -> tuple[str, ...]:
        """As `Condition`."""
        return (_LEVEL,) if self.noise else ()

    @property
    def size_unit(self) -> int:
        """As `Condition`."""
        return self.factor

    def entries(self, batch: Mapping[str, chex.Array]) -> Entries:
        """As `Condition`, without noise."""
        image = jnp.asarray(batch["x"])
        low = {"low_resolution": enlarged(shrunk(image, self.factor), self.factor)}
        return low | {level: jnp.zeros(len(image)) for level in self.levels}

    def augment(self, key: Array, entries: Entries) -> Entries:
        """With noise of a random level."""
        if not self.noise:
            return entries
        level_key, noise_key = jax.random.split(key)
        low = entries["low_resolution"]
        level = jax.random.uniform(level_key, low.shape[:1], maxval=self.noise)
        return {"low_resolution": noised(noise_key, low, level), _LEVEL: level}

    def request(self, request: SampleRequest, setting: RequestSetting) -> dict[str, np.ndarray]:
        """The small image or images of request.low_res, with noise of level request.augment from the samples' seeds."""
        # Repeated pixels, whose mean the condition takes again, are the image itself.
        low = small_images(request, setting, self.factor).repeat(self.factor, 1).repeat(self.factor, 2)
        seeds, count = setting.seeds, len(setting.seeds)
        cond = {"low_resolution": np.asarray(self.entries({"x": low})["low_resolution"])[np.arange(count) % len(low)]}
        if not self.noise:
            if request.augment:
                raise UserError(self.refusal("augment", ()))
            return cond
        if not 0 <= request.augment < 1:
            raise UserError(f"--augment is in [0, 1); got {request.augment}")
        level = np.full(count, request.augment, np.float32)
        if request.augment:
            keys = jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(seed), 1))(jnp.asarray(seeds))
            one = lambda key, x, s: noised(key, x[None], s[None])[0]  # noqa: E731
            cond["low_resolution"] = np.asarray(jax.vmap(one)(keys, cond["low_resolution"], level))
        return cond | {_LEVEL: level}

    @classmethod
    def refusal(cls, field: str, told: tuple[Condition, ...]) -> str:
        """As `Condition`."""
        if field == "augment":
            return "--augment is of a super-resolution model trained with noise; this one was not"
        return refused("--low_res", told)


def small_images(request: SampleRequest, setting: RequestSetting, factor: int) -> np.ndarray:
    """The image or images [K, h, w, C] of request.low_res, in [-1, 1]; UserError where they are of another size."""
    path = needed(request.low_res, "--low_res")
    height, width, channels = setting.shape
    images = [transforms.decode(f.read_bytes(), channels=channels, name=str(f)) for f in _files(path)]
    small = (height // factor, width // factor)
    if wrong := {a.shape[:2] for a in images} - {small}:
        raise UserError(
            f"--low_res {path} is {sides(next(iter(wrong)))} pixels; this model enlarges {sides(small)} to "
            f"{sides((height, width))}"
        )
    return np.stack([transforms.to_float(a) for a in images])


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    files = sorted(f for f in path.glob("*.png") if f.stem.isdecimal()) if path.is_dir() else []
    if not files:
        raise UserError(f"--low_res {path} is neither an image nor a folder of samples")
    return files
