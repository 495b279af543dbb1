"""From a config to objects, and nothing else. The rooms below take plain arguments, never a config."""

from diffusion_jax.experiment import autoencoder, classifier, precompute
from diffusion_jax.experiment.buckets import buckets, training_sizes
from diffusion_jax.experiment.data import batches, modality, opened, resolved, shape, source, tokenizer
from diffusion_jax.experiment.diffusion_model import model, schedule
from diffusion_jax.experiment.objectives import time_sampling
from diffusion_jax.experiment.precompute import digest, precompute_program, precomputed
from diffusion_jax.experiment.sampling_options import sampling
from diffusion_jax.experiment.training import (
    Trainee,
    abstract_state,
    compiled_step,
    examples,
    initial_state,
    layout,
    learning_rate,
    mesh,
    optimizer,
    train_step,
)
from diffusion_jax.experiment.training import of_model as trainee
from diffusion_jax.models.classifier import Classifier
from diffusion_jax.models.editing import Edit, edit_program, edit_times
from diffusion_jax.models.latent import Autoencoder
from diffusion_jax.models.model import Model, Teacher
from diffusion_jax.models.sampling import Guides, Sampling, drawing, guided, sample_program, trajectory_program

__all__ = [
    "Autoencoder",
    "Classifier",
    "Edit",
    "Guides",
    "Model",
    "Sampling",
    "Teacher",
    "Trainee",
    "abstract_state",
    "autoencoder",
    "batches",
    "buckets",
    "classifier",
    "compiled_step",
    "digest",
    "drawing",
    "edit_program",
    "edit_times",
    "examples",
    "guided",
    "initial_state",
    "layout",
    "learning_rate",
    "mesh",
    "modality",
    "model",
    "opened",
    "optimizer",
    "precompute",
    "precompute_program",
    "precomputed",
    "resolved",
    "sample_program",
    "sampling",
    "schedule",
    "shape",
    "source",
    "time_sampling",
    "tokenizer",
    "train_step",
    "trainee",
    "training_sizes",
    "trajectory_program",
]
