"""The training step: what it may and may not depend on."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from configs import tiny
from diffusion_jax import experiment
from diffusion_jax.nets.network import Network
from diffusion_jax.train import sharding
from diffusion_jax.train import step as steps


def config_of(**changes):
    config = tiny.get_config()
    config.model.update(dropout=0.0, multipliers=(1,), attention=())  # half the compilation of the whole tiny net
    config.optimizer.eps = 1e-3
    config.train.batch_size = 16
    config.update_from_flattened_dict({key.replace("__", "."): value for key, value in changes.items()})
    return config


class Perceptron(Network):
    """The least network: for what does not hang on the network, it compiles in no time."""

    dropout: float = 0.0

    @nn.compact
    def __call__(self, x, t, cond, *, train=False):
        h = nn.Dense(16)(x) + nn.Dense(16)(t[:, None])[:, None, None]
        h += nn.Embed(self.num_classes + 1, 16)(cond["label"])[:, None, None]
        h = nn.Dropout(self.dropout, deterministic=not train)(nn.silu(h))
        return nn.Dense(self.out_channels)(h)


def small_model(config):
    model = experiment.model(config)
    network = Perceptron(model.network.out_channels, model.num_classes, dropout=config.model.dropout)
    return dataclasses.replace(model, network=network)


def batch_of(n=16, seed=0):
    rng = np.random.default_rng(seed)
    image = rng.uniform(-1, 1, (n, 8, 8, 1)).astype(np.float32)
    return {"x": image, "label": rng.integers(0, 10, n).astype(np.int32)}


def run(config, count=3, devices=None):
    """The state after `count` steps, the losses, and the state's layout."""
    sizes = {axis: config.mesh[axis] for axis in sharding.AXES}
    mesh = sharding.mesh(**sizes, devices=devices or jax.devices()[:1])
    model = experiment.model(config)
    state = experiment.initial_state(config, experiment.trainee(config, model), mesh)
    step = experiment.compiled_step(config, experiment.trainee(config, model), mesh)
    losses = []
    for n in range(count):
        batch = jax.device_put(batch_of(config.train.batch_size, n), sharding.batch_sharding(mesh))
        state, metrics = step(state, batch, jax.random.key(0), {})
        losses.append(float(metrics["loss"]))
    return jax.device_get(state), losses, state


def shifted(state):
    """The state with a network whose output, unlike the initial one's, is not zero whatever its input."""
    return state._replace(params=jax.tree.map(lambda p: p + 0.1, state.params))


@pytest.fixture(scope="module")
def alone():
    return run(config_of())


def assert_trees_close(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


@pytest.mark.parametrize("mesh", [(8, 1, 1), (4, 2, 1), (2, 2, 2)], ids=["data", "fsdp", "tensor"])
def test_any_mesh_gives_the_same_step(alone, mesh, monkeypatch):
    """Three steps from the same state; Adam's epsilon is large enough not to make steps of rounding noise."""
    monkeypatch.setattr(sharding, "_SMALLEST_SPLIT", 1)  # split even the tiny net's arrays
    data, fsdp, tensor = mesh
    config = config_of(mesh__data=data, mesh__fsdp=fsdp, mesh__tensor=tensor)
    state, losses, placed = run(config, devices=jax.devices())
    np.testing.assert_allclose(losses, alone[1], rtol=1e-5)
    assert_trees_close(state.params, alone[0].params, atol=1e-5)
    assert_trees_close(state.ema, alone[0].ema, atol=1e-5)
    specs = {str(a.sharding.spec) for a in jax.tree.leaves((placed.params, placed.opt_state))}
    assert any("fsdp" in spec for spec in specs) == (fsdp > 1)
    assert any("tensor" in spec for spec in specs) == (tensor > 1)


def test_accumulation_equals_the_whole_batch(alone):
    state, losses, _ = run(config_of(train__accumulate=4))
    np.testing.assert_allclose(losses, alone[1], rtol=1e-5)
    assert_trees_close(state.params, alone[0].params, atol=1e-5)


def test_several_steps_in_one_dispatch_are_the_same_steps(alone):
    config = config_of()
    mesh = sharding.mesh(devices=jax.devices()[:1])
    model = experiment.model(config)
    several = jax.jit(steps.several(experiment.train_step(config, experiment.trainee(config, model), mesh)))
    batches = jax.tree.map(lambda *arrays: np.stack(arrays), *(batch_of(seed=n) for n in range(3)))
    state, metrics = several(
        experiment.initial_state(config, experiment.trainee(config, model), mesh), batches, jax.random.key(0)
    )
    np.testing.assert_allclose(metrics["loss"], alone[1], rtol=1e-6)
    assert int(state.step) == 3


@pytest.fixture(scope="module")
def dropping():
    """A step with dropout and half of the labels dropped, not donating, and a state to start from."""
    config = config_of(model__dropout=0.3, condition_dropout=0.5)
    model = small_model(config)
    mesh = sharding.mesh(devices=jax.devices()[:1])
    return jax.jit(experiment.train_step(config, experiment.trainee(config, model), mesh)), shifted(
        experiment.initial_state(config, experiment.trainee(config, model), mesh)
    )


def test_a_step_depends_on_state_batch_and_seed_alone(dropping):
    step, start = dropping
    once, _ = step(start, batch_of(), jax.random.key(0))
    again, _ = step(start, batch_of(), jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, once, again)
    losses = {
        float(step(state, batch, key)[1]["loss"])
        for state, batch, key in [
            (start, batch_of(), jax.random.key(0)),
            (start._replace(step=jnp.int32(1)), batch_of(), jax.random.key(0)),
            (start, batch_of(seed=1), jax.random.key(0)),
            (start, batch_of(), jax.random.key(1)),
        ]
    }
    assert len(losses) == 4


def test_a_step_that_is_not_finite_changes_nothing_but_the_count(dropping):
    step, start = dropping
    image = batch_of()["x"]
    for bad in (np.nan, np.inf, 1e30):  # the last overflows in the loss
        batch = batch_of() | {"x": np.where(np.arange(16).reshape(-1, 1, 1, 1) == 5, np.float32(bad), image)}
        state, metrics = step(start, batch, jax.random.key(0))
        assert not np.isfinite(float(metrics["loss"]))
        assert float(metrics["loss_by_time"].weight.sum()) == 0
        assert int(state.step) == int(start.step) + 1
        jax.tree.map(np.testing.assert_array_equal, state._replace(step=start.step), start)
    after, metrics = step(state, batch_of(), jax.random.key(0))
    jax.tree.map(
        np.testing.assert_array_equal, after, step(start._replace(step=state.step), batch_of(), jax.random.key(0))[0]
    )
    assert np.isfinite(float(metrics["loss"]))


def test_condition_dropout_replaces_labels_by_the_null_class(dropping):
    """At a rate of 1/2, changing one example's label changes the loss for about half of the examples, and no more."""
    step, start = dropping
    batch = batch_of()

    def loss(labels):
        return float(step(start, batch | {"label": labels}, jax.random.key(0))[1]["loss"])

    changed = [np.where(np.arange(16) == i, (batch["label"] + 1) % 10, batch["label"]) for i in range(16)]
    kept = sum(loss(labels) != loss(batch["label"]) for labels in changed)
    assert 3 <= kept <= 13  # 16 fair coins: outside with probability 0.4%, and the seed is fixed


def test_the_loss_falls():
    config = config_of(train__batch_size=64, optimizer__learning_rate=5e-3)
    mesh = sharding.mesh(devices=jax.devices()[:1])
    model = experiment.model(config)
    step = experiment.compiled_step(config, experiment.trainee(config, model), mesh)
    state, losses = experiment.initial_state(config, experiment.trainee(config, model), mesh), []
    batch = {"x": jnp.zeros((64, 8, 8, 1)) + 0.5, "label": jnp.zeros(64, jnp.int32)}
    for _ in range(60):
        state, metrics = step(state, batch, jax.random.key(0), {})
        losses.append(float(metrics["loss"]))
    assert np.mean(losses[-10:]) < 0.5 * losses[0]


def test_importance_sampled_times_learn_where_the_loss_is():
    """The history fills, is part of the state, and then draws times of larger loss more often, weighted down for it."""
    config = config_of(schedule="cosine(steps=4)", times="loss_second_moment(history=2)", train__batch_size=64)
    config.sample.steps = 4
    mesh = sharding.mesh(devices=jax.devices()[:1])
    model = small_model(config)
    step = jax.jit(experiment.train_step(config, experiment.trainee(config, model), mesh))
    state = experiment.initial_state(config, experiment.trainee(config, model), mesh)
    for n in range(3):
        state, metrics = step(state, batch_of(64, n), jax.random.key(0))
    assert (np.asarray(state.history.counts) > 2).all()
    assert np.asarray(state.history.losses).min() > 0
    assert np.isfinite(float(metrics["loss"]))


@pytest.mark.parametrize(
    "changes",
    [
        {"prediction": "v", "weighting": "min_snr(gamma=5.0)", "distance": "huber"},
        {"prediction": "eps(learned_variance=True)"},
        {"prediction": "eps(learned_variance=True)", "objective": "vlb", "times": "loss_second_moment"},
        {"schedule": "linear(steps=100) | zero_snr", "prediction": "v"},
        {"schedule": "edm", "prediction": "edm", "times": "log_normal", "weighting": "edm"},
        {"schedule": "rectified_flow | time_shift(scale=3.0)", "prediction": "flow", "times": "logit_normal"},
        {"schedule": "ve", "prediction": "score(sigma_data=0.5)", "times": "low_discrepancy", "weighting": "elbo"},
        {"schedule": "learned(hidden=16)", "objective": "vdm", "times": "low_discrepancy"},
    ],
    ids=lambda changes: " ".join(changes.values()),
)
def test_each_formulation_takes_a_finite_step(changes):
    config = config_of(**changes)
    mesh = sharding.mesh(devices=jax.devices()[:1])
    model = small_model(config)
    state, metrics = jax.jit(experiment.train_step(config, experiment.trainee(config, model), mesh))(
        experiment.initial_state(config, experiment.trainee(config, model), mesh), batch_of(), jax.random.key(0)
    )
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((state, metrics)))


def test_a_learned_schedule_learns_and_is_sampled_as_it_was_learned():
    config = config_of(schedule="learned(hidden=16)", objective="vdm", times="low_discrepancy")
    mesh = sharding.mesh(devices=jax.devices()[:1])
    model = small_model(config)
    start = experiment.initial_state(config, experiment.trainee(config, model), mesh)
    step = jax.jit(experiment.train_step(config, experiment.trainee(config, model), mesh))
    state = start
    for n in range(3):
        state, _ = step(state, batch_of(16, n), jax.random.key(0))
    before, after = (model.bind(s.params).schedule.logsnr(np.linspace(0, 1, 9)) for s in (start, state))
    assert np.abs(after - before).max() > 1e-3
    assert (np.diff(after) < 0).all()
    how = dataclasses.replace(experiment.sampling(config), sampler="dpmpp_2m", steps=4)
    program = experiment.sample_program(model, how, mesh)
    seeds = np.arange(2, dtype=np.int32)
    learned = state.params["schedule"]
    with_learned, with_other = (
        np.asarray(program(state.params | {"schedule": schedule}, {}, seeds, {"label": seeds}))
        for schedule in (learned, learned | {"ends": jnp.array([5.0, -1.0])})
    )
    assert np.isfinite(with_learned).all()
    assert np.abs(with_learned - with_other).max() > 0.01
