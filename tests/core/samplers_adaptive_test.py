"""The adaptive probability-flow ODE: accuracy follows the tolerance, every example its own steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from samplers_exact import CONTINUOUS, VP, Gaussian, Mixture, jit, solve
from samplers_order_test import integrated_flow

from diffusion_jax.core.grids import karras, leading, uniform
from diffusion_jax.core.samplers import ode
from diffusion_jax.core.samplers.adaptive import dormand_prince
from diffusion_jax.core.schedules import SCHEDULES


@pytest.mark.parametrize("schedule", CONTINUOUS)
def test_error_follows_the_tolerance(schedule):
    """On a mixture, against scipy at 1e-10, from t = 1 (no signal on `flow`) to t = 0.05."""
    schedule, data = CONTINUOUS[schedule], Mixture()
    with jax.enable_x64(True):
        x = schedule.prior_std * jnp.linspace(-2.0, 2.0, 9)
        exact = integrated_flow(data, schedule, 1.0, 0.05, x)
        for tolerance in (1e-3, 1e-5, 1e-8):
            out = solve(data.denoiser(schedule), ode(tolerance, tolerance), schedule, np.array([1.0, 0.05]), x)
            errors = np.abs(out - exact)
            assert np.median(errors) < 3 * tolerance
            assert errors.max() < 50 * tolerance  # between the components the flow magnifies what a step got wrong


@pytest.mark.parametrize("schedule", ["linear", "rectified_flow", "edm"])
def test_reaches_the_data_in_float32(schedule):
    """The last step, from t_min, is Euler's: wrong by about sigma(t_min)^2 / (2 std^2) of x."""
    schedule, data = SCHEDULES[schedule](), Gaussian()
    x = schedule.prior_std * jnp.linspace(-2.0, 2.0, 9)[:, None]
    exact = data.denoiser(schedule)

    def denoise(x, t):  # must not be asked about times that no network has seen
        return jax.tree.map(lambda a: jnp.where(t[:, None] < 0.99 * schedule.t_min, jnp.nan, a), exact(x, t))

    out = solve(denoise, ode(), schedule, np.array([1.0, 0.0]), x)
    error = float(schedule.sigma(schedule.t_min)) ** 2 / (2 * data.std**2)
    np.testing.assert_allclose(out, data.flow(schedule, 1.0, 0.0, x), atol=4e-4 + 2 * error)


def test_the_grid_only_says_where_it_lands():
    x, data = jnp.linspace(-2.0, 2.0, 5)[:, None], Mixture()
    few, many = (solve(data.denoiser(VP()), ode(), VP(), np.linspace(1, 0, n + 1), x, trajectory=True) for n in (2, 8))
    np.testing.assert_allclose(few, many[::4], atol=2e-4)


@pytest.mark.parametrize(
    ("schedule", "grid", "steps"),
    [("cosine", karras(), 2), ("linear", leading(), 3), ("linear", leading(), 1), ("vp", uniform(), 1250)],
    ids=["karras", "leading", "leading 1", "uniform"],
)
def test_a_grid_whose_last_step_starts_at_t_min_or_below(schedule, grid, steps):
    """Nothing is left to solve of its last interval, and the step to the data is Euler's."""
    schedule, data = SCHEDULES[schedule](), Gaussian()
    times = grid(schedule, steps)
    times = times[[0, -2, -1]] if steps > 3 else times
    assert times[-2] <= schedule.t_min * (1 + 1e-3)
    x = jnp.linspace(-2.0, 2.0, 9)[:, None]
    out = solve(data.denoiser(schedule), ode(), schedule, times, x)
    np.testing.assert_allclose(out, data.flow(schedule, times[0], 0.0, x), atol=1e-3)


def test_an_interval_of_no_length_gives_the_slope_there():
    field = lambda u, y: jnp.cos(u)[:, None] * y  # noqa: E731
    y, at = jnp.array([[2.0], [3.0]]), jnp.float32(0.5)
    out, slope = dormand_prince(field, y, at, at, rtol=1e-5, atol=1e-5, max_steps=50)
    np.testing.assert_array_equal(out, y)
    np.testing.assert_allclose(slope, np.cos(0.5) * y, rtol=1e-6)


def test_neighbours_do_not_matter():
    """A batch with an example that needs many more steps: the others come out the same, bit for bit."""

    def denoise(x, t):
        hard = Mixture(std=0.02).denoiser(VP())(x, t)
        easy = Gaussian().denoiser(VP())(x, t)
        return jax.tree.map(lambda a, b: jnp.where(jnp.abs(x) > 5, a, b), hard, easy)

    x = jnp.array([[0.3], [-1.2], [0.9]])
    alone = solve(denoise, ode(), VP(), np.array([1.0, 0.0]), x)
    crowd = solve(denoise, ode(), VP(), np.array([1.0, 0.0]), x.at[1].set(6.0))
    np.testing.assert_array_equal(alone[[0, 2]], crowd[[0, 2]])


def test_too_few_steps_are_nan_and_only_where_they_did_not_suffice():
    still = lambda u, y: 0.0 * y  # noqa: E731
    fast = lambda u, y: jnp.stack([0.0 * y[0], jnp.cos(200.0 * u[1]) * jnp.ones_like(y[1])])  # noqa: E731
    y = jnp.ones((2, 3))
    solver = dict(rtol=1e-6, atol=1e-6, max_steps=8)
    assert np.isfinite(dormand_prince(still, y, jnp.float32(0), jnp.float32(1), **solver)[0]).all()
    out = dormand_prince(fast, y, jnp.float32(0), jnp.float32(1), **solver)[0]
    assert np.isfinite(out[0]).all()
    assert np.isnan(out[1]).all()


def test_a_field_that_is_nan_ends():
    out, _ = dormand_prince(
        lambda u, y: y * jnp.nan, jnp.ones((1, 2)), jnp.float32(0), jnp.float32(1), rtol=1e-3, atol=1e-3, max_steps=20
    )
    assert np.isnan(out).all()


@pytest.mark.parametrize(("start", "stop"), [(0.0, 3.0), (3.0, 0.0)])
def test_dormand_prince_both_ways(start, stop):
    """y' = -y and a rotation, as a pytree; the returned slope is the field at the end."""
    field = lambda u, y: {"decay": -y["decay"], "turn": y["turn"] @ jnp.array([[0.0, -2.0], [2.0, 0.0]])}  # noqa: E731
    with jax.enable_x64(True):
        y = {"decay": jnp.array([[1.0], [2.0]]), "turn": jnp.eye(2)}
        ends = jnp.float64(start), jnp.float64(stop)
        out, slope = jit(lambda y: dormand_prince(field, y, *ends, rtol=1e-9, atol=1e-9, max_steps=500))(y)
        length = stop - start
        np.testing.assert_allclose(out["decay"], y["decay"] * np.exp(-length), rtol=1e-7)
        cos, sin = np.cos(2 * length), np.sin(2 * length)
        np.testing.assert_allclose(out["turn"], np.array([[cos, -sin], [sin, cos]]), atol=1e-7)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), slope, field(None, out))


def test_dormand_prince_is_of_fifth_order():
    """y' = cos(u) y in three steps of 1, 10 and 89 hundredths: the error of the last falls as the sixth power."""
    options = {"rtol": 1e9, "atol": 1e9, "max_steps": 3}
    with jax.enable_x64(True):
        errors = []
        for h in (0.4, 0.2):
            field = lambda u, y: jnp.cos(u)[:, None] * y  # noqa: E731
            out, _ = dormand_prince(field, jnp.ones((1, 1)), jnp.float64(0), jnp.float64(h), **options)
            errors.append(abs(float(out[0, 0]) - np.exp(np.sin(h))))
    assert 5.5 < np.log2(errors[0] / errors[1]) < 7
