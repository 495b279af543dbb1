"""Exponential moving average of the parameters."""

import jax
import jax.numpy as jnp
from jax import Array

from diffusion_jax.train.state import Params


def decay_at(step: Array, decay: float, warmup: bool) -> Array:
    """The decay used after `step` steps: `decay`, or with warm-up min(decay, (1 + step) / (10 + step)).

    Without the warm-up an average with decay 0.9999 is still mostly the random initialisation after 10,000 steps.
    """
    return jnp.minimum(decay, (1.0 + step) / (10.0 + step)) if warmup else jnp.float32(decay)


def update(ema: Params, params: Params, decay: Array) -> Params:
    """Decay * ema + (1 - decay) * params, written so that an average equal to the parameters stays exactly equal."""
    return jax.tree.map(lambda e, p: e + (1.0 - decay) * (p - e), ema, params)
