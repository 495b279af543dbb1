import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.core.losses import DISTANCES, denoising_loss, huber, l1, simple_loss, vlb_loss
from diffusion_jax.core.predictions import PREDICTIONS, eps, flow
from diffusion_jax.core.process import diffuse
from diffusion_jax.core.schedules import cosine, linear, rectified_flow
from diffusion_jax.core.schedules import edm as edm_schedule
from diffusion_jax.errors import UserError

B = 6
X0, EPS = np.random.default_rng(0).normal(size=(2, B, 4, 4, 3)).astype(np.float32)
T = np.array([0.002, 0.1, 0.35, 0.6, 0.9, 0.999], np.float32)
SCALE = np.random.default_rng(1).normal(size=3).astype(np.float32)
SCHEDULES = {"linear": linear(), "edm": edm_schedule(), "rectified_flow": rectified_flow(), "cosine": cosine()}

every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
every_prediction = pytest.mark.parametrize("name", PREDICTIONS)


def network(x, c, cond):
    """Anything that depends on all that it is given, and well within what float32 resolves."""
    return SCALE * jnp.tanh(x) + 0.001 * c[:, None, None, None] + cond["bias"]


COND = {"bias": np.float32(0.1)}


def level64(schedule, t):
    return tuple(np.asarray(a, np.float64)[:, None, None, None] for a in schedule.level(t))


# ---- L_simple


@every_schedule
@every_prediction
def test_simple_loss_is_the_mean_squared_error_of_the_output(schedule, name):
    p = PREDICTIONS[name](sigma_data=0.5)
    got = simple_loss(network, schedule, p, X0, COND, T, EPS)
    alpha, sigma = level64(schedule, T)
    x = alpha * X0 + sigma * EPS
    c_in = 1 / np.sqrt(sigma**2 + (0.5 * alpha) ** 2)
    target = {
        "eps": EPS,
        "x0": X0,
        "v": alpha * EPS - sigma * X0,
        "score": -EPS / sigma,
        "edm": (X0 - 0.25 * alpha * c_in**2 * x) / (0.5 * sigma * c_in),
        "flow": EPS - X0,
    }[name]
    conditioning = np.asarray(schedule.conditioning(T), np.float64)[:, None, None, None]
    out = SCALE * np.tanh(c_in * x) + 0.001 * conditioning + 0.1
    np.testing.assert_allclose(got, np.mean((out - target) ** 2, axis=(1, 2, 3)), rtol=2e-4)
    assert got.dtype == jnp.float32
    assert got.shape == (B,)


@every_prediction
def test_loss_of_the_exact_network_is_zero(name):
    p = PREDICTIONS[name]()
    exact = lambda x, c, cond: p.target(X0, EPS, cosine().level(T))  # noqa: E731
    np.testing.assert_array_equal(simple_loss(exact, cosine(), p, X0, COND, T, EPS), 0)


def test_the_mean_over_pixels_is_in_float32_whatever_the_network_computes_in():
    half = lambda x, c, cond: jnp.zeros_like(x, jnp.bfloat16)  # noqa: E731
    got = simple_loss(half, linear(), eps(), X0, COND, T, EPS)
    np.testing.assert_allclose(got, np.mean(EPS.astype(np.float64) ** 2, axis=(1, 2, 3)), rtol=1e-6)


def test_flow_matching_is_the_error_of_the_velocity():
    got = denoising_loss(network, rectified_flow(), flow(), X0, COND, T, EPS)
    t = T.astype(np.float64)[:, None, None, None]
    out = SCALE * np.tanh((1 - t) * X0 + t * EPS) + 0.001 * 1000 * t + 0.1
    np.testing.assert_allclose(got, np.mean((out - (EPS - X0)) ** 2, axis=(1, 2, 3)), rtol=1e-5)


# ---- distances


@pytest.mark.parametrize("name", DISTANCES)
def test_distances_are_nonnegative_even_and_zero_at_zero(name):
    error = jnp.linspace(-3.0, 3.0, 101)
    size = DISTANCES[name]()(error)
    assert (size >= 0).all()
    np.testing.assert_allclose(size, DISTANCES[name]()(-error))
    assert DISTANCES[name]()(jnp.zeros(())) == 0
    assert np.isfinite(jax.vmap(jax.grad(DISTANCES[name]()))(error)).all()


def test_distances_against_numpy():
    got = denoising_loss(network, cosine(), eps(), X0, COND, T, EPS, distance=l1())
    alpha, sigma = level64(cosine(), T)
    conditioning = np.asarray(cosine().conditioning(T))[:, None, None, None]
    error = SCALE * np.tanh(alpha * X0 + sigma * EPS) + 0.001 * conditioning + 0.1 - EPS
    np.testing.assert_allclose(got, np.mean(np.abs(error), axis=(1, 2, 3)), rtol=1e-5)
    got = denoising_loss(network, cosine(), eps(), X0, COND, T, EPS, distance=huber(0.7))
    huber64 = np.where(np.abs(error) < 0.7, error**2, 2 * 0.7 * np.abs(error) - 0.7**2)
    np.testing.assert_allclose(got, np.mean(huber64, axis=(1, 2, 3)), rtol=1e-5)


# ---- learned variance


def hybrid(scale, bias, weight):
    """L_hybrid of a network with 6 output channels, `scale` of its mean and `bias` of its variance."""

    def apply(x, c, cond):
        return jnp.concatenate([scale * network(x, c, cond), jnp.broadcast_to(bias, x.shape)], axis=-1)

    p = eps(learned_variance=True)
    return denoising_loss(apply, linear(), p, X0, COND, steps(linear()), EPS, vlb_weight=weight)


def steps(schedule):
    return jnp.array([1, 2, 100, 500, 900, schedule.steps]) / schedule.steps


def test_hybrid_loss_is_simple_loss_plus_the_weighted_bound():
    plain = simple_loss(network, linear(), eps(), X0, COND, steps(linear()), EPS)
    np.testing.assert_allclose(hybrid(1.0, 0.2, 0.0), plain, rtol=1e-6)

    def apply(x, c, cond):
        return jnp.concatenate([network(x, c, cond), jnp.full_like(x, 0.2)], axis=-1)

    bound = vlb_loss(apply, linear(), eps(learned_variance=True), X0, COND, steps(linear()), EPS, variance="learned")
    np.testing.assert_allclose(hybrid(1.0, 0.2, 0.01), plain + 0.01 * bound, rtol=1e-5)


def test_the_bounds_gradient_reaches_the_variance_alone():
    total = lambda weight: lambda scale, bias: jnp.sum(hybrid(scale, bias, weight))  # noqa: E731
    simple, both = (jax.jit(jax.grad(total(weight), (0, 1)))(1.0, 0.2) for weight in (0.0, 1.0))
    np.testing.assert_allclose(both[0], simple[0], rtol=1e-6)
    assert simple[1] == 0
    assert abs(both[1]) > 1e-3


def test_hybrid_loss_has_finite_gradients_for_a_hopeless_network():
    grads = jax.jit(jax.grad(lambda scale, bias: jnp.sum(hybrid(scale, bias, 1.0)), (0, 1)))(1e6, 1.0)
    assert np.isfinite(grads).all()


def test_learned_variance_is_learned():
    """Where the mean is exact, the bound is least where the variance is the posterior's: fraction 0, output -1."""
    values = [
        jnp.mean(
            vlb_loss(
                lambda x, c, cond, bias=bias: jnp.concatenate([EPS, jnp.full_like(x, bias)], axis=-1),
                linear(),
                eps(learned_variance=True),
                X0,
                COND,
                jnp.full(B, 5 / 1000),
                EPS,
                variance="learned",
            )
        )
        for bias in (-1.2, -1.0, -0.8, 0.0)
    ]
    assert np.argmin(values) == 1
    np.testing.assert_allclose(values[1], 0, atol=1e-2)


@pytest.mark.parametrize("variance", ["small", "large", "learned"])
def test_vlb_loss_is_improved_ddpms_terms(variance):
    """T KL of two Gaussians in bits, re-derived from the betas in float64; the decoder is proven in bound_test."""
    schedule, bias = linear(), 0.3
    t = jnp.array([2, 5, 100, 500, 900, 1000]) / 1000
    learned = eps(learned_variance=variance == "learned")
    out = network(diffuse(X0, EPS, schedule.level(t)), schedule.conditioning(t), COND)

    def apply(x, c, cond):
        return jnp.concatenate([out, jnp.full_like(x, bias)], -1) if learned.learned_variance else out

    got = vlb_loss(apply, schedule, learned, X0, COND, t, EPS, variance=variance)
    i = np.round(np.asarray(t) * 1000).astype(int) - 1
    beta = schedule.betas
    alpha_bar = np.cumprod(1 - beta)
    now, before, b = alpha_bar[i], alpha_bar[i - 1], beta[i]
    tilde = b * (1 - before) / (1 - now)
    fraction = (bias + 1) / 2
    model = {"small": tilde, "large": b, "learned": np.exp(fraction * np.log(b) + (1 - fraction) * np.log(tilde))}
    gap = b / (np.sqrt(1 - b) * np.sqrt(1 - now))  # of the means, for a gap of one in eps: eq. 11 of DDPM
    error = np.mean((np.asarray(out, np.float64) - EPS) ** 2, axis=(1, 2, 3))
    variance64 = model[variance]
    kl = 0.5 * (np.log(variance64 / tilde) + tilde / variance64 - 1 + gap**2 * error / variance64)
    np.testing.assert_allclose(got, 1000 * kl / np.log(2), rtol=2e-3)


# ---- what cannot be


def test_learned_variance_needs_a_chain():
    with pytest.raises(UserError, match="discrete schedule"):
        denoising_loss(
            lambda x, c, cond: jnp.concatenate([x, x], -1),
            rectified_flow(),
            eps(learned_variance=True),
            X0,
            COND,
            T,
            EPS,
        )


def test_a_bound_needs_a_known_variance():
    with pytest.raises(UserError, match="'small', 'large', 'learned'"):
        vlb_loss(network, linear(), eps(), X0, COND, T, EPS, variance="medium")
    with pytest.raises(UserError, match="learned_variance=True"):
        vlb_loss(network, linear(), eps(), X0, COND, T, EPS, variance="learned")
