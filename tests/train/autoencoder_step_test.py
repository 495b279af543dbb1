"""The autoencoder's step: who learns from which loss, and when."""

import jax
import numpy as np
import pytest

from configs import tiny
from diffusion_jax import experiment
from diffusion_jax.train import sharding


def config_of(**changes):
    config = tiny.get_config()
    config.task = "autoencoder"
    config.data.update(shape=(16, 16, 1))
    config.optimizer.warmup = 0
    config.autoencoder.update(
        channels=4, multipliers=(1,), blocks=1, groups=2, latent_channels=2, mid_attention=False, discriminator_layers=1
    )
    config.autoencoder.update(discriminator_channels=32, **changes)
    return config


def stepped(**changes):
    """The state before and after one step."""
    config = config_of(**changes)
    mesh = sharding.mesh(devices=jax.devices()[:1])
    state = experiment.initial_state(config, experiment.autoencoder.trainee(config), mesh)
    x = np.random.default_rng(0).uniform(-1, 1, (4, 16, 16, 1)).astype(np.float32)
    step = jax.jit(experiment.train_step(config, experiment.autoencoder.trainee(config), mesh))
    return state.params, step(state, {"x": x}, jax.random.key(0))[0].params


@pytest.fixture(scope="module")
def alone():
    return stepped(adversarial_start=-1)


def moved(pair, part):
    before, after = (jax.tree.leaves(params[part]) for params in pair)
    return max(float(np.abs(a - b).max()) for a, b in zip(before, after, strict=True))


def test_before_its_start_the_discriminator_neither_learns_nor_teaches(alone):
    early = stepped(adversarial_start=1)
    assert moved(early, "discriminator") == 0
    for a, b in zip(jax.tree.leaves(early[1]["autoencoder"]), jax.tree.leaves(alone[1]["autoencoder"]), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_from_its_start_both_learn(alone):
    late = stepped(adversarial_start=0)
    assert moved(late, "discriminator") > 1e-4
    pairs = zip(jax.tree.leaves(late[1]["autoencoder"]), jax.tree.leaves(alone[1]["autoencoder"]), strict=True)
    assert max(float(np.abs(a - b).max()) for a, b in pairs) > 1e-4


def test_its_own_loss_alone_teaches_the_discriminator(alone):
    """Without the generator's weight the autoencoder learns as if there were none; the discriminator learns still."""
    silent = stepped(adversarial_start=0, adversarial_weight=0.0)
    assert moved(silent, "discriminator") > 1e-4
    for a, b in zip(jax.tree.leaves(silent[1]["autoencoder"]), jax.tree.leaves(alone[1]["autoencoder"]), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
