"""Training of diffusion models in JAX: schedules, networks, sharded step, samplers and commands."""

__version__ = "0.1.0"
