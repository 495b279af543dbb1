"""Every sampler lands near the exact answer on every schedule and grid, at few steps too, or says what does."""

import jax.numpy as jnp
import numpy as np
import pytest
from samplers_exact import jit, keys
from samplers_program import PROBLEMS, SCHEDULE_CASES, draw, errors

from diffusion_jax.core.grids import karras, leading, linspace, logsnr, quadratic, trailing, uniform
from diffusion_jax.core.predictions import Prediction
from diffusion_jax.core.samplers import SAMPLERS, heun, integrate, plms
from diffusion_jax.core.samplers.trapezoid import trapezoidal_weight
from diffusion_jax.core.schedules import SCHEDULES, Level, cosine, edm, zero_snr

EVERY = pytest.mark.parametrize("name", sorted(SAMPLERS))
SLOW = pytest.mark.slow

# N times the error of the mean, the deviation and the weights after N steps is at most this. The last step, to the
# data, is of first order in any sampler; what adds noise at every step pays more, and of these the Langevin correctors,
# and a parabola laid through steps of growing length, pay most.
CONSTANTS = dict.fromkeys(SAMPLERS, 4.0) | {
    "plms": 7.0,
    "ddpm": 6.0,
    "euler_ancestral": 6.0,
    "predictor_corrector": 11.0,
    "dpmpp_3m_sde": 12.5,
}
# The corrector's predictor adds the noise of a whole step: of one step from sigma 80, that is the result.
FEW_STEPS = CONSTANTS | {"predictor_corrector": np.inf}
SAMPLING_ERROR = 0.02  # of 4,096 numbers

# They end with alpha / sigma 1 / 20,291, with 0, with 1 / 80; the last has a sigma that is steep at the data.
AT_RISK = ("cosine", "rectified_flow", "edm", "sub_vp")


def misses(name, problem, schedules, steps, grid):
    """What lies outside the bound, for the assertion's message."""
    found = []
    for schedule in schedules:
        for n in steps:
            x = draw(name, PROBLEMS[problem], SCHEDULE_CASES[schedule], grid(SCHEDULE_CASES[schedule], n))
            error = errors(x, PROBLEMS[problem])
            if not (error <= CONSTANTS[name] / n + SAMPLING_ERROR).all():
                found.append(f"{schedule}, {n} steps: {error.round(3)}")
    return found


@pytest.mark.parametrize("name", sorted(set(SAMPLERS) - {"ode"}))
def test_few_steps_land_near_the_data(name):
    assert not misses(name, "mixture", AT_RISK, (5, 20), trailing())


@EVERY
@pytest.mark.parametrize("problem", PROBLEMS)
@SLOW
def test_every_schedule_at_every_number_of_steps(name, problem):
    """Of the optimal denoiser of two kinds of data, and of a network that is wrong and clipped."""
    assert not misses(name, problem, SCHEDULE_CASES, (20,) if name == "ode" else (5, 10, 20, 50), trailing())


@pytest.mark.parametrize("name", ["heun", "plms", "dpmpp_2s", "ode"])
def test_a_wrong_network_is_not_magnified_where_there_is_no_signal(name):
    """20 steps of a cosine chain, whose first falls from sigma / alpha = 20,291 to 13."""
    assert not misses(name, "network", ["cosine"], (20,), trailing())


CHAIN = cosine(20)
GRIDS = {
    "uniform": uniform(),
    "trailing": trailing(),
    "trailing to t_min": trailing(last="t_min"),
    "leading": leading(),
    "leading from the second": leading(skip_first=True),
    "leading to t_min": leading(offset=1, last="t_min"),
    "linspace": linspace(),
    "linspace to t_min": linspace(skip_first=True, last="t_min"),
    "quadratic": quadratic(),
    "karras": karras(sigma_max=80.0),
    "logsnr": logsnr(sigma_max=80.0),
}


MOST_STEPS = dict.fromkeys(GRIDS, 20) | {
    "trailing to t_min": 13,
    "leading from the second": 19,
    "leading to t_min": 19,
    "linspace to t_min": 19,
}


def check_grids(name, schedule, cases):
    for grid, steps in cases.items():
        for n in steps:
            times = GRIDS[grid](schedule, n)
            x = draw(name, PROBLEMS["gaussian"], schedule, times)
            assert np.isfinite(x).all(), (grid, n)
            data, (alpha, sigma) = PROBLEMS["gaussian"].exact, schedule.level(jnp.float32(times[-1]))
            mean, std = alpha * data.mean, np.sqrt(alpha**2 * data.variance + sigma**2)
            bound = (FEW_STEPS if n < 5 else CONSTANTS)[name] / n + SAMPLING_ERROR
            assert abs(x.mean() - mean) <= bound, (grid, n)
            assert abs(x.std() / std - 1) <= bound, (grid, n)


@pytest.mark.parametrize("name", sorted(set(SAMPLERS) - {"ode"}))
def test_grids_of_two_and_all_steps(name):
    check_grids(name, CHAIN, {"karras": (2, 20), "leading": (2, 20), "linspace to t_min": (2,)})


@EVERY
@pytest.mark.parametrize("schedule", ["cosine", "cosine | zero_snr", "edm"])
@SLOW
def test_every_grid_at_one_two_three_and_all_steps(name, schedule):
    schedule = {"cosine": CHAIN, "cosine | zero_snr": zero_snr()(CHAIN), "edm": edm()}[schedule]
    grids = [grid for grid in GRIDS if schedule.steps or "leading" not in grid]
    check_grids(name, schedule, {grid: (1, 2, 3, MOST_STEPS[grid]) for grid in grids})


# ---- the trapezoidal rule that Heun's method and PLMS take from where there is next to no signal


def test_the_weight_is_edms_for_edms_steps_and_bounded_elsewhere():
    times = jnp.asarray(karras()(edm(), 18), jnp.float32)
    sigma = np.asarray(edm().sigma(times), np.float64)
    levels = edm().level(times)
    t, s = (Level(*(a[part] for a in levels)) for part in (slice(None, -1), slice(1, None)))
    np.testing.assert_allclose(trapezoidal_weight(t, s, above=1.0), 0.5 * np.diff(sigma), rtol=1e-5)
    for schedule in (make() for make in SCHEDULES.values()):
        for n in (5, 20):
            levels = schedule.level(jnp.linspace(1.0, 0.0, n + 1))
            t, s = (Level(*(a[part] for a in levels)) for part in (slice(None, -1), slice(1, None)))
            assert (jnp.abs(trapezoidal_weight(t, s, above=1.0)) <= 5.0 * jnp.maximum(s.sigma, s.alpha)).all()


@pytest.mark.parametrize("start", [0.0, 1e-5, 1e-3])
def test_the_first_step_is_exact_where_x0_is_linear_in_the_signal(start):
    """x0 = c alpha / sigma, as all data's is to first order; x / sigma then moves by c / 2 times (alpha / sigma)^2."""
    schedule, c = SCHEDULES["rectified_flow"](), 0.3
    x = jnp.linspace(-1.0, 1.0, 5)[None]

    def denoise(x, t):
        alpha, sigma = schedule.level(t).like(x)
        x0 = jnp.broadcast_to(c * alpha / sigma, x.shape)
        return Prediction(x0, (x - alpha * x0) / sigma)

    times = np.array([1.0 - start, 0.96])
    levels = np.stack([1 - times, times])
    u = levels[0] / levels[1]
    exact = times[1] * (np.asarray(x) / times[0] + c * (u[1] ** 2 - u[0] ** 2) / 2)
    for sampler in (heun(), plms()):
        out = jit(lambda x, s=sampler: integrate(denoise, s, schedule, times, x, keys(1)))(x)
        np.testing.assert_allclose(out, exact, atol=2e-6)
