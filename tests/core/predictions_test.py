import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from schedule_cases import SCHEDULE_CASES

from diffusion_jax.core.predictions import PREDICTIONS, Prediction, flow, split_variance, v, x0
from diffusion_jax.core.predictions import edm as edm_prediction
from diffusion_jax.core.predictions import eps as eps_prediction
from diffusion_jax.core.process import diffuse
from diffusion_jax.core.schedules import Level, edm, linear, rectified_flow, scaled_linear, zero_snr
from diffusion_jax.errors import UserError

TIMES = np.array([0, 1e-5, 1e-3, 0.02, 0.2, 0.5, 0.8, 0.98, 0.999, 1], np.float32)
X0, EPS = np.random.default_rng(0).normal(size=(2, len(TIMES), 3, 2)).astype(np.float32)
X0 *= 0.5

every_schedule = pytest.mark.parametrize("schedule", SCHEDULE_CASES.values(), ids=SCHEDULE_CASES)
every_prediction = pytest.mark.parametrize("name", PREDICTIONS)


@functools.cache
def round_trip(name):
    """(x0, eps, level) -> (Prediction of the exactly right output, that output); one compilation a prediction."""
    p = PREDICTIONS[name]()

    def through(x0, eps, level):
        out = p.target(x0, eps, level)
        return p.to_prediction(out, diffuse(x0, eps, level), level), out

    return jax.jit(through)


def amplification(level, by):
    """How much larger than x_t's own an error of x0 (by alpha) or eps (by sigma) becomes in a division by it."""
    alpha, sigma = (np.asarray(a, np.float64)[:, None, None] for a in level)
    return (1 + alpha + sigma) / np.maximum({"alpha": alpha, "sigma": sigma}[by], 1e-30)


@every_schedule
@every_prediction
def test_round_trip_through_the_hub(schedule, name):
    level = schedule.level(TIMES)
    (x0, eps, _), out = round_trip(name)(X0, EPS, level)
    assert np.isfinite([x0, eps]).all()
    assert np.isfinite(out).all()
    # v, edm and flow divide by neither level and return both exactly at every t; the others where their division does.
    divides_by_alpha, divides_by_sigma = name in ("eps", "score"), name == "x0"
    tolerance_x0 = 1e-6 * (amplification(level, "alpha") if divides_by_alpha else 4 * np.ones_like(X0))
    tolerance_eps = 1e-6 * (amplification(level, "sigma") if divides_by_sigma else 4 * np.ones_like(EPS))
    if name == "score":  # the target divides where the conversion multiplies
        tolerance_eps = tolerance_eps + (level.sigma < 1e-6)[:, None, None] * 10
        tolerance_x0 = tolerance_x0 + (level.sigma < 1e-6)[:, None, None] * 1e-5
    has_x0 = (level.alpha > 0) if divides_by_alpha else np.ones(len(TIMES), bool)
    has_eps = (level.sigma > 0) if divides_by_sigma else np.ones(len(TIMES), bool)
    assert (np.abs(x0 - X0) <= tolerance_x0 * 3)[has_x0].all()
    assert (np.abs(eps - EPS) <= tolerance_eps * 3)[has_eps].all()
    # The documented limits: what x_t says nothing about is 0.
    np.testing.assert_array_equal(x0[~has_x0], 0)
    np.testing.assert_array_equal(eps[~has_eps], 0)


@every_prediction
def test_gradients_are_finite_where_a_conversion_does_not_exist(name):
    p = PREDICTIONS[name]()
    x = jnp.full((1, 2), 0.3)
    through = jax.grad(lambda out, x, level: sum(jnp.sum(a) for a in p.to_prediction(out, x, level)[:2]), (0, 1, 2))
    target = jax.grad(lambda x0, eps, level: jnp.sum(p.target(x0, eps, level)), (0, 1, 2))
    for level in (Level(jnp.ones(1), jnp.zeros(1)), Level(jnp.zeros(1), jnp.ones(1))):
        grads = through(x + 0.5, x, level), target(x, x + 0.5, level)
        assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


@every_schedule
@every_prediction
def test_log_gain_is_the_outputs_sensitivity_to_x0(schedule, name):
    level = schedule.level(TIMES[2:-2])
    # With x_t fixed, x0 + 1 means eps - alpha / sigma; the output is linear in both.
    ones = np.ones((len(level.alpha), 1), np.float32)
    p = PREDICTIONS[name]()
    slope = p.target(ones, -(level.alpha / level.sigma)[:, None] * ones, level)[:, 0]
    np.testing.assert_allclose(p.log_gain(level), np.log(np.abs(slope)), atol=1e-4)
    assert np.isfinite(p.log_gain(schedule.level(TIMES))).all()


# ---- each prediction against its paper


def test_score_is_the_gradient_of_the_log_density():
    alpha, sigma = 0.8, 0.6
    x0, eps = jnp.array([[0.3]]), jnp.array([[-1.2]])
    log_density = lambda x: jnp.sum(-0.5 * ((x - alpha * x0) / sigma) ** 2)  # noqa: E731
    level = Level(jnp.float32(alpha), jnp.float32(sigma))
    exact = jax.grad(log_density)(diffuse(x0, eps, level))
    np.testing.assert_allclose(PREDICTIONS["score"]().target(x0, eps, level), exact, rtol=1e-6)


@pytest.mark.parametrize("t", [0.01, 0.5, 1.0])
def test_edm_is_table_1(t):
    sigma, data = float(edm().sigma(t)), 0.5
    n = np.sqrt(sigma**2 + data**2)
    c_skip, c_out, c_in = data**2 / n**2, sigma * data / n, 1 / n
    p, level = edm_prediction(data), edm().level(jnp.full(len(X0), t))
    x = X0.astype(np.float64) + sigma * EPS
    np.testing.assert_allclose(p.network_input(jnp.float32(x), level), c_in * x, rtol=2e-6, atol=1e-6)
    np.testing.assert_allclose(p.target(X0, EPS, level), (X0 - c_skip * x) / c_out, rtol=1e-4, atol=1e-4 * sigma + 2e-4)
    f = EPS[::-1]
    np.testing.assert_allclose(
        p.to_prediction(f, jnp.float32(x), level).x0, c_skip * x + c_out * f, rtol=2e-5, atol=2e-6
    )


def test_edm_on_a_variance_preserving_schedule_is_minus_v():
    level = linear().level(TIMES)
    np.testing.assert_allclose(edm_prediction(1.0).target(X0, EPS, level), -v().target(X0, EPS, level), atol=1e-6)


def test_flow_is_the_velocity_of_rectified_flow():
    schedule = rectified_flow()
    path = lambda t: diffuse(X0, EPS, schedule.level(t))  # noqa: E731
    velocity = jax.jvp(path, (jnp.float32(0.3),), (jnp.float32(1.0),))[1]
    np.testing.assert_allclose(flow().target(X0, EPS, schedule.level(0.3)), velocity, atol=1e-6)


@pytest.mark.parametrize("schedule", [linear(), edm(), rectified_flow(), zero_snr()(scaled_linear())])
@pytest.mark.parametrize("name", PREDICTIONS)
def test_input_has_unit_variance_where_the_data_has_the_given_one(schedule, name):
    data = 0.5
    level = schedule.level(TIMES)
    p = PREDICTIONS[name](sigma_data=data)
    alpha, sigma = (np.asarray(a, np.float64) for a in level)
    scale = p.network_input(jnp.ones((len(TIMES), 1)), level)[:, 0]
    np.testing.assert_allclose(scale**2 * ((alpha * data) ** 2 + sigma**2), 1, rtol=1e-5)


def test_input_is_left_alone_by_default():
    x = jnp.asarray(X0)
    assert PREDICTIONS["eps"]().network_input(x, linear().level(TIMES)) is x


@every_prediction
def test_learned_variance_rides_along(name):
    level = linear().level(TIMES)
    plain, learned = PREDICTIONS[name](), PREDICTIONS[name](learned_variance=True)
    assert learned.learned_variance
    assert not plain.learned_variance
    out = np.concatenate([EPS, X0], axis=-1)  # [..., 2 C]
    x = diffuse(X0, EPS, level)
    got, mean = learned.to_prediction(out, x, level), plain.to_prediction(EPS, x, level)
    np.testing.assert_array_equal(got.x0, mean.x0)
    np.testing.assert_array_equal(got.eps, mean.eps)
    np.testing.assert_allclose(got.fraction, (X0 + 1) / 2, atol=1e-7)
    assert mean.fraction is None
    np.testing.assert_array_equal(split_variance(out)[0], EPS)
    np.testing.assert_array_equal(learned.target(X0, EPS, level), plain.target(X0, EPS, level))


def test_a_prediction_without_variance_is_a_pair_of_leaves():
    assert len(jax.tree.leaves(Prediction(X0, EPS))) == 2


@pytest.mark.parametrize(
    "make", [lambda: edm_prediction(0.0), lambda: eps_prediction(-1.0), lambda: x0(sigma_data=-0.5)]
)
def test_a_prediction_that_cannot_be_is_one_clear_sentence(make):
    with pytest.raises(UserError, match="sigma_data"):
        make()


# ---- diffusers


@pytest.mark.parity
def test_v_is_that_of_diffusers():
    import diffusers
    import torch

    theirs = diffusers.DDPMScheduler(beta_schedule="linear")
    index = torch.tensor([0, 3, 40, 100, 300, 500, 700, 900, 990, 999])
    level = linear().level(jnp.float32((index.numpy() + 1) / 1000))
    x0, eps = torch.tensor(X0), torch.tensor(EPS)
    np.testing.assert_allclose(v().target(X0, EPS, level), theirs.get_velocity(x0, eps, index), atol=2e-5)
    np.testing.assert_allclose(diffuse(X0, EPS, level), theirs.add_noise(x0, eps, index), atol=2e-5)


@pytest.mark.parity
def test_edm_is_that_of_diffusers():
    import diffusers
    import torch

    theirs = diffusers.EDMEulerScheduler(sigma_data=0.5)
    for t in (0.1, 0.5, 0.9):
        level = edm().level(jnp.full(len(X0), t))
        sigma, x = torch.tensor(float(level.sigma[0])), diffuse(X0, EPS, level)
        xt, f = torch.tensor(np.asarray(x)), torch.tensor(EPS)
        p = edm_prediction(0.5)
        np.testing.assert_allclose(p.network_input(x, level), theirs.precondition_inputs(xt, sigma), rtol=1e-5)
        ours = p.to_prediction(EPS, x, level).x0
        np.testing.assert_allclose(ours, theirs.precondition_outputs(xt, f, sigma), rtol=1e-4, atol=1e-5)
