"""The latent space of a trained autoencoder, in which a diffusion model works."""

import dataclasses
from typing import cast

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from diffusion_jax.core.tiles import decode_tiled
from diffusion_jax.errors import UserError
from diffusion_jax.nets.autoencoder import AutoencoderKL
from diffusion_jax.train.state import Params


@dataclasses.dataclass(frozen=True, eq=False)
class Autoencoder:
    """A trained autoencoder, and the scale that gives its latents unit variance: appendix G of arXiv:2112.10752."""

    network: AutoencoderKL
    params: Params
    scale: float

    def latent_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape h w z of the latent of an image H W C. Raises UserError unless f divides the sides and C fits."""
        *sides, channels = shape
        if any(side % self.network.factor for side in sides):
            raise UserError(
                f"the autoencoder shrinks images {self.network.factor} times, which does not divide "
                f"{' x '.join(map(str, sides))}"
            )
        if channels != self.network.out_channels:
            raise UserError(f"the autoencoder is of images of {self.network.out_channels} channels; got {channels}")
        return (*(side // self.network.factor for side in sides), self.network.latent_channels)

    def encode(self, params: Params, x: Array) -> tuple[Array, Array]:
        """The mean and logvar [B, h, w, z] of the scaled latents of images [B, H, W, C]."""
        mean, logvar = cast(tuple[Array, Array], self.network.apply({"params": params}, x, method="encode"))
        return mean * self.scale, logvar + 2 * jnp.log(self.scale)

    def decode(self, params: Params, z: Array, tile: int = 0) -> Array:
        """The images [B, H, W, C] of scaled latents [B, h, w, z]; with tile > 0, in tiles of tile x tile latents."""

        def decode(z: Array) -> Array:
            return cast(Array, self.network.apply({"params": params}, z / self.scale, method="decode"))

        return decode_tiled(decode, z, tile, tile // 4) if tile else decode(z)

    def shrink(self, a: Array) -> Array:
        """A mask or map [B, H, W, C] -> [B, h, w, C]: the maximum of each square, so that unknown stays unknown."""
        f = (self.network.factor,) * 2
        return nn.max_pool(a, f, f)
