"""ODE likelihood: the analytic density of Gaussian and mixture data, unbiased traces, 8-bit data."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from samplers_exact import CONTINUOUS, VP, Gaussian, Mixture, jit, keys

from diffusion_jax.core.grids import logsnr
from diffusion_jax.core.likelihood import (
    OFFSET_8_BIT,
    adaptive,
    bits_per_dim,
    dequantize,
    exact_trace,
    fixed,
    hutchinson,
    log_likelihood,
)
from diffusion_jax.core.likelihood import rising as rising_times
from diffusion_jax.core.predictions import Prediction
from diffusion_jax.core.schedules import SCHEDULES
from diffusion_jax.errors import UserError

DIMS = 6


def rising(schedule, steps: int) -> np.ndarray:
    """steps + 1 times from t_min to 1."""
    return logsnr(sigma_max=200.0)(schedule, steps + 1)[-2::-1]


def log_density(data, schedule, t, x):
    """Of x_t: a Gaussian's or a mixture's in each dimension."""
    alpha, sigma = (float(a) for a in schedule.level(t))
    parts = [(1.0, data.mean)] if isinstance(data, Gaussian) else zip(data.weights, data.means, strict=True)
    variance = alpha**2 * data.std**2 + sigma**2
    density = sum(w * np.exp(-0.5 * (x - alpha * m) ** 2 / variance) for w, m in parts) / np.sqrt(2 * np.pi * variance)
    return np.log(density).sum(axis=tuple(range(1, x.ndim)))


def draw(data, schedule, t, n=5):
    rng = np.random.default_rng(0)
    alpha, sigma = (float(a) for a in schedule.level(t))
    return (alpha * (data.mean + 0.5 * rng.standard_normal((n, DIMS))) + sigma * rng.standard_normal((n, DIMS))).astype(
        np.float32
    )


def likelihood(data, schedule, times, x, divergence, solver):
    run = jit(lambda x: log_likelihood(data.denoiser(schedule), schedule, times, x, divergence, solver))
    return np.asarray(run(jnp.asarray(x)))


def prior_gap(data, schedule) -> float:
    """The nats a dimension by which N(0, prior_std^2) may miss the true x_1."""
    alpha, sigma = (float(a) for a in schedule.level(1.0))
    true, prior = alpha**2 * data.variance + sigma**2, float(schedule.prior_std) ** 2
    return abs(math.log(true / prior)) + 2 * abs(1 - true / prior) + 3 * alpha * abs(data.mean) / math.sqrt(prior)


@pytest.mark.parametrize("solver", [fixed("rk4"), adaptive()], ids=["rk4", "adaptive"])
@pytest.mark.parametrize("name", ["vp", "linear", "cosine", "edm", "rectified_flow"])
def test_gaussian_data_has_its_analytic_density(name, solver):
    schedule, data = SCHEDULES[name](), Gaussian()
    times = rising(schedule, 80)
    x = draw(data, schedule, times[0])
    ours = likelihood(data, schedule, times, x, exact_trace, solver)
    exact = log_density(data, schedule, times[0], x.astype(np.float64))
    np.testing.assert_allclose(ours, exact, atol=DIMS * (2e-3 + prior_gap(data, schedule)))
    np.testing.assert_allclose(bits_per_dim(ours, DIMS, 0.0), -exact / DIMS / math.log(2), atol=0.03)


@pytest.mark.parametrize("schedule", CONTINUOUS)
def test_mixture_has_its_analytic_density_in_float64(schedule):
    """From t = 0.05, where the components overlap little, and to a prior that is exact but for exp(-10)."""
    with jax.enable_x64(True):
        schedule, data = CONTINUOUS[schedule], Mixture()
        x = draw(data, schedule, 0.05).astype(np.float64)
        ours = likelihood(data, schedule, np.array([0.05, 1.0]), x, exact_trace, adaptive(1e-8, 1e-8))
    np.testing.assert_allclose(
        ours, log_density(data, schedule, 0.05, x), atol=DIMS * (1e-5 + prior_gap(data, schedule))
    )


@pytest.mark.parametrize(("method", "order"), [("heun", 2), ("rk4", 4)])
def test_order_of_the_fixed_step_methods(method, order):
    schedule, data = CONTINUOUS["flow"], Mixture()
    with jax.enable_x64(True):
        x = draw(data, schedule, 0.1).astype(np.float64)
        angles = np.linspace(*(float(jnp.arctan2(*schedule.level(t)[::-1])) for t in (0.1, 1.0)), 161)
        grid = np.array(schedule.time(jnp.asarray(-2 * np.log(np.tan(angles)))))
        grid[0], grid[-1] = 0.1, 1.0
        best = likelihood(data, schedule, grid, x, exact_trace, fixed("rk4"))
        errors = [
            np.abs(likelihood(data, schedule, grid[::s], x, exact_trace, fixed(method)) - best).max() for s in (16, 8)
        ]
    assert order - 0.5 < np.log2(errors[0] / errors[1]) < order + 1


@pytest.mark.parametrize("name", ["cosine", "edm", "rectified_flow"])
def test_rising_times_are_even_in_log_snr_up_to_an_end_that_has_signal(name):
    schedule = SCHEDULES[name]()
    times = np.asarray(rising_times(schedule, 0.01, 10, sigma_max=40.0))
    assert (times[0], times[-1]) == (np.float32(0.01), 1.0)
    assert (np.diff(times) > 0).all()
    logsnrs = np.asarray(schedule.logsnr(jnp.asarray(times)))[:-1]
    ends = logsnrs[0], max(-2 * math.log(40.0), float(schedule.logsnr(jnp.float32(1.0))))
    np.testing.assert_allclose(logsnrs, np.linspace(*ends, 11)[:-1], atol=2e-3)


@pytest.mark.parametrize("noise", ["rademacher", "gaussian"])
def test_hutchinson_is_the_trace_on_average(noise):
    matrix = jax.random.normal(jax.random.key(1), (DIMS, DIMS))
    f = lambda y: jnp.tanh(y @ matrix)  # noqa: E731
    y = jnp.broadcast_to(jax.random.normal(jax.random.key(2), (DIMS,)), (4000, DIMS))
    out, estimates = hutchinson(keys(4000), noise)(f, y)
    np.testing.assert_allclose(out, f(y), rtol=1e-6)
    exact = np.trace(jax.jacobian(f)(y[0]))
    assert abs(estimates.mean() - exact) < 4 * estimates.std() / math.sqrt(4000)
    np.testing.assert_allclose(exact_trace(f, y[:3])[1], exact, rtol=1e-5)


def test_hutchinson_is_exact_for_a_diagonal_jacobian_and_signs():
    """z_i^2 = 1: signs leave no variance where the Jacobian is diagonal, as that of the exact Gaussian denoiser."""
    schedule, data = SCHEDULES["vp"](), Gaussian()
    times = rising(schedule, 40)
    x = draw(data, schedule, times[0])
    exact, signs = (likelihood(data, schedule, times, x, d, fixed()) for d in (exact_trace, hutchinson(keys(len(x)))))
    np.testing.assert_allclose(signs, exact, rtol=1e-4)


def test_hutchinson_likelihood_is_unbiased_where_dimensions_mix():
    """A Gaussian with correlated dimensions: the mean over many probes is the analytic density."""
    covariance = np.array([[0.3, 0.15, 0.0], [0.15, 0.2, 0.05], [0.0, 0.05, 0.1]])
    values, vectors = np.linalg.eigh(covariance)
    vectors = jnp.asarray(vectors, jnp.float32)
    schedule = VP()

    def denoise(x, t):
        alpha, sigma = schedule.level(t).like(x)
        u = x @ vectors
        total = alpha**2 * values + sigma**2
        return Prediction((alpha * values / total * u) @ vectors.T, (sigma / total * u) @ vectors.T)

    n = 400
    x = jnp.broadcast_to(jnp.array([0.5, -0.2, 0.3]), (n, 3))
    run = jit(lambda x, k: log_likelihood(denoise, schedule, np.linspace(0.05, 1, 41), x, hutchinson(k), fixed()))
    estimates = np.asarray(run(x, keys(n)))
    alpha, sigma = (float(a) for a in schedule.level(0.05))
    marginal = alpha**2 * covariance + sigma**2 * np.eye(3)
    point = np.asarray(x[0], np.float64)
    exact = -0.5 * (point @ np.linalg.solve(marginal, point) + np.linalg.slogdet(2 * np.pi * marginal)[1])
    assert estimates.std() > 0.01
    assert abs(estimates.mean() - exact) < 4 * estimates.std() / math.sqrt(n) + 2e-3


def test_each_example_has_its_own_probe_and_no_neighbours():
    schedule, data = SCHEDULES["vp"](), Mixture()
    x, k = draw(data, schedule, 0.05), keys(5)
    run = jit(
        lambda x, k: log_likelihood(
            data.denoiser(schedule), schedule, np.linspace(0.05, 1, 21), x, hutchinson(k, "gaussian"), fixed()
        )
    )
    np.testing.assert_allclose(run(x, k)[1:3], run(x[1:3], k[1:3]), rtol=1e-5)


def test_dequantized_8_bit_data():
    """Every level keeps its bin of 1 / 128; the bound on bits is tight for a density constant over each bin."""
    u = jnp.arange(256.0)
    x = jnp.broadcast_to(u / 127.5 - 1, (2000, 256))
    y = np.asarray(dequantize(x, keys(2000)))
    level = (y + 1) * 128
    assert (np.floor(level + 1e-4) >= u - 1e-3).all()
    assert ((level >= u - 1e-4) & (level < u + 1 + 1e-4)).all()
    np.testing.assert_allclose((level - u).mean(0), 0.5, atol=5 / math.sqrt(12 * 2000))
    assert math.log2(128) == OFFSET_8_BIT
    # Uniform density 1/2 on [-1, 1] is 8 bits for each of the 256 values.
    assert bits_per_dim(jnp.log(0.5) * 3, 3) == pytest.approx(8.0, abs=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: hutchinson(keys(1), "uniform"), "'rademacher' or 'gaussian'"),
        (lambda: fixed("euler"), "'heun' or 'rk4'"),
        (lambda: adaptive(rtol=0.0), "takes rtol, atol > 0 and max_steps >= 1; got 0.0"),
        (
            lambda: log_likelihood(None, VP(), np.linspace(1, 0.1, 5), jnp.ones((1, 2)), exact_trace, fixed()),
            "times rise from a time greater than 0",
        ),
        (
            lambda: log_likelihood(None, VP(), np.linspace(0, 1, 5), jnp.ones((1, 2)), exact_trace, fixed()),
            "times rise from a time greater than 0",
        ),
    ],
)
def test_errors_say_what_would_do(make, message):
    with pytest.raises(UserError, match=message):
        make()
