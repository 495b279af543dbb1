"""From configs to objects: every config builds, and the sampling program keeps its promises."""

import dataclasses
import importlib
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from configs import tiny
from diffusion_jax import config as configs
from diffusion_jax import experiment
from diffusion_jax.errors import UserError
from diffusion_jax.experiment import plan
from diffusion_jax.train import sharding

# float32 rounding, which guidance and a random network amplify over the steps; another seed differs by 0.1 and more.
ROUNDING = 3e-4

# Parameters of published networks: DDPM's, Stable Diffusion 1.5's and its autoencoder's, DiT-XL/2's that are trained.
PUBLISHED = {
    "ddpm_cifar10": 35_746_307,
    "ldm_sd15": 859_520_964,
    "ldm_sd15_autoencoder": 83_653_863,
    "dit_imagenet256": 675_129_632 - 256 * 1152,  # without its table of positions
}

CONFIGS = sorted(path.stem for path in (Path(__file__).parents[1] / "configs").glob("*.py"))


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_builds(name):
    """Its keys are known, and one training step of its network can be traced; nothing is allocated or compiled."""
    config = configs.check(importlib.import_module(f"configs.{name}").get_config())
    assert importlib.import_module(f"configs.{name}").__doc__
    mesh = sharding.mesh(devices=jax.devices()[:1])
    if config.task == "diffusion":
        model = experiment.model(config, *autoencoder_of(config))
        pretrained = model.pretrained
        trainee = experiment.trainee(config, model)
        experiment.sample_program(model, experiment.sampling(config), mesh)
    else:
        part = {"autoencoder": experiment.autoencoder, "classifier": experiment.classifier}[config.task]
        model, trainee, pretrained = None, part.trainee(config), {}
    batch = plan.abstract_batch(config, model)
    state = experiment.abstract_state(config, trainee)
    step = lambda *args: experiment.train_step(config, trainee, mesh, args[3])(*args[:3])  # noqa: E731
    after, metrics = jax.eval_shape(step, state, batch, jax.random.key(0), pretrained)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), after) == jax.tree.map(lambda a: (a.shape, a.dtype), state)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {np.dtype(np.float32)}
    assert metrics["loss"].shape == ()
    if name in PUBLISHED:
        assert sum(leaf.size for leaf in jax.tree.leaves(state.params)) == PUBLISHED[name]


def autoencoder_of(config):
    """The autoencoder of the config that `latent` is named after, its parameters as shapes; none for one in pixels."""
    if not config.latent:
        return []
    other = importlib.import_module(f"configs.{Path(config.latent).name}").get_config()
    params = experiment.autoencoder.trainee(other).abstract["autoencoder"]
    return [experiment.Autoencoder(experiment.autoencoder.network(other), params, 1.0)]


def test_the_cifar10_network_has_the_papers_size():
    config = importlib.import_module("configs.ddpm_cifar10").get_config()
    params = experiment.model(config).abstract
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 35_746_307


@pytest.fixture(scope="module")
def drawn():
    """A model, parameters that do something, and a function that samples seeds on a number of devices."""
    model = experiment.model(tiny.get_config())
    params = jax.tree.map(lambda p: p + 0.02, model.init(jax.random.key(1)))
    how = dataclasses.replace(experiment.sampling(tiny.get_config()), sampler="ddpm", steps=4, guidance=2.0)

    def draw(seeds, devices=1):
        mesh = sharding.mesh(devices=jax.devices()[:devices])
        seeds = np.asarray(seeds, np.int32)
        return np.asarray(experiment.sample_program(model, how, mesh)(params, {}, seeds, {"label": seeds % 11}))

    return draw


def test_sample_i_is_the_same_in_any_batch_and_on_any_devices(drawn):
    """Batches of 1, 7 and 64; 1 and 8 devices; in any order: equal to f32 rounding."""
    whole = drawn(range(64))
    assert np.abs(whole - np.roll(whole, 1, axis=0)).max(axis=(1, 2, 3)).min() > 0.1  # they do differ from each other
    for i in (0, 63):
        np.testing.assert_allclose(drawn([i])[0], whole[i], atol=ROUNDING)
    np.testing.assert_allclose(drawn(range(20, 27)), whole[20:27], atol=ROUNDING)
    np.testing.assert_allclose(drawn(range(64), devices=8), whole, atol=ROUNDING)
    np.testing.assert_allclose(drawn(range(63, -1, -1), devices=8)[::-1], whole, atol=ROUNDING)


@pytest.mark.parametrize("prediction", ["eps", "score(sigma_data=0.5)"])
def test_noise_prediction_is_refused_where_the_schedule_ends_without_signal(prediction):
    config = tiny.get_config()
    config.schedule, config.prediction = "cosine | zero_snr", prediction
    with pytest.raises(UserError, match="ends without signal; choose v, x0, edm or flow"):
        experiment.model(config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"guidance_rescale": 2.0, "guidance": 2.0}, "phi in [0, 1]"),
        ({"guidance_rescale": 0.5}, "need a guidance other than 1"),
        ({"guidance_interval": (1.0,), "guidance": 2.0}, "guidance_interval is (low, high)"),
        ({"guidance_interval": (3.0, 1.0), "guidance": 2.0}, "0 <= low < high"),
        ({"threshold": "dynamic(percentile=2.0)"}, "percentile in (0, 1]"),
        ({"threshold": "static(low=1.0)"}, "low < high"),
        ({"threshold": "hard"}, "unknown threshold 'hard'; choose from dynamic, none, static"),
        ({"sampler": "heun(s_churn=-1.0)"}, "s_churn >= 0"),
        ({"steps": 0}, "at least 1 step"),
    ],
)
def test_bad_sampling_is_refused_before_anything_is_traced(change, message):
    config = tiny.get_config()
    how = dataclasses.replace(experiment.sampling(config), **change)
    with pytest.raises(UserError, match=re.escape(message)):
        experiment.sample_program(experiment.model(config), how, sharding.mesh())


def test_the_program_knows_the_times_of_its_grid():
    """What a sampler says of its grid, it says while it is traced; a traced grid once passed as one that ends at 0."""
    model = experiment.model(tiny.get_config())
    how = dataclasses.replace(experiment.sampling(tiny.get_config()), grid="leading", steps=1)
    params, seeds = jax.eval_shape(model.init, jax.random.key(1)), jax.ShapeDtypeStruct((2,), np.int32)
    with pytest.raises(UserError, match=r"starts at t = .* take more steps, or time grid 'trailing'"):
        jax.eval_shape(experiment.sample_program(model, how, sharding.mesh()), params, {}, seeds, {"label": seeds})


def test_guidance_needs_classes():
    config = tiny.get_config()
    config.model.num_classes = 0
    how = dataclasses.replace(experiment.sampling(config), guidance=2.0)
    with pytest.raises(UserError, match="guidance 2.0 needs a conditional model"):
        experiment.sample_program(experiment.model(config), how, sharding.mesh())


@pytest.mark.parametrize("prediction", ["eps", "x0", "v", "eps(learned_variance=True)"])
def test_guidance_rescale_acts_on_the_networks_own_output(prediction):
    """Eq. 15 and 16 of arXiv:2305.08891 on what the network gives with and without the class, whatever it predicts."""
    config = tiny.get_config()
    config.prediction = prediction
    model = experiment.model(config)
    params = jax.tree.map(lambda p: p + 0.02, model.init(jax.random.key(1)))
    how = dataclasses.replace(experiment.sampling(config), guidance=4.0, guidance_rescale=0.7, threshold="none")
    x, t, label = jax.random.normal(jax.random.key(0), (3, 8, 8, 1)), np.float32([0.2, 0.5, 0.9]), np.array([1, 2, 3])
    got = experiment.guided(model, how)(params, {}, {"label": label})(x, t)

    told = model.schedule.conditioning(t)
    outs = [np.asarray(model.apply(params, x, told, {"label": y}))[..., :1] for y in (label, np.full(3, 10))]
    mixed = outs[1] + 4 * (outs[0] - outs[1])
    std = lambda a: a.std(axis=(1, 2, 3), keepdims=True)  # noqa: E731
    out = 0.7 * mixed * std(outs[0]) / std(mixed) + 0.3 * mixed
    alpha, sigma = (np.asarray(a).reshape(3, 1, 1, 1) for a in model.schedule.level(t))
    x0 = {"e": (x - sigma * out) / alpha, "x": out, "v": alpha * x - sigma * out}[prediction[0]]
    np.testing.assert_allclose(got.x0, x0, rtol=1e-3, atol=2e-3)


def test_plain_ddpm_takes_the_variance_that_was_learned():
    """The sampler of the defaults; another variance is asked for by name."""
    config = tiny.get_config()
    learned = "ddpm(variance='learned')"
    assert experiment.sampling(config, {"sampler": "ddpm"}).sampler == "ddpm"
    config.prediction, config.sample.sampler = "v(learned_variance=True)", "ddpm"
    assert experiment.sampling(config).sampler == learned
    assert experiment.sampling(config, {"sampler": "ddpm( )", "steps": 7}).sampler == learned
    for other in ("ddpm(variance='small')", "ddim"):
        assert experiment.sampling(config, {"sampler": other}).sampler == other


@pytest.mark.parametrize(("schedule", "strength"), [("edm", 1e-12), ("cosine(steps=100) | zero_snr", 1e-6)])
def test_an_edit_needs_a_strength_at_which_there_is_noise(schedule, strength):
    config = tiny.get_config()
    config.schedule, config.prediction = schedule, "v"
    edit = experiment.Edit(strength, False, 1, (8, 8))
    with pytest.raises(UserError, match="which changes nothing; give more"):
        experiment.edit_times(experiment.model(config), experiment.sampling(config), edit)
    times = experiment.edit_times(
        experiment.model(config), experiment.sampling(config), dataclasses.replace(edit, strength=0.02)
    )
    np.testing.assert_array_equal(times, [0.02, 0.0])


def test_a_level_of_noise_augmentation_is_scaled_as_the_config_says():
    config = tiny.get_config()
    config.spatial = ("low_resolution(factor=4, noise=0.2)",)
    assert experiment.model(config).network.level_scale == 1000
    config.level_scale = 1.0
    assert experiment.model(config).network.level_scale == 1
