"""Power-function averages: closed forms against quadrature, and reconstruction against an average that was tracked."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad

from diffusion_jax.errors import UserError
from diffusion_jax.train import ema

GAMMAS = [0.0, 0.5, 6.94, 16.97, 100.0]


def density(tau, gamma, t):
    """p of section 3.1 of arXiv:2312.02696, from its definition."""
    return (gamma + 1) * (tau / t) ** gamma / t if tau <= t else 0.0


@pytest.mark.parametrize("gamma", GAMMAS)
def test_sigma_rel_is_the_standard_deviation_of_the_profile(gamma):
    mean = quad(lambda u: u * density(u, gamma, 1), 0, 1)[0]
    second = quad(lambda u: u * u * density(u, gamma, 1), 0, 1)[0]
    assert ema.sigma_rel(gamma) == pytest.approx(np.sqrt(second - mean**2), rel=1e-9)
    assert ema.gamma_of(float(ema.sigma_rel(gamma))) == pytest.approx(gamma, rel=1e-9, abs=1e-9)


def test_the_lengths_of_the_paper():
    """0.05 and 0.10 are gamma 16.97 and 6.94, as the paper says."""
    assert [round(ema.gamma_of(sigma), 2) for sigma in (0.05, 0.10)] == [16.97, 6.94]


@pytest.mark.parametrize(("a", "s", "b", "t"), [(0, 1, 0, 1), (6.94, 100, 16.97, 100), (16.97, 40, 6.94, 100)])
def test_overlaps_are_the_integrals_of_products(a, s, b, t):
    wanted = quad(lambda tau: density(tau, a, s) * density(tau, b, t), 0, min(s, t), epsabs=0, epsrel=1e-11)[0]
    assert ema.overlap(a, s, b, t) == pytest.approx(wanted, rel=1e-9)
    assert ema.overlap(b, t, a, s) == ema.overlap(a, s, b, t)


def test_overlaps_of_long_runs_do_not_overflow():
    assert np.isfinite(ema.overlap(100.0, 1e7, 100.0, 2e7))


def tracked(gamma, steps, params):
    """The average by its recursion, in float64, after each step [steps, D]."""
    average, after = np.zeros(params.shape[1]), []
    for n in range(steps):
        beta = float(np.float64(1 - 1 / (n + 1)) ** (gamma + 1))
        average = beta * average + (1 - beta) * params[n]
        after.append(average)
    return np.stack(after)


def walk(steps):
    """Parameters that drift and jitter as training's do, [steps, 5]."""
    rng = np.random.default_rng(0)
    return np.cumsum(rng.standard_normal((steps, 5)), axis=0) / np.sqrt(steps) + rng.standard_normal((steps, 5))


def test_the_decay_gives_each_step_the_integral_of_the_profile_over_it():
    """And the state's update is that recursion: float32, here, by the arrays of jax."""
    steps, gamma = 50, 6.94
    params = walk(steps)
    average = {"a": jnp.full(5, 7.0)}  # what it starts with does not count
    for n in range(steps):
        average = ema.update(average, {"a": jnp.asarray(params[n], jnp.float32)}, ema.power_decay(jnp.int32(n), gamma))
    edges = (np.arange(steps + 1) / steps) ** (gamma + 1)
    np.testing.assert_allclose(average["a"], np.diff(edges) @ params, rtol=2e-5, atol=2e-6)
    np.testing.assert_allclose(tracked(gamma, steps, params)[-1], np.diff(edges) @ params, rtol=1e-12)


@pytest.mark.parametrize("sigma", [0.05, 0.075, 0.1, 0.15, 0.2])
def test_a_profile_from_snapshots_is_the_average_that_was_tracked(sigma):
    """To 1e-3 of the parameters' own size, of 32 snapshots of two other profiles."""
    steps, every = 640, 20
    params = walk(steps)
    kept = [ema.gamma_of(length) for length in (0.05, 0.1)]
    ends = np.repeat(np.arange(every, steps + 1, every), 2)
    weights, error = ema.reconstruction(np.tile(kept, steps // every), ends, ema.gamma_of(sigma), steps)
    after = np.stack([tracked(gamma, steps, params) for gamma in kept], axis=1)  # [steps, 2, D]
    found = weights @ after[every - 1 :: every].reshape(-1, 5)
    wanted = tracked(ema.gamma_of(sigma), steps, params)[-1]
    np.testing.assert_allclose(found, wanted, atol=1e-3 * np.abs(params).mean())
    assert error < 1e-2
    assert weights.sum() == pytest.approx(1, abs=1e-10)


def test_what_snapshots_cannot_give_has_a_large_error():
    """A length far below them, and a step between two of them."""
    kept, ends = np.full(8, ema.gamma_of(0.1)), np.arange(80, 641, 80)
    assert ema.reconstruction(kept, ends, ema.gamma_of(0.01), 640)[1] > 0.3
    assert ema.reconstruction(kept, ends, ema.gamma_of(0.1), 600)[1] > 0.1
    assert ema.reconstruction(kept, ends, ema.gamma_of(0.1), 640)[1] < 1e-6


@pytest.mark.parametrize("sigma", [0.0, -0.1, 0.3, float("nan")])
def test_a_length_that_no_profile_has_is_refused(sigma):
    with pytest.raises(UserError, match=r"sigma_rel, is above 0 and at most 0.2887; got"):
        ema.gamma_of(sigma)
