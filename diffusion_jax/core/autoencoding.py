"""The posterior of a variational autoencoder: its samples and its KL divergence from the prior N(0, I)."""

import jax.numpy as jnp
from jax import Array


def sample_posterior(mean: Array, logvar: Array, noise: Array) -> Array:
    """z = mean + exp(logvar / 2) noise, a sample of N(mean, exp(logvar)): section 2.4 of arXiv:1312.6114.

    mean, logvar and noise, which is standard normal, have the shape of z, [B, ...].
    """
    return mean + jnp.exp(0.5 * logvar) * noise


def kl_to_standard_normal(mean: Array, logvar: Array) -> Array:
    """KL(N(mean, exp(logvar)) || N(0, I)) in nats, summed over each example: appendix B of arXiv:1312.6114.

    mean, logvar [B, ...] -> [B].
    """
    nats = 0.5 * (mean**2 + jnp.exp(logvar) - 1.0 - logvar)
    return nats.reshape(len(nats), -1).sum(axis=1)
