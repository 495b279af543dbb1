import jax
import jax.numpy as jnp
import numpy as np
import pytest
from schedule_cases import SCHEDULE_CASES

from diffusion_jax.core.process import chain, diffuse, log_variances, posterior, transition
from diffusion_jax.core.schedules import Level, cosine, edm, linear, rectified_flow, scaled_linear, zero_snr

every_schedule = pytest.mark.parametrize("schedule", SCHEDULE_CASES.values(), ids=SCHEDULE_CASES)


def level64(schedule, t):
    return tuple(np.asarray(a, np.float64) for a in schedule.level(jnp.asarray(t, jnp.float32)))


def test_diffuse_is_alpha_x0_plus_sigma_eps_for_each_example():
    x0, eps = np.random.default_rng(0).normal(size=(2, 4, 3, 3, 1)).astype(np.float32)
    t = jnp.array([0.0, 0.3, 0.7, 1.0])
    alpha, sigma = level64(cosine(), t)
    x = diffuse(x0, eps, cosine().level(t))
    for b in range(4):
        np.testing.assert_allclose(x[b], alpha[b] * x0[b] + sigma[b] * eps[b], rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(x[0], x0[0])


# ---- the chain


@every_schedule
def test_chain_has_the_closed_forms_joint_law_exactly(schedule):
    """x_n is linear in (x0, eps): unit vectors give its matrix, hence mean and covariance with no sampling at all."""
    n = 8
    times = jnp.linspace(0.0, 1.0, n + 1)
    alpha, sigma = level64(schedule, times)
    # Columns: x0 alone, then each noise alone.
    x0 = jnp.eye(n + 1)[0]
    eps = jnp.eye(n + 1)[1:]
    matrix = np.asarray(chain(x0, eps, schedule, times), np.float64)  # [n, 1 + n]
    np.testing.assert_allclose(matrix[:, 0], (alpha / alpha[0])[1:], rtol=1e-5, atol=1e-7)
    covariance = matrix[:, 1:] @ matrix[:, 1:].T
    # Cov(x_s, x_t | x_0) = alpha_t / alpha_s Var(x_s | x_0) for s <= t; a learned schedule's x_0 has noise already.
    variance = sigma**2 - (alpha / alpha[0] * sigma[0]) ** 2
    index = np.arange(1, n + 1)
    s, t = np.minimum.outer(index, index), np.maximum.outer(index, index)
    ratio = np.where(s == t, 1, alpha[t] / np.where(alpha[s] > 0, alpha[s], 1))
    exact = ratio * variance[s]
    np.testing.assert_allclose(covariance, exact, rtol=2e-4, atol=1e-6 * sigma[-1] ** 2)


def test_the_whole_ddpm_chain_ends_at_alpha_x0_plus_noise_of_variance_sigma2():
    times = jnp.arange(1001) / 1000
    eps = jnp.eye(1000)
    noise = np.asarray(chain(jnp.zeros(1000), eps, linear(), times)[-1], np.float64)
    signal = np.asarray(chain(jnp.ones(1), jnp.zeros((1000, 1)), linear(), times)[-1], np.float64)
    alpha_bar = np.cumprod(1 - linear().betas)[-1]
    np.testing.assert_allclose(signal, np.sqrt(alpha_bar), rtol=1e-5)
    np.testing.assert_allclose(np.sum(noise**2), 1 - alpha_bar, rtol=1e-4)


def test_chain_has_the_closed_forms_moments_by_monte_carlo():
    n, samples = 10, 200_000
    schedule = linear(steps=n, beta_start=0.05, beta_end=0.6)
    times = jnp.arange(n + 1) / n
    x0 = 0.8 * jnp.ones(samples)
    x = np.asarray(chain(x0, jax.random.normal(jax.random.key(0), (n, samples)), schedule, times), np.float64)
    alpha, sigma = level64(schedule, times)
    np.testing.assert_allclose(x.mean(1), 0.8 * alpha[1:], atol=5 / np.sqrt(samples))
    s, t = 3, 8  # x at times[s + 1] and times[t + 1]
    exact = alpha[t + 1] / alpha[s + 1] * sigma[s + 1] ** 2
    np.testing.assert_allclose(x.std(1), sigma[1:], rtol=5 / np.sqrt(2 * samples))
    np.testing.assert_allclose(np.cov(x[s], x[t])[0, 1], exact, atol=6 / np.sqrt(samples))


# ---- transition and posterior


@every_schedule
def test_posterior_is_bayes_rule(schedule):
    """In float64 from the levels: q(x_s | x_0) times q(x_t | x_s), by precisions."""
    rng = np.random.default_rng(0)
    pairs = np.sort(rng.uniform(0.01, 1, size=(30, 2)).astype(np.float32), axis=1)
    pairs = pairs[pairs[:, 1] - pairs[:, 0] > 0.01]
    s, t = schedule.level(pairs[:, 0]), schedule.level(pairs[:, 1])
    (alpha_s, sigma_s), (alpha_t, sigma_t) = (tuple(np.asarray(a, np.float64) for a in level) for level in (s, t))
    ratio = alpha_t / alpha_s
    beta = sigma_t**2 - ratio**2 * sigma_s**2
    precision = 1 / sigma_s**2 + ratio**2 / beta
    a, b, variance = posterior(s, t)
    # beta is a difference of levels that are rounded to float32, which its reciprocal shows.
    rtol = 3e-6 * (1 + np.max(sigma_t**2 / beta))
    np.testing.assert_allclose(a, ratio / beta / precision, rtol=rtol)
    np.testing.assert_allclose(b, alpha_s / sigma_s**2 / precision, rtol=rtol)
    np.testing.assert_allclose(variance, 1 / precision, rtol=rtol)
    np.testing.assert_allclose(transition(s, t)[0], ratio, rtol=1e-6)
    np.testing.assert_allclose(transition(s, t)[1], beta, rtol=rtol)


@pytest.mark.parametrize("schedule", [linear(), scaled_linear(), cosine()])
def test_posterior_of_neighbours_is_ddpms(schedule):
    """beta tilde and the two coefficients of equation 7 of DDPM, from its betas in float64."""
    beta, i = schedule.betas, np.array([1, 2, 10, 100, 500, 998, 999])
    alpha_bar = np.cumprod(1 - beta)
    before, now, b = alpha_bar[i - 1], alpha_bar[i], beta[i]
    s, t = schedule.level(jnp.float32(i / 1000)), schedule.level(jnp.float32((i + 1) / 1000))
    of_x, of_x0, variance = posterior(s, t)
    np.testing.assert_allclose(of_x, np.sqrt(1 - b) * (1 - before) / (1 - now), rtol=2e-4)
    np.testing.assert_allclose(of_x0, np.sqrt(before) * b / (1 - now), rtol=2e-4)
    np.testing.assert_allclose(variance, (1 - before) / (1 - now) * b, rtol=2e-4)
    np.testing.assert_allclose(transition(s, t)[1], b, rtol=2e-4)


@pytest.mark.parametrize("schedule", [linear(), cosine(), edm(), rectified_flow(), zero_snr()(linear())])
def test_posterior_to_the_data_is_the_data(schedule):
    of_x, of_x0, variance = posterior(schedule.level(0.0), schedule.level(jnp.array([1e-3, 0.5, 1.0])))
    np.testing.assert_array_equal(of_x, 0)
    np.testing.assert_allclose(of_x0, 1, rtol=1e-6)
    np.testing.assert_array_equal(variance, 0)


@every_schedule
def test_posterior_is_finite_on_neighbouring_times_and_keeps_the_marginal(schedule):
    """Over x_t ~ q(x_t | x_0) it is q(x_s | x_0): a alpha_t + b = alpha_s and a^2 sigma_t^2 + variance = sigma_s^2."""
    times = jnp.linspace(1.0, 0.0, 101)
    t, s = Level(*(a[:-1] for a in schedule.level(times))), Level(*(a[1:] for a in schedule.level(times)))
    a, b, variance = (np.asarray(c, np.float64) for c in posterior(s, t))
    assert np.isfinite([a, b, variance]).all()
    np.testing.assert_allclose(a * t.alpha + b, s.alpha, atol=3e-6)
    np.testing.assert_allclose(a**2 * t.sigma**2 + variance, s.sigma**2, rtol=2e-5, atol=1e-9)


def test_log_variances_are_improved_ddpms():
    """The clipped beta tilde and the beta of its code, in float64."""
    for schedule in (linear(), cosine(steps=50)):
        n = schedule.steps
        small, large = log_variances(schedule.level(jnp.linspace(1.0, 0.0, n + 1)))
        beta = schedule.betas
        before = np.append(1.0, np.cumprod(1 - beta)[:-1])
        tilde = beta * (1 - before) / (1 - np.cumprod(1 - beta))
        clipped = np.append(tilde[1], tilde[1:])
        np.testing.assert_allclose(small[::-1], np.log(clipped), atol=3e-4)
        np.testing.assert_allclose(large[::-1], np.log(beta), atol=3e-4)


def test_log_variances_of_a_single_step_are_finite():
    small, large = log_variances(cosine(steps=1).level(jnp.array([1.0, 0.0])))
    assert np.isfinite([small, large]).all()
