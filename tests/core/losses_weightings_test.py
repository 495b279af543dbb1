"""Weightings: each paper's own weight, and one loss whatever the network predicts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.core.losses import denoising_loss, huber
from diffusion_jax.core.predictions import PREDICTIONS, edm, eps, v
from diffusion_jax.core.process import diffuse
from diffusion_jax.core.schedules import cosine, linear, rectified_flow, zero_snr
from diffusion_jax.core.schedules import edm as edm_schedule
from diffusion_jax.core.weightings import WEIGHTINGS, constant, elbo, min_snr, p2, sigmoid, truncated_snr
from diffusion_jax.core.weightings import edm as edm_weighting
from diffusion_jax.errors import UserError

B = 6
X0, EPS = np.random.default_rng(0).normal(size=(2, B, 4, 4, 3)).astype(np.float32)
T = np.array([0.002, 0.1, 0.35, 0.6, 0.9, 0.999], np.float32)
SCHEDULES = {"linear": linear(), "edm": edm_schedule(), "rectified_flow": rectified_flow(), "cosine": cosine()}

every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
every_weighting = pytest.mark.parametrize("weighting", WEIGHTINGS)


def level64(schedule, t):
    return tuple(np.asarray(a, np.float64)[:, None, None, None] for a in schedule.level(t))


def exact_noise(schedule, name, x0_hat):
    """The network of prediction `name` that knows x0_hat: every prediction then has the same error of x0."""
    p = PREDICTIONS[name]()
    level = schedule.level(T)

    def apply(x, c, cond):
        noisy = diffuse(X0, EPS, level)
        alpha, sigma = level.like(noisy)
        return p.target(x0_hat, (noisy - alpha * x0_hat) / sigma, level)

    return apply


@every_schedule
@every_weighting
def test_a_weighting_means_one_loss_under_every_prediction(schedule, weighting):
    """The same error of x0, seen by six networks of six predictions, costs the same."""
    if weighting == "constant":
        weight = constant(space="eps")
    else:
        weight = WEIGHTINGS[weighting]()
    x0_hat = X0 + 0.1 * EPS[::-1]
    losses = {
        name: denoising_loss(
            exact_noise(schedule, name, x0_hat), schedule, PREDICTIONS[name](), X0, {}, T, EPS, weighting=weight
        )
        for name in PREDICTIONS
    }
    # What cancels in float32 between near-equal outputs shows near the data, where 0.1 in x0 is large in eps.
    for name, loss in losses.items():
        np.testing.assert_allclose(loss, losses["x0"], rtol=2e-2 if name == "score" else 5e-3, err_msg=name)


@pytest.mark.parametrize(
    ("weighting", "of_snr"),
    [
        (min_snr(5.0), lambda snr: np.minimum(snr, 5)),
        (truncated_snr(), lambda snr: np.maximum(snr, 1)),
        (truncated_snr(0.5, 20.0), lambda snr: np.clip(snr, 0.5, 20)),
        (p2(1.0, 1.0), lambda snr: snr / (1 + snr)),
        (p2(0.5, 2.0), lambda snr: snr / (2 + snr) ** 0.5),
        (constant("x0"), lambda snr: np.ones_like(snr)),
        (constant("eps"), lambda snr: snr),
        (edm_weighting(0.5), lambda snr: (1 / snr + 0.25) / (0.25 / snr)),
    ],
    ids=["min_snr", "truncated_snr", "truncated_snr below 20", "p2", "p2 k=2", "x0", "eps", "edm"],
)
@every_schedule
def test_weights_of_x0_are_the_papers(schedule, weighting, of_snr):
    alpha, sigma = level64(schedule, T)
    snr = np.squeeze(alpha**2 / sigma**2)
    np.testing.assert_allclose(weighting(schedule, PREDICTIONS["x0"](), T), of_snr(snr), rtol=1e-4)
    np.testing.assert_allclose(weighting(schedule, PREDICTIONS["eps"](), T), of_snr(snr) / snr, rtol=1e-4)


@pytest.mark.parametrize("schedule", [linear(), cosine()])
def test_weights_of_v_are_the_papers(schedule):
    alpha, sigma = level64(schedule, T)
    snr = np.squeeze(alpha**2 / sigma**2)
    np.testing.assert_allclose(min_snr(5.0)(schedule, v(), T), np.minimum(snr, 5) / (snr + 1), rtol=1e-4)
    np.testing.assert_allclose(constant("v")(schedule, PREDICTIONS["x0"](), T), snr + 1, rtol=1e-4)


@every_schedule
def test_edm_weighting_of_edms_network_is_one(schedule):
    np.testing.assert_allclose(edm_weighting(0.5)(schedule, edm(0.5), T), 1, rtol=1e-5)


@every_schedule
def test_sigmoid_weighting_is_that_of_the_elbo_times_a_sigmoid(schedule):
    t64 = T.astype(np.float64)
    h = 1e-4
    up, down = (np.asarray(schedule.logsnr(jnp.float32(t64 + d)), np.float64) for d in (h, -h))
    slope = (up - down) / (2 * h)
    inner = slice(1, 5)
    np.testing.assert_allclose(elbo()(schedule, eps(), T)[inner], (-slope / 2)[inner], rtol=0.02)
    logsnr = np.asarray(schedule.logsnr(T), np.float64)
    ratio = sigmoid(bias=-1.0)(schedule, eps(), T) / elbo()(schedule, eps(), T)
    np.testing.assert_allclose(ratio, 1 / (1 + np.exp(logsnr + 1)), rtol=1e-4)


def test_constant_weighting_is_no_weighting():
    plain = denoising_loss(lambda x, c, cond: x, linear(), v(), X0, {}, T, EPS)
    np.testing.assert_array_equal(
        denoising_loss(lambda x, c, cond: x, linear(), v(), X0, {}, T, EPS, weighting=constant()), plain
    )


@every_weighting
def test_weights_are_finite_at_both_ends(weighting):
    t = jnp.array([0.0, 1e-6, 0.5, 1.0])
    weights = lambda t: [  # noqa: E731
        WEIGHTINGS[weighting]()(schedule, make(), t)
        for schedule in (linear(), zero_snr()(linear()), rectified_flow(), edm_schedule())
        for make in PREDICTIONS.values()
    ]
    assert np.isfinite(jax.jit(weights)(t)).all()


@pytest.mark.parametrize(
    "make",
    [
        lambda: huber(0.0),
        lambda: min_snr(0.0),
        lambda: truncated_snr(-1.0),
        lambda: truncated_snr(2.0, 1.0),
        lambda: p2(1.0, 0.0),
        lambda: edm_weighting(0.0),
        lambda: constant("noise"),
    ],
)
def test_a_weighting_that_cannot_be_is_one_clear_sentence(make):
    with pytest.raises(UserError):
        make()


# ---- diffusers


@pytest.mark.parity
def test_snr_is_that_of_diffusers():
    import diffusers
    import torch
    from diffusers.training_utils import compute_snr

    index = torch.tensor([0, 10, 200, 500, 800, 999])
    theirs = compute_snr(diffusers.DDPMScheduler(beta_schedule="linear"), index).double().numpy()
    t = jnp.float32((index.numpy() + 1) / 1000)
    np.testing.assert_allclose(jnp.exp(linear().logsnr(t)), theirs, rtol=2e-3)
    ours = min_snr(5.0)(linear(), eps(), t)  # its training scripts' weight for eps
    np.testing.assert_allclose(ours, np.minimum(theirs, 5) / theirs, rtol=2e-3)
