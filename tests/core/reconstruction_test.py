"""Where a likelihood of 8-bit images begins, and the step to the image: closed forms of Gaussian data."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from samplers_exact import jit
from schedule_cases import SCHEDULE_CASES

from diffusion_jax.core.predictions import Prediction
from diffusion_jax.core.reconstruction import EARLIEST, HALF_BIN, first_time, log_gaussian, reconstruction_term
from diffusion_jax.core.schedules import cosine, rectified_flow, vp

VALUES = 2 * np.arange(256) / 255 - 1


@pytest.mark.parametrize(
    "name",
    ["sigmoid", "ve", "edm", "continuous_cosine | shift(4)", "vp | shift | zero_snr", "linear of 10 steps", "learned"],
)
def test_a_likelihood_begins_at_half_a_bin_or_the_first_trained_time_after_it(name):
    schedule = SCHEDULE_CASES[name]
    start = first_time(schedule)
    alpha, sigma = (float(a) for a in schedule.level(jnp.float32(start)))
    assert sigma > 0
    if schedule.steps is None:
        assert start in (0.0, EARLIEST) or sigma / alpha == pytest.approx(HALF_BIN, rel=1e-3)
        assert sigma / alpha < 2 * HALF_BIN
    else:
        step = start * schedule.steps
        assert step == pytest.approx(round(step), abs=1e-6)
        assert sigma / alpha >= HALF_BIN
        if step > 1.5:
            alpha, sigma = (float(a) for a in schedule.level(jnp.float32(start - 1 / schedule.steps)))
            assert sigma / alpha < HALF_BIN


def test_first_times_of_the_schedules_that_began_too_late():
    """vp: 0.1 t = (1 / 255)^2 to first order. A long cosine chain skips its steps of less noise than that."""
    assert first_time(vp()) == pytest.approx(1 / 255**2 / 0.1, rel=0.02)
    assert first_time(rectified_flow()) == pytest.approx(1 / 256, rel=1e-3)
    assert first_time(cosine(steps=4000)) == 2 / 4000


def test_log_gaussian_is_the_density():
    eps = np.random.default_rng(0).standard_normal((3, 4, 2)).astype(np.float32)
    expected = scipy.stats.norm(0.3, 0.02).logpdf(0.3 + 0.02 * eps.astype(np.float64)).sum(axis=(1, 2))
    np.testing.assert_allclose(log_gaussian(jnp.asarray(eps), jnp.float32(0.02)), expected, rtol=1e-5)


def signs(rng, shape):
    return rng.choice(np.float32([-1, 1]), shape)


def test_the_decoder_has_the_mean_of_the_posteriors_variances():
    """E -log2 p = 1/2 log2(2 pi e v) less the bin's log2, v the mean over dimensions of s^2 n^2 / (s^2 + n^2)."""
    schedule, stds = rectified_flow(), np.float32([0.2, 0.02, 0.01, 0.006])
    rng, start, n = np.random.default_rng(0), 0.01, 8192
    x0 = VALUES[np.round((0.1 + stds * rng.standard_normal((n, 4)) + 1) * 127.5).astype(int)].astype(np.float32)

    def denoise(x, t):
        alpha, sigma = schedule.level(t).like(x)
        mean = 0.1 + alpha * stds**2 / (alpha**2 * stds**2 + sigma**2) * (x - alpha * 0.1)
        return Prediction(mean, (x - alpha * mean) / sigma)

    eps, probe = rng.standard_normal((n, 4)).astype(np.float32), signs(rng, (n, 4))
    run = jit(lambda x0, eps, probe: reconstruction_term(denoise, schedule, start, x0, eps, probe))
    bits = np.asarray(run(x0, eps, probe), np.float64) / 4 / math.log(2)
    alpha, sigma = (float(a) for a in schedule.level(jnp.float32(start)))
    # Rounding to 8 bits adds (2 / 255)^2 / 12 to the data's variance, of which the denoiser knows nothing.
    s2, gain = stds.astype(np.float64) ** 2, alpha * stds**2 / (alpha**2 * stds**2 + sigma**2)
    v = np.mean(s2 * sigma**2 / (alpha**2 * s2 + sigma**2))
    error = np.mean((1 - gain * alpha) ** 2 * (s2 + 4 * HALF_BIN**2 / 12) + (gain * sigma) ** 2)
    expected = 0.5 * np.log2(2 * np.pi * v) + 0.5 * error / v / math.log(2) - math.log2(2 * HALF_BIN)
    assert bits.mean() == pytest.approx(expected, abs=5 * bits.std() / math.sqrt(n))


def test_a_value_that_the_model_knows_costs_next_to_nothing():
    schedule, rng = vp(), np.random.default_rng(0)
    x0 = np.full((64, 8), VALUES[37], np.float32)
    known = lambda x, t: Prediction(jnp.full_like(x, VALUES[37]), x)  # noqa: E731
    nats = jit(lambda x0, probe: reconstruction_term(known, schedule, first_time(schedule), x0, x0, probe))(
        x0, signs(rng, x0.shape)
    )
    assert np.max(nats) / 8 / math.log(2) < 1.1e-3


@pytest.mark.parametrize("schedule", [cosine(steps=1), rectified_flow()])
def test_the_decoder_is_finite_at_both_ends_of_its_variance(schedule):
    """Of an expanding denoiser, a constant one and one that turns its input round."""
    x0 = jnp.asarray(VALUES[None, ::32], jnp.float32)

    @jit
    @jax.value_and_grad
    def nats(x0, slope):
        denoise = lambda x, t: Prediction(slope * x, x)  # noqa: E731
        return reconstruction_term(denoise, schedule, first_time(schedule), x0, x0, jnp.ones_like(x0)).sum()

    for slope in (-1e6, 0.0, 1e6):
        assert all(np.isfinite(a).all() for a in nats(x0, slope))
