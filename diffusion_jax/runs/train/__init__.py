"""`diffusion-jax train`: a config and a workdir to a trained model."""

from diffusion_jax.runs.train.run import train

__all__ = ["train"]
