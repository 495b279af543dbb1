"""The posterior of an autoencoder against quadrature."""

import jax.numpy as jnp
import numpy as np

from diffusion_jax.core import autoencoding


def normal(*shape, seed=0, scale=1.0):
    return np.asarray(scale * np.random.default_rng(seed).standard_normal(shape), np.float32)


def test_kl_is_its_integral_and_sums_over_an_example():
    mean, logvar = np.array([[0.0, 1.5], [-2.0, 0.3]]), np.array([[0.0, -2.0], [0.7, 1.2]])
    z = np.linspace(-30, 30, 600_001)[:, None, None]
    log_q = -0.5 * ((z - mean) ** 2 / np.exp(logvar) + logvar)
    density = np.exp(log_q) / np.sqrt(2 * np.pi)
    exact = (density * (log_q + 0.5 * z**2)).sum(axis=0) * (z[1] - z[0]).item()
    got = autoencoding.kl_to_standard_normal(jnp.asarray(mean), jnp.asarray(logvar))
    np.testing.assert_allclose(got, exact.sum(axis=1), rtol=1e-5)


def test_a_sample_has_the_posteriors_mean_and_variance():
    mean, logvar = normal(3, 4), normal(3, 4, seed=1)
    # Two points of weight 1/2 at +-1 have the moments of N(0, 1) up to the third.
    low, high = (np.asarray(autoencoding.sample_posterior(mean, logvar, s * np.ones_like(mean))) for s in (-1, 1))
    np.testing.assert_allclose((low + high) / 2, mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose((high - low) ** 2 / 4, np.exp(logvar), rtol=1e-5)
