"""Arguments of a wrong shape are named at the public entries of `core`, where they would broadcast otherwise."""

import jax
import jax.numpy as jnp
import pytest

from diffusion_jax import core
from diffusion_jax.core import editing
from diffusion_jax.core.denoisers import from_network
from diffusion_jax.core.predictions import PREDICTIONS, Prediction

SCHEDULE = core.schedules.cosine(steps=100)
EPS = PREDICTIONS["eps"]()
X = jnp.ones((4, 3, 2))
ONE = jnp.ones((1, 3, 2))
T = jnp.full(4, 0.5)
KEYS = jax.random.split(jax.random.key(0), 4)
TIMES = jnp.asarray([1.0, 0.5, 0.0])


def denoise(x, t):
    return Prediction(0 * x, x)


def network(x, t, cond):
    return x


def of_one_channel(x, t, cond):
    return x[..., :1]


CALLS = {
    "eps of one example": (lambda: core.diffuse(X, ONE, SCHEDULE.level(T)), "x0 and eps have one shape"),
    "one time": (
        lambda: core.denoising_loss(network, SCHEDULE, EPS, X, {}, T[:1], X),
        "t has one value for each of the 4",
    ),
    "a column of times": (
        lambda: core.vlb_loss(network, SCHEDULE, EPS, X, {}, T[:, None], X),
        r"t has one value for each of the 4 examples; got shape \(4, 1\)",
    ),
    "an output of one channel": (
        lambda: core.denoising_loss(of_one_channel, SCHEDULE, EPS, X, {}, T, X),
        r"the network's output for x \(4, 3, 2\)",
    ),
    "a denoiser's output": (
        lambda: from_network(of_one_channel, SCHEDULE, EPS)(X, T, {}),
        "the network's output for x",
    ),
    "one key": (
        lambda: core.integrate(denoise, core.SAMPLERS["ddim"](), SCHEDULE, TIMES, X, KEYS[:1]),
        "keys has one value for each of the 4",
    ),
    "noise of one example": (
        lambda: core.sample(denoise, core.SAMPLERS["ddim"](), SCHEDULE, TIMES, jnp.arange(4), (3, 2), start=ONE),
        r"start is \[B, \*shape\]",
    ),
    "an edit's seed": (
        lambda: editing.sample_from(denoise, core.SAMPLERS["ddim"](), SCHEDULE, TIMES[1:], jnp.arange(1), X),
        "seeds has one value for each of the 4",
    ),
    "a bound's keys": (lambda: core.variational_bound(denoise, SCHEDULE, X, KEYS[:1]), "keys has one value for each"),
    "a bound's noise": (
        lambda: core.continuous_bound(denoise, SCHEDULE, X, T, X, ONE),
        "x0 and eps and eps_start have one shape",
    ),
}


@pytest.mark.parametrize("call", CALLS)
def test_another_shape_is_named(call):
    run, message = CALLS[call]
    with pytest.raises(AssertionError, match=message):
        run()


def test_the_compiled_program_has_nothing_of_the_checks():
    """A line of arithmetic, whatever is checked before it."""
    level = SCHEDULE.level(T)
    jaxpr = jax.make_jaxpr(lambda x, eps: core.diffuse(x, eps, level))(X, X)
    assert {str(each.primitive) for each in jaxpr.eqns} <= {"mul", "add", "broadcast_in_dim", "reshape"}
