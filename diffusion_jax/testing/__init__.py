"""Conformance suites for networks, objectives and conditions of your own.

Each is a function that takes the object and raises AssertionError where it breaks its protocol.
"""

from diffusion_jax.testing.conditions import check_condition
from diffusion_jax.testing.networks import check_network
from diffusion_jax.testing.objectives import check_objective

__all__ = ["check_condition", "check_network", "check_objective"]
