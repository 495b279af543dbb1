"""The latent space of a trained autoencoder, in which a diffusion model can work."""

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
    """A trained autoencoder with the scale that gives its latents unit variance (arXiv:2112.10752, appendix G)."""

    network: AutoencoderKL
    params: Params
    scale: float

    def latent_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """H W C of an image -> h w z; raises UserError where the sides are not multiples of f."""
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
        """Images [B, H, W, C] -> mean and logvar of their scaled latents [B, h, w, z]."""
        mean, logvar = cast(tuple[Array, Array], self.network.apply({"params": params}, x, method="encode"))
        return mean * self.scale, logvar + 2 * jnp.log(self.scale)

    def decode(self, params: Params, z: Array, tile: int = 0) -> Array:
        """Scaled latents [B, h, w, z] -> images [B, H, W, C]; tile > 0 decodes so many latents on a side at once."""

        def decode(z: Array) -> Array:
            return cast(Array, self.network.apply({"params": params}, z / self.scale, method="decode"))

        return decode_tiled(decode, z, tile, tile // 4) if tile else decode(z)

    def shrink(self, a: Array) -> Array:
        """A mask or map [B, H, W, C] at the latents' size: the largest of each square, so what is unknown stays so."""
        f = (self.network.factor,) * 2
        return nn.max_pool(a, f, f)
