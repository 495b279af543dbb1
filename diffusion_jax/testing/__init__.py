"""Conformance suites, one for each kind of thing that can be brought along: what every objective, network ... keeps.

Each is a function that takes the thing and raises AssertionError where it breaks the protocol.
"""

from diffusion_jax.testing.conditions import check_condition
from diffusion_jax.testing.networks import check_network
from diffusion_jax.testing.objectives import check_objective

__all__ = ["check_condition", "check_network", "check_objective"]
