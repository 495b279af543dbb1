"""Objectives: what all of them keep, and what is each one's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.core import classification, objectives
from diffusion_jax.core.losses import l2
from diffusion_jax.core.objectives import OBJECTIVES, Drawn, Examples, Objective, Setting, Trained
from diffusion_jax.core.predictions import PREDICTIONS
from diffusion_jax.core.schedules import SCHEDULES
from diffusion_jax.core.times import TIMES, loss_second_moment
from diffusion_jax.core.weightings import WEIGHTINGS
from diffusion_jax.errors import UserError
from diffusion_jax.testing import check_objective

LINEAR = SCHEDULES["linear"]()


ARGUMENTS = {"progressive": {"steps": 4}}
"""Of the objectives that have no defaults for all of theirs."""


def setting(times=None, prediction="v"):
    return Setting(LINEAR, PREDICTIONS[prediction](), times or TIMES["uniform"](), WEIGHTINGS["constant"](), l2())


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_conforms(name):
    check_objective(OBJECTIVES[name](**ARGUMENTS.get(name, {})))


def broken(**changes):
    """`simple` with some of its functions exchanged."""

    def make(setting):
        base = OBJECTIVES["simple"]()(setting)
        return Objective(**{"draw": base.draw, "loss": base.loss} | {k: change(base) for k, change in changes.items()})

    return make


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            broken(loss=lambda base: lambda trained, values: jnp.mean(base.loss(trained, values))),
            "one number an example",
        ),
        (
            broken(
                loss=lambda base: lambda trained, values: base.loss(trained, values) - base.loss(trained, values).mean()
            ),
            "depends on no other example",
        ),
        (
            broken(draw=lambda base: lambda *a: Drawn(base.draw(*a).values, jnp.ones(1))),
            "leads with the batch",
        ),
        (broken(loss=lambda base: lambda trained, values: values.t), "has a gradient by what is trained"),
    ],
)
def test_the_suite_finds_what_is_no_objective(make, message):
    with pytest.raises(AssertionError, match=message):
        check_objective(make)


def test_uncertainty_starts_as_simple_and_learns_the_log_of_each_levels_mean_loss():
    """At the minimum of exp(-u) L + u in u, u = log L: found by gradient descent on u alone, losses by level fixed."""
    objective = OBJECTIVES["uncertainty"](channels=64)(setting())
    t = jnp.linspace(0.05, 1.0, 20)
    x0 = jnp.ones((20, 1, 1, 1))
    values = objectives.Noised(x0, {}, t, jnp.zeros_like(x0))
    size = jnp.exp(1.5 * jnp.sin(3 * t))  # the loss that each level is to have

    def apply(x, conditioning, cond):
        target = PREDICTIONS["v"]().target(x0, jnp.zeros_like(x0), LINEAR.level(t))
        return target + jnp.sqrt(size).reshape(-1, 1, 1, 1)

    own = objective.init(jax.random.key(0)).params
    loss = lambda own: objective.loss(Trained({}, {}, apply, LINEAR, own), values)  # noqa: E731
    np.testing.assert_allclose(loss(own), size, rtol=1e-5)
    step = jax.jit(lambda own: jax.tree.map(lambda p, g: p - 0.5 * g, own, jax.grad(lambda o: loss(o).mean())(own)))
    for _ in range(3000):
        own = step(own)
    # With u = log L the loss of each level is 1 + log L.
    np.testing.assert_allclose(loss(own), 1 + np.log(size), atol=0.02)


def test_an_objective_whose_times_learn_keeps_their_history():
    objective = OBJECTIVES["simple"]()(setting(times=loss_second_moment(history=2)))
    memory = objective.init(jax.random.key(0))
    drawn = objective.draw(jax.random.key(1), Examples(jnp.zeros((8, 2, 2, 1)), {}), memory.history, jnp.int32(0))
    history = objective.update(memory.history, drawn, jnp.arange(8.0))
    assert int(history.counts.sum()) == 8
    assert int(memory.history.counts.sum()) == 0


def test_the_bounds_two_noises_are_two():
    objective = OBJECTIVES["vdm"]()(setting())
    drawn = objective.draw(jax.random.key(0), Examples(jnp.zeros((4, 8, 8, 1)), {}), (), jnp.int32(0))
    correlation = np.corrcoef(np.ravel(drawn.values.noised.eps), np.ravel(drawn.values.eps_start))[0, 1]
    assert abs(correlation) < 0.2
    with pytest.raises(UserError, match="no variances to learn"):
        OBJECTIVES["vdm"]()(Setting(LINEAR, PREDICTIONS["eps"](learned_variance=True), TIMES["uniform"](), None, l2()))


def test_cross_entropy_is_minus_the_log_of_the_softmax():
    objective = classification.cross_entropy(TIMES["uniform"](), LINEAR)
    logits = jnp.array([[0.0, 1.0, -2.0], [3.0, 3.0, 3.0]])
    values = classification.Labelled(jnp.zeros((2, 4)), jnp.array([1, 2]), jnp.ones(2), jnp.zeros((2, 4)))
    found = objective.loss(Trained({}, {}, lambda x, t, cond: logits, LINEAR), values)
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found, [-np.log(p[0, 1]), np.log(3)], rtol=1e-6)
