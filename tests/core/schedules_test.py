import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from schedule_cases import SCHEDULE_CASES

from diffusion_jax.core.schedules import DiscreteVP, Learned
from diffusion_jax.core.schedules.base import MAX_LOGSNR

TIMES = np.linspace(0, 1, 1001).astype(np.float32)
NEAR_ENDS = np.array([0, 1e-7, 1e-4, 0.5, 1 - 1e-4, 1 - 1e-7, 1], np.float32)
MIDDLE = np.array([0.2303, 0.5003, 0.7703], np.float32)
ALL_TIMES = np.concatenate([TIMES, NEAR_ENDS, MIDDLE])
GRID, ENDS, INNER = slice(0, 1001), slice(1001, 1008), slice(1008, 1011)
LOGSNRS = np.array([-100, -50, -MAX_LOGSNR, -5, 0, 5, MAX_LOGSNR, 50, 100], np.float32)

every_schedule = pytest.mark.parametrize("schedule", SCHEDULE_CASES.values(), ids=SCHEDULE_CASES)


def level64(schedule, t):
    return tuple(np.asarray(a, np.float64) for a in schedule.level(jnp.asarray(t, jnp.float32)))


def everything(schedule, t, logsnrs):
    """name -> (value, slope): of t at t, and of `time` at the log-SNR of each t and then at logsnrs."""
    along = lambda f, x: jax.jvp(f, (x,), (jnp.ones_like(x),))  # noqa: E731
    of_t = {name: along(getattr(schedule, name), t) for name in ("level", "logsnr", "conditioning")}
    return of_t | {"time": along(schedule.time, jnp.concatenate([of_t["logsnr"][0], logsnrs]))}


@functools.cache
def compiled(schedule):
    """`everything` in float64, one compilation a schedule."""
    values = jax.jit(lambda t, logsnrs: everything(schedule, t, logsnrs))(ALL_TIMES, LOGSNRS)
    return jax.tree.map(lambda a: np.asarray(a, np.float64), values)


def values(schedule, name, at):
    """Values at the times `at`, a slice of ALL_TIMES."""
    return jax.tree.map(lambda a: a[at], compiled(schedule)[name][0])


def slopes(schedule, name, at):
    return jax.tree.map(lambda a: a[at], compiled(schedule)[name][1])


# ---- conformance: what every schedule is held to


@every_schedule
def test_signal_falls_and_noise_rises_from_the_image_itself(schedule):
    alpha, sigma = values(schedule, "level", GRID)
    assert np.isfinite([alpha, sigma]).all()
    assert (np.diff(alpha) <= 1e-7).all()
    assert (np.diff(sigma) >= -1e-7).all()
    if not isinstance(schedule, Learned):
        assert (alpha[0], sigma[0]) == (1, 0)


@every_schedule
def test_variance_preserving_schedules_preserve_variance(schedule):
    alpha, sigma = values(schedule, "level", GRID)
    preserves = np.abs(alpha**2 + sigma**2 - 1).max() < 1e-6
    assert preserves == schedule.variance_preserving


@every_schedule
def test_logsnr_is_that_of_the_level_and_strictly_decreasing(schedule):
    alpha, sigma = values(schedule, "level", GRID)
    logsnr, at_ends = values(schedule, "logsnr", GRID), values(schedule, "logsnr", ENDS)
    inner = (alpha > 2e-6) & (sigma > 2e-6)
    assert inner.sum() >= len(TIMES) - 2
    np.testing.assert_allclose(logsnr[inner], 2 * np.log(alpha[inner] / sigma[inner]), atol=4e-6)
    assert (np.diff(logsnr) < 0).all()
    assert np.isfinite(at_ends).all()
    assert (np.diff(at_ends) <= 0).all()


@every_schedule
def test_time_inverts_logsnr(schedule):
    time = compiled(schedule)["time"][0]
    error = np.abs(time[GRID] - TIMES)
    assert error[1:-1].max() < 2e-6
    assert error.max() < 1e-4  # the clip of the log-SNR hides the ends themselves
    beyond = time[-len(LOGSNRS) :]
    np.testing.assert_allclose(beyond[[0, 1, -2, -1]], [1, 1, 0, 0], atol=1e-4)


@every_schedule
def test_gradients_are_finite_at_both_ends(schedule):
    for name, (_, slope) in compiled(schedule).items():
        assert np.isfinite(slope).all(), name


@every_schedule
def test_logsnr_and_its_inverse_have_the_derivatives_of_finite_differences(schedule):
    slope = slopes(schedule, "logsnr", INNER)
    np.testing.assert_allclose(slopes(schedule, "time", INNER) * slope, 1, rtol=1e-4)
    if schedule.steps is None:  # a table has corners
        i = np.array([230, 500, 770])
        logsnr, gap = values(schedule, "logsnr", GRID), TIMES[i + 1].astype(np.float64) - TIMES[i - 1]
        np.testing.assert_allclose(slope, (logsnr[i + 1] - logsnr[i - 1]) / gap, rtol=0.01)


@every_schedule
def test_jit_changes_nothing(schedule):
    plain = (schedule.level(NEAR_ENDS), schedule.logsnr(NEAR_ENDS), schedule.conditioning(NEAR_ENDS))
    jitted = tuple(values(schedule, name, ENDS) for name in ("level", "logsnr", "conditioning"))
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(jitted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-6 * np.abs(b).max())


@every_schedule
def test_shape_follows_the_argument(schedule):
    for shape in ((), (2, 3)):
        of_t = lambda t: (schedule.level(t), schedule.logsnr(t), schedule.time(t), schedule.conditioning(t))  # noqa: E731
        assert {a.shape for a in jax.tree.leaves(jax.eval_shape(of_t, jnp.zeros(shape)))} == {shape}


@every_schedule
def test_conditioning_is_finite_and_rises_with_the_noise(schedule):
    fed = values(schedule, "conditioning", GRID)
    assert np.isfinite(fed).all()
    assert (np.diff(fed) > 0).all()
    if isinstance(schedule, DiscreteVP):
        index = np.arange(schedule.steps)
        np.testing.assert_allclose(schedule.conditioning(jnp.float32((index + 1) / schedule.steps)), index, atol=2e-4)


@every_schedule
def test_the_prior_is_what_the_noise_ends_as(schedule):
    alpha, sigma = values(schedule, "level", 1000)
    np.testing.assert_allclose(sigma / schedule.prior_std, 1, rtol=4e-3)
    assert alpha / schedule.prior_std < 0.09


@every_schedule
def test_t_min_is_the_first_noise_level(schedule):
    if schedule.steps == 10:
        np.testing.assert_allclose(schedule.t_min, 0.1)
    else:
        assert 0 < schedule.sigma(schedule.t_min) < 0.06
