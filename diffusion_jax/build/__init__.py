"""From a config to objects; the only reader of a config. Everything below takes plain arguments."""

from diffusion_jax.build.data import batches, source
from diffusion_jax.build.editing import Edit, edit_program
from diffusion_jax.build.model import Model, model, schedule
from diffusion_jax.build.sampling import Sampling, guidance, sample_program, sampling, trajectory_program
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
    "Edit",
    "Model",
    "Sampling",
    "abstract_state",
    "batches",
    "compiled_step",
    "edit_program",
    "guidance",
    "initial_state",
    "mesh",
    "model",
    "optimizer",
    "sample_program",
    "sampling",
    "schedule",
    "source",
    "time_sampling",
    "train_step",
    "trajectory_program",
]
