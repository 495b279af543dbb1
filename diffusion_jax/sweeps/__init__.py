"""What a sweep file is written with: spaces of hyperparameters, methods of search, and the objective."""

from diffusion_jax.sweeps.definition import Objective, Sweep
from diffusion_jax.sweeps.spaces import choice, integers, log_grid, log_uniform, uniform

__all__ = ["Objective", "Sweep", "choice", "integers", "log_grid", "log_uniform", "uniform"]
