"""What is known of an image whose rest a model paints."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import chex
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffusion_jax.data.readers import Masks, Reader
from diffusion_jax.data.tokens import Tokenizer
from diffusion_jax.errors import UserError
from diffusion_jax.models.conditions.condition import BatchEntry, Condition, Entries
from diffusion_jax.models.conditions.request import RequestSetting, SampleRequest


@dataclasses.dataclass(frozen=True)
class Inpaint(Condition):
    """What is known of the image, 0 elsewhere, and the mask of what is unknown (arXiv:2112.10752, section 4.5).

    Entries "known" [B, H, W, C] and "mask" [B, H, W, 1].
    """

    dropout: float = 0.0

    name: ClassVar[str] = "inpaint"
    images = ("known",)
    restores = True
    edits = True

    def __post_init__(self) -> None:
        self.check_dropout()

    def channels(self, c: int) -> dict[str, int]:
        """As `Condition`."""
        return {"mask": 1, "known": c}

    def reader(self, tokenizer: Tokenizer | None = None) -> Reader:
        """As `Condition`."""
        return Masks()

    def batch(self, shape: tuple[int, ...]) -> dict[str, BatchEntry]:
        """As `Condition`."""
        return {"mask": BatchEntry(shape[:-1], jnp.bool_, 0, 1)}

    def entries(self, batch: Mapping[str, chex.Array]) -> Entries:
        """As `Condition`."""
        mask = jnp.asarray(batch["mask"]).astype(jnp.float32)[..., None]
        return {"mask": mask, "known": jnp.asarray(batch["x"]) * (1 - mask)}

    def request(self, request: SampleRequest, setting: RequestSetting) -> dict[str, np.ndarray]:
        """Nothing: its entries are made of the image that is edited."""
        if not setting.painted:
            raise UserError("this model paints what is unknown of an image; give --init_image with --mask or --expand")
        return {}

    def of_edit(self, images: Array, unknown: Array) -> Entries:
        """As `Condition`."""
        return self.entries({"x": images, "mask": unknown[..., 0]})
