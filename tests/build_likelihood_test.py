"""Bits per dimension of perfect models against the entropy of the 8-bit data themselves, on every kind of schedule."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from diffusion_jax import experiment
from diffusion_jax.config import base
from diffusion_jax.core.predictions import Prediction
from diffusion_jax.core.reconstruction import first_time
from diffusion_jax.errors import UserError
from diffusion_jax.models.likelihood import METHODS, bits_per_dim_program
from diffusion_jax.train import sharding

VALUES = 2 * np.arange(256) / 255 - 1
DIMS, N = 16, 256
STDS = (0.3, 0.0146, 0.006)
"""Of the data: from textures to regions so smooth that their deviation is 1.9 and 0.8 values of 8 bits."""

SCHEDULES = ("vp", "sigmoid", "cosine(steps=1000)", "rectified_flow")


def smooth(schedule, std):
    """The exact denoiser of N(0.1, std^2), std [B, 1]."""

    def denoise(x, t):
        alpha, sigma = schedule.level(t).like(x)
        total = alpha**2 * std**2 + sigma**2
        rest = x - alpha * 0.1
        return Prediction(0.1 + alpha * std**2 / total * rest, sigma / total * rest)

    return denoise


def of_few_values(schedule, values, p):
    """The exact denoiser of independent pixels of these values with probabilities p."""

    def denoise(x, t):
        alpha, sigma = schedule.level(t).like(x)
        logits = jnp.log(p) - 0.5 * ((x[..., None] - alpha[..., None] * values) / sigma[..., None]) ** 2
        x0 = jnp.sum(jax.nn.softmax(logits, axis=-1) * values, axis=-1)
        return Prediction(x0, (x - alpha * x0) / sigma)

    return denoise


def measured(spec, method, steps, denoiser, images):
    """Bits per dimension [B] of a perfect model on the schedule that spec names."""
    schedule = experiment.schedule(spec)
    model = types.SimpleNamespace(schedule=schedule, parameterization=types.SimpleNamespace(learned_variance=False))
    measure = METHODS[method](model, steps)
    keys = jax.random.split(jax.random.key(0), len(images))
    parts = jax.jit(lambda images, keys: measure(denoiser(schedule), schedule, images, keys))(images, keys)
    np.testing.assert_allclose(parts["total"], sum(a for name, a in parts.items() if name != "total"), rtol=1e-5)
    return np.asarray(parts["total"], np.float64)


@pytest.fixture(scope="module")
def smooth_images():
    """(images [B, DIMS], their own bits/dim [B], std [B, 1]) of N images of each of STDS."""
    rng = np.random.default_rng(0)
    std = np.repeat(STDS, N)[:, None]
    x = VALUES[np.clip(np.round((0.1 + std * rng.standard_normal((len(std), DIMS)) + 1) * 127.5), 0, 255).astype(int)]
    mass = scipy.stats.norm(0.1, std).cdf(x + 1 / 255) - scipy.stats.norm(0.1, std).cdf(x - 1 / 255)
    return x.astype(np.float32), -np.log2(mass).mean(axis=1), std.astype(np.float32)


@pytest.mark.parametrize("spec", SCHEDULES)
def test_the_ode_of_a_perfect_model_costs_the_entropy_of_smooth_data(spec, smooth_images):
    """To 0.02 bits/dim, and 0.03 where the deviation is below one value.

    From t_min, of dequantized images, a deviation of 0.0146 cost 0.09 on vp and 0.26 on sigmoid; one of 0.005 cost
    0.53 and 1.05.
    """
    images, own, std = smooth_images
    ours = measured(spec, "ode", 100, lambda schedule: smooth(schedule, std), images)
    gaps = (ours - own).reshape(len(STDS), N).mean(axis=1)
    np.testing.assert_array_less(np.abs(gaps), [0.02, 0.02, 0.03])


@pytest.mark.parametrize("spec", ["vp", "sigmoid"])
def test_the_bound_in_continuous_time_of_a_perfect_model_costs_no_more(spec, smooth_images):
    images, own, std = smooth_images
    ours = measured(spec, "bound", 0, lambda schedule: smooth(schedule, std), images)
    gaps = (ours - own).reshape(len(STDS), N)
    errors = gaps.std(axis=1) / np.sqrt(N)
    assert (errors < 0.04).all()
    np.testing.assert_array_less(np.abs(gaps.mean(axis=1)), 0.03 + 4 * errors)


@pytest.mark.parametrize(("method", "spec"), [("ode", "rectified_flow"), ("ode", "learned(hidden=8)"), ("bound", "vp")])
def test_a_model_that_knows_which_values_there_are_does_not_pay_for_others(method, spec):
    """Noise of half a bin hides no value from it, whereas dequantized data lie where it knows that there are none."""
    values, p = VALUES[[0, 100, 180, 255]].astype(np.float32), np.float32([0.5, 0.2, 0.2, 0.1])
    which = np.random.default_rng(0).choice(4, (N, DIMS), p=np.float64([0.5, 0.2, 0.2, 0.1]))
    ours = measured(spec, method, 100, lambda s: of_few_values(s, values, p), values[which])
    gap = ours + np.log2(p)[which].mean(axis=1)
    assert abs(gap.mean()) < 0.02 + 4 * gap.std() / np.sqrt(N)


def test_a_learned_schedule_is_measured_as_it_has_been_learned(monkeypatch):
    """And not as it was before it had learned."""
    config = base()
    config.data.shape = (8, 8, 1)
    config.schedule, config.objective = "learned(hidden=8)", "vdm"
    config.model.update(channels=4, multipliers=(1,), blocks=1, attention=(), groups=2, num_classes=0)
    model = experiment.model(config)

    def last_logsnr(model, steps):
        return lambda denoise, schedule, images, keys: {"total": jnp.full(len(images), schedule.logsnr(jnp.ones(())))}

    monkeypatch.setitem(METHODS, "bound", last_logsnr)
    program = bits_per_dim_program(
        model, experiment.sampling(config), sharding.mesh(devices=jax.devices()[:1]), "bound"
    )
    params = jax.tree.map(lambda a: jnp.ones(a.shape), jax.eval_shape(model.init, jax.random.key(0)))
    params["schedule"]["ends"] = jnp.array([13.3, -2.0])
    images = np.zeros((2, *model.shape), np.float32)
    got = program(params, {}, images, np.int32(0), np.arange(2, dtype=np.int32), {})
    np.testing.assert_allclose(got["total"], -2.0, rtol=1e-5)


def test_a_chain_of_one_step_has_no_ode():
    model = types.SimpleNamespace(schedule=experiment.schedule("cosine(steps=1)"))
    assert first_time(model.schedule) == 1
    with pytest.raises(UserError, match="a chain of 2 steps or more"):
        METHODS["ode"](model, 0)
