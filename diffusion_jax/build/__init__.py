"""From a config to objects; the only reader of a config. Everything below takes plain arguments."""

from diffusion_jax.build import autoencoder, classifier
from diffusion_jax.build.classifier import Classifier
from diffusion_jax.build.data import batches, source, tokenizer
from diffusion_jax.build.editing import Edit, edit_program
from diffusion_jax.build.latent import Autoencoder
from diffusion_jax.build.model import Model, model, schedule
from diffusion_jax.build.sampling import Guides, Sampling, guided, sample_program, sampling, trajectory_program
from diffusion_jax.build.training import (
    abstract_state,
    compiled_step,
    initial_state,
    mesh,
    optimizer,
    time_sampling,
    train_step,
)

__all__ = [
    "Autoencoder",
    "Classifier",
    "Edit",
    "Guides",
    "Model",
    "Sampling",
    "abstract_state",
    "autoencoder",
    "batches",
    "classifier",
    "compiled_step",
    "edit_program",
    "guided",
    "initial_state",
    "mesh",
    "model",
    "optimizer",
    "sample_program",
    "sampling",
    "schedule",
    "source",
    "time_sampling",
    "tokenizer",
    "train_step",
    "trajectory_program",
]
