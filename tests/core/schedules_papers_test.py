"""Schedules and modifiers one by one: against their papers in float64, and against diffusers."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate

from diffusion_jax.core.schedules import (
    DiscreteVP,
    Learned,
    continuous_cosine,
    cosine,
    edm,
    input_scale,
    linear,
    rectified_flow,
    scaled_linear,
    shift,
    sigmoid,
    sub_vp,
    time_shift,
    ve,
    vp,
    zero_snr,
)
from diffusion_jax.core.schedules.learned import apply, init
from diffusion_jax.errors import UserError

TIMES = np.linspace(0, 1, 1001).astype(np.float32)


def level64(schedule, t):
    return tuple(np.asarray(a, np.float64) for a in schedule.level(jnp.asarray(t, jnp.float32)))


def test_linear_is_the_papers():
    schedule = linear()
    np.testing.assert_allclose(schedule.betas[[0, 499, -1]], [1e-4, 1e-4 + 499 / 999 * 0.0199, 0.02], rtol=1e-12)
    # Eq. 4 of DDPM at its last step: alpha_bar_T = prod(1 - beta), the paper's L_T of about 1e-5 bits/dim.
    product = math.prod(1 - (1e-4 + i / 999 * 0.0199) for i in range(1000))
    np.testing.assert_allclose(level64(schedule, 1.0)[0] ** 2, product, rtol=1e-5)


@pytest.mark.parametrize("make", [linear, scaled_linear, cosine])
@pytest.mark.parametrize("steps", [1, 10, 1000, 4000])
def test_chain_times_give_the_float64_cumulative_product(make, steps):
    schedule = make(steps=steps)
    alpha, sigma = level64(schedule, (np.arange(steps) + 1) / steps)
    alpha_bar = np.cumprod(1 - schedule.betas)
    np.testing.assert_allclose(alpha**2, alpha_bar, rtol=2e-5)
    np.testing.assert_allclose(sigma**2, 1 - alpha_bar, rtol=2e-5)


def test_cosine_is_equation_17():
    f = lambda t: np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2  # noqa: E731
    t = np.linspace(0, 1, 1001)[:-5]  # the last betas are clipped
    np.testing.assert_allclose(level64(cosine(), t)[0] ** 2, f(t) / f(0), rtol=2e-5)
    assert cosine().betas.max() == 0.999


def test_scaled_linear_is_linear_in_the_root_of_beta():
    root = np.sqrt(scaled_linear().betas)
    np.testing.assert_allclose(np.diff(root), (math.sqrt(0.012) - math.sqrt(0.00085)) / 999, rtol=1e-9)


def test_vp_is_the_integral_of_its_beta():
    for t in (0.01, 0.3, 1.0):
        integral = scipy.integrate.quad(lambda s: 0.1 + s * 19.9, 0, t)[0]
        alpha, sigma = level64(vp(), t)
        np.testing.assert_allclose([alpha, sigma], [np.exp(-integral / 2), np.sqrt(-np.expm1(-integral))], rtol=2e-6)


def test_vp_is_the_limit_of_ddpm():
    # Score-SDE, appendix B: beta(t) = T beta_i, here 0.1 and 20 of 1000 steps of 1e-4 and 0.02.
    t = (np.arange(1000) + 1) / 1000
    np.testing.assert_allclose(linear().logsnr(jnp.float32(t))[5:], vp().logsnr(jnp.float32(t))[5:], atol=0.15)


def test_continuous_cosine_is_minus_two_log_tan():
    t = np.linspace(0.001, 1, 50)
    last = np.arctan(np.exp(7.5))
    np.testing.assert_allclose(continuous_cosine().logsnr(jnp.float32(t)), -2 * np.log(np.tan(last * t)), atol=2e-3)
    np.testing.assert_allclose(continuous_cosine().logsnr(jnp.float32(1)), -15, rtol=1e-6)


@pytest.mark.parametrize(("start", "end", "tau"), [(-3, 3, 1.0), (0, 3, 0.3), (-3, 3, 0.1)])
def test_sigmoid_is_algorithm_1(start, end, tau):
    t = np.linspace(0, 1, 101).astype(np.float32).astype(np.float64)
    s = lambda u: 1 / (1 + np.exp(-u / tau))  # noqa: E731
    gamma = (s(end) - s(start + t * (end - start))) / (s(end) - s(start))
    alpha, sigma = level64(sigmoid(float(start), float(end), tau), t)
    np.testing.assert_allclose(alpha**2, gamma, atol=1e-6)
    np.testing.assert_allclose(sigma**2, 1 - gamma, atol=1e-6)


@pytest.mark.parametrize("schedule", [ve(), edm()])
def test_ve_is_the_sde_started_at_the_image(schedule):
    # d sigma^2 / dt of the paper's own noise level s(t), integrated from the image at t = 0.
    low, high, rho = schedule.sigma_min, schedule.sigma_max, schedule.rho
    if rho is None:
        s = lambda t: low * (high / low) ** t  # noqa: E731
    else:
        s = lambda t: (low ** (1 / rho) + t * (high ** (1 / rho) - low ** (1 / rho))) ** rho  # noqa: E731
    t = np.linspace(0, 1, 101).astype(np.float32).astype(np.float64)
    np.testing.assert_allclose(level64(schedule, t)[1], np.sqrt(s(t) ** 2 - s(0) ** 2), rtol=4e-6)
    np.testing.assert_allclose(schedule.sigma(schedule.t_min), low, rtol=1e-5)
    assert schedule.prior_std == high
    np.testing.assert_allclose(schedule.conditioning(jnp.float32(0.7)), np.log(schedule.sigma(0.7)) / 4, rtol=1e-6)


def test_rectified_flow_is_a_straight_line():
    alpha, sigma = level64(rectified_flow(), TIMES)
    np.testing.assert_array_equal(alpha, np.float32(1) - TIMES)
    np.testing.assert_array_equal(sigma, TIMES)


# ---- modifiers


@pytest.mark.parametrize("base", [cosine(), vp(), continuous_cosine(), sigmoid()])
def test_shift_moves_the_logsnr(base):
    shifted = shift(64 / 256)(base)
    t = TIMES[1:-1]
    np.testing.assert_allclose(shifted.logsnr(t), base.logsnr(t) + 2 * np.log(64 / 256), atol=1e-6)
    # Averaging 4 x 4 pixels of the shifted image leaves the base's log-SNR: noise falls by 4, the image stays.
    alpha, sigma = level64(shifted, t)
    np.testing.assert_allclose(2 * np.log(alpha / (sigma / 4)), base.logsnr(t), atol=4e-6)


def test_time_shift_is_sd3s_and_a_shift_of_the_logsnr_on_rectified_flow():
    shifted = time_shift(3.0)(rectified_flow())
    t = TIMES.astype(np.float64)
    np.testing.assert_allclose(level64(shifted, TIMES)[1], 3 * t / (1 + 2 * t), atol=2e-7)
    moved = rectified_flow().logsnr(TIMES[1:-1]) - 2 * np.log(3)
    np.testing.assert_allclose(shifted.logsnr(TIMES[1:-1]), moved, atol=1e-3)
    np.testing.assert_allclose(shifted.conditioning(0.5), 750, rtol=1e-6)


@pytest.mark.parametrize("base", [linear(), scaled_linear(), cosine()])
def test_zero_snr_is_algorithm_1(base):
    root = np.sqrt(np.cumprod(1 - base.betas))
    first, last = root[0], root[-1]
    root = (root - last) * first / (first - last)
    alpha, sigma = level64(zero_snr()(base), (np.arange(base.steps) + 1) / base.steps)
    np.testing.assert_allclose(alpha, root, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(sigma**2, 1 - root**2, rtol=2e-5)
    assert alpha[-1] == 0
    assert sigma[-1] == 1


def test_zero_snr_leaves_a_schedule_that_has_it_alone():
    t = TIMES
    for a, b in zip(level64(zero_snr()(sigmoid()), t), level64(sigmoid(), t), strict=True):
        np.testing.assert_allclose(a, b, atol=3e-7)


@pytest.mark.parametrize("base", [cosine(), rectified_flow(), edm()])
def test_input_scale_is_the_process_of_a_scaled_image(base):
    scaled = input_scale(0.5, renormalize=False)(base)
    x0, eps = 0.7, -1.3
    for t in (0.1, 0.6, 1.0):
        alpha, sigma = level64(base, t)
        a, s = level64(scaled, t)
        np.testing.assert_allclose(a * x0 + s * eps, (alpha * 0.5 * x0 + sigma * eps) / 0.5, rtol=1e-6)
    assert scaled.prior_std == base.prior_std / 0.5


def test_input_scale_renormalised_has_unit_variance_and_the_scaled_images_snr():
    scaled, base = input_scale(0.5)(vp()), vp()
    for t in (0.1, 0.6, 1.0):
        alpha, sigma = level64(base, t)
        norm = np.sqrt((0.5 * alpha) ** 2 + sigma**2)
        np.testing.assert_allclose(level64(scaled, t), [0.5 * alpha / norm, sigma / norm], rtol=1e-6)


# ---- the learned schedule


@pytest.mark.parametrize("seed", range(5))
def test_learned_logsnr_is_monotone_between_its_ends_whatever_the_parameters(seed):
    params = init(jax.random.key(seed), hidden=16, logsnr_max=12.0, logsnr_min=-6.0)
    noise = jax.random.normal(jax.random.key(seed + 100), (3, 16))
    params["l2"]["w"], params["l2"]["b"], params["l3"]["w"] = 3 * noise  # of either sign
    logsnr = np.asarray(apply(params, TIMES))
    np.testing.assert_allclose(logsnr[[0, -1]], [12, -6], rtol=1e-6)
    assert (np.diff(logsnr) < 0).all()


def test_learned_logsnr_is_vdms_network():
    params = init(jax.random.key(0), hidden=16)
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)

    def raw(t):
        l1 = abs(p["l1"]["w"]) * t + p["l1"]["b"]
        return l1 + abs(p["l3"]["w"]) @ (1 / (1 + np.exp(-(abs(p["l2"]["w"]) * l1 + p["l2"]["b"]))))

    for t in (0.2, 0.9):
        gamma = -13.3 + 18.3 * (raw(t) - raw(0)) / (raw(1) - raw(0))
        np.testing.assert_allclose(apply(params, jnp.float32(t)), -gamma, rtol=1e-5)


def test_learned_schedule_passes_gradients_on_to_its_parameters():
    params = init(jax.random.key(0), hidden=8)

    def time(ends):
        return Learned(params | {"ends": ends}).time(jnp.float32(2.0))

    time_and_slope = jax.jit(jax.value_and_grad(time))
    ends, h = jnp.array([10.0, -5.0]), jnp.array([0.0, 0.05])
    difference = (time_and_slope(ends + h)[0] - time_and_slope(ends - h)[0]) / 0.1
    np.testing.assert_allclose(time_and_slope(ends)[1][1], difference, rtol=2e-3)
    grads = jax.jit(jax.grad(lambda p: jnp.sum(Learned(p).alpha(jnp.linspace(0.0, 1.0, 5)))))(params)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
    assert np.abs(grads["l3"]["w"]).max() > 0


# ---- what cannot be

BAD = [
    lambda: linear(steps=0),
    lambda: linear(beta_end=1.5),
    lambda: scaled_linear(beta_start=-0.1),
    lambda: vp(beta_min=0.0),
    lambda: continuous_cosine(logsnr_min=1.0),
    lambda: sigmoid(start=3.0, end=-3.0),
    lambda: sigmoid(tau=0.01),
    lambda: ve(sigma_min=0.0),
    lambda: edm(sigma_min=100.0),
    lambda: edm(rho=0.0),
    lambda: DiscreteVP(np.array([])),
    lambda: shift(0.0),
    lambda: time_shift(-1.0),
    lambda: input_scale(0.0, renormalize=False),
    lambda: shift(0.5)(rectified_flow()),
    lambda: zero_snr()(edm()),
    lambda: init(jax.random.key(0), logsnr_max=-9.0),
]


@pytest.mark.parametrize("make", BAD)
def test_a_schedule_that_cannot_be_is_one_clear_sentence(make):
    with pytest.raises(UserError) as error:
        make()
    assert len(str(error.value)) > 20
    assert "\n" not in str(error.value)


# ---- diffusers


@pytest.mark.parity
@pytest.mark.parametrize(
    ("schedule", "options"),
    [
        (linear(), {"beta_schedule": "linear"}),
        (scaled_linear(), {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}),
        (cosine(), {"beta_schedule": "squaredcos_cap_v2"}),
        (
            zero_snr()(scaled_linear()),
            {
                "beta_schedule": "scaled_linear",
                "beta_start": 0.00085,
                "beta_end": 0.012,
                "rescale_betas_zero_snr": True,
            },
        ),
    ],
    ids=["linear", "scaled_linear", "cosine", "zero_snr"],
)
def test_alpha_bar_is_that_of_diffusers(schedule, options):
    import diffusers

    theirs = diffusers.DDPMScheduler(num_train_timesteps=1000, **options).alphas_cumprod.double().numpy()
    ours = level64(schedule, (np.arange(1000) + 1) / 1000)[0] ** 2
    np.testing.assert_allclose(ours, theirs, rtol=2e-4, atol=3e-8)


@pytest.mark.parity
def test_edm_levels_are_those_of_diffusers():
    import diffusers

    theirs = diffusers.EDMEulerScheduler(sigma_min=0.002, sigma_max=80.0, rho=7.0)
    theirs.set_timesteps(18)
    sigmas = theirs.sigmas.double().numpy()
    t = edm().time(jnp.float32(-2 * np.log(sigmas[:-1])))
    # Uniform in s^(1 / rho), whose t is uniform too where s is well above sigma_min.
    np.testing.assert_allclose(t[:-4], np.linspace(1, 0, 18)[:-4], atol=3e-3)
    np.testing.assert_allclose(edm().sigma(t), sigmas[:-1], rtol=1e-5)
    fed = [theirs.precondition_noise(s) for s in theirs.sigmas[:-1]]
    np.testing.assert_allclose(edm().conditioning(t), np.array(fed), atol=1e-5)


@pytest.mark.parity
def test_time_shift_is_that_of_diffusers():
    import diffusers

    theirs = diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=3.0)
    ours = time_shift(3.0)(rectified_flow()).sigma(jnp.float32(np.linspace(1, 0.001, 1000)))
    np.testing.assert_allclose(ours, theirs.sigmas.numpy()[:1000], atol=1e-6)


def test_sub_vp_solves_its_sde():
    """Mean and variance of dx = -beta x / 2 dt + sqrt(beta (1 - exp(-2 int beta))) dw, integrated by scipy."""
    beta = lambda t: 0.1 + 19.9 * t  # noqa: E731
    whole = lambda t: 0.1 * t + 9.95 * t**2  # noqa: E731

    def moments(t, y):
        mean, variance = y
        return [-0.5 * beta(t) * mean, -beta(t) * variance - beta(t) * np.expm1(-2 * whole(t))]

    times = np.array([1e-3, 0.01, 0.1, 0.3, 0.6, 1.0])
    solved = scipy.integrate.solve_ivp(
        moments, (0, 1), [1.0, 0.0], t_eval=times, method="DOP853", rtol=1e-11, atol=1e-16
    )
    alpha, sigma = level64(sub_vp(), times)
    np.testing.assert_allclose(alpha, solved.y[0], rtol=2e-5)
    np.testing.assert_allclose(sigma, np.sqrt(solved.y[1]), rtol=2e-5)
    assert (sigma <= level64(vp(), times)[1]).all()
    with pytest.raises(UserError, match="'sub_vp' needs 0 < beta_min <= beta_max"):
        sub_vp(beta_min=0.0)


@pytest.mark.parametrize("modify", [shift(0.5), zero_snr()])
def test_sub_vp_takes_no_modifier_that_needs_a_preserved_variance(modify):
    with pytest.raises(UserError, match="needs a variance-preserving schedule"):
        modify(sub_vp())


def test_a_chain_of_one_step_has_no_last_step_to_move():
    with pytest.raises(UserError, match="this chain has only 1"):
        zero_snr()(linear(1))


def test_a_learned_schedule_whose_weights_are_zero_is_finite():
    """Its network rises by nothing from t = 0 to 1, and its log-SNR has no slope to divide by."""
    params = jax.tree.map(jnp.zeros_like, init(jax.random.key(0), hidden=4)) | {"ends": jnp.array([10.0, -5.0])}
    t = jnp.linspace(0.0, 1.0, 5)
    schedule = Learned(params)
    values = (schedule.level(t), schedule.time(jnp.linspace(-6.0, 11.0, 5)), schedule.conditioning(t))
    gradient = jax.grad(lambda p: apply(p, t).sum())(params)
    assert all(np.isfinite(a).all() for a in jax.tree.leaves((values, gradient)))
