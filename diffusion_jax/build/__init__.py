"""From a config to objects; the only reader of a config. Everything below takes plain arguments."""

from diffusion_jax.build import autoencoder, classifier, precompute
from diffusion_jax.build.classifier import Classifier
from diffusion_jax.build.data import batches, opened, source, tokenizer
from diffusion_jax.build.editing import Edit, edit_program, edit_times
from diffusion_jax.build.latent import Autoencoder
from diffusion_jax.build.model import Model, model, schedule
from diffusion_jax.build.objective import time_sampling
from diffusion_jax.build.precompute import digest, precompute_program, precomputed
from diffusion_jax.build.sampling import Guides, Sampling, guided, sample_program, sampling, trajectory_program
from diffusion_jax.build.training import (
    Trainee,
    abstract_state,
    compiled_step,
    examples,
    initial_state,
    layout,
    mesh,
    optimizer,
    train_step,
)
from diffusion_jax.build.training import of_model as trainee

__all__ = [
    "Autoencoder",
    "Classifier",
    "Edit",
    "Guides",
    "Model",
    "Sampling",
    "Trainee",
    "abstract_state",
    "autoencoder",
    "batches",
    "classifier",
    "compiled_step",
    "digest",
    "edit_program",
    "edit_times",
    "examples",
    "guided",
    "initial_state",
    "layout",
    "mesh",
    "model",
    "opened",
    "optimizer",
    "precompute",
    "precompute_program",
    "precomputed",
    "sample_program",
    "sampling",
    "schedule",
    "source",
    "time_sampling",
    "tokenizer",
    "train_step",
    "trainee",
    "trajectory_program",
]
