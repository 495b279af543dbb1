"""Stochastic samplers reach the data's mean, covariance and mixture weights within Monte-Carlo error."""

import jax.numpy as jnp
import numpy as np
import pytest
from samplers_exact import CONTINUOUS, Rotated, jit

from diffusion_jax.core.grids import logsnr
from diffusion_jax.core.samplers import (
    SAMPLERS,
    ddim,
    ddpm,
    dpmpp_2m_sde,
    dpmpp_2s,
    dpmpp_3m_sde,
    dpmpp_sde,
    euler,
    euler_ancestral,
    heun,
    predictor_corrector,
    sample,
)

DATA = Rotated()
EXAMPLES, PAIRS = 32, 256  # samples of the plane in each example: the size of a Langevin step needs the norm of many

# name: sampler, steps enough for a bias below the Monte-Carlo error of 8,192 samples
CASES = {
    "ddpm": (ddpm(), 600),
    "ddpm large": (ddpm("large"), 300),
    "ddim eta=0.5": (ddim(eta=0.5), 500),
    "euler_ancestral": (euler_ancestral(), 600),
    "euler churn": (euler(s_churn=40.0), 700),
    "heun churn": (heun(s_churn=40.0), 100),
    "dpmpp_2s eta=1": (dpmpp_2s(eta=1.0), 80),
    "dpmpp_sde": (dpmpp_sde(), 80),
    "dpmpp_sde eta=0.5": (dpmpp_sde(eta=0.5), 80),
    "dpmpp_2m_sde": (dpmpp_2m_sde(), 80),
    "dpmpp_2m_sde heun eta=0.5": (dpmpp_2m_sde(eta=0.5, solver="heun"), 80),
    "dpmpp_3m_sde": (dpmpp_3m_sde(), 80),
    "predictor_corrector": (predictor_corrector(snr=0.04), 400),
}
FAST = {name for name, (_, steps) in CASES.items() if steps <= 100}


def z_scores(sampler, schedule, steps: int) -> np.ndarray:
    """Deviations in standard errors: of the mean (2), the covariance (3) and the mass of the upper component (1)."""
    denoise, times = DATA.denoiser(schedule), logsnr(sigma_max=100.0)(schedule, steps)
    run = jit(lambda seeds: sample(denoise, sampler, schedule, times, seeds, (PAIRS, 2)))
    x = np.asarray(run(jnp.arange(EXAMPLES)), np.float64).reshape(-1, 2)
    mean = (x.mean(0) - DATA.mean) / np.sqrt(np.diag(DATA.covariance) / len(x))
    offset = x - DATA.mean
    products = np.stack([offset[:, 0] ** 2, offset[:, 0] * offset[:, 1], offset[:, 1] ** 2], 1)
    expected = DATA.covariance[[0, 0, 1], [0, 1, 1]]
    covariance = (products.mean(0) - expected) / (products.std(0) / np.sqrt(len(x)))
    upper, p = (x @ DATA.rotation.T)[:, 0] > 0, DATA.parts[0].upper_mass()
    return np.concatenate([mean, covariance, [(upper.mean() - p) / np.sqrt(p * (1 - p) / len(x))]])


@pytest.mark.parametrize(
    ("name", "schedule"), [(n, s) for n in CASES for s in CONTINUOUS if s == "vp" or (n in FAST and s == "flow")]
)
def test_moments(name, schedule):
    sampler, steps = CASES[name]
    assert np.abs(z_scores(sampler, CONTINUOUS[schedule], steps)).max() < 3.5


def test_the_test_would_see_a_bias():
    """50 steps of a first-order method are too few for it."""
    assert np.abs(z_scores(ddpm(), CONTINUOUS["vp"], 50)).max() > 6


def test_every_stochastic_sampler_is_among_them():
    deterministic = {"ddim", "euler", "heun", "plms", "dpmpp_2s", "dpmpp_2m", "dpmpp_3m", "unipc", "ode"}
    assert set(SAMPLERS) - deterministic <= {name.split()[0] for name in CASES}
