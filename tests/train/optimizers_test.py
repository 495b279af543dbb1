"""Learning rates and optimizers against their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.errors import UserError
from diffusion_jax.train import ema
from diffusion_jax.train.optimizers import AdamOptions, LayerNames, learning_rate, optimizer


def test_warmup_rises_linearly_to_the_peak():
    rate = learning_rate(0.5, warmup=10, decay="constant", steps=100)
    np.testing.assert_allclose([rate(n) for n in range(12)], 0.5 * np.minimum(np.arange(1, 13) / 10, 1), rtol=1e-6)


def test_cosine_ends_at_zero_after_the_warmup():
    rate = learning_rate(0.5, warmup=10, decay="cosine", steps=110)
    after = np.arange(0, 101)
    expected = 0.5 * 0.5 * (1 + np.cos(np.pi * after / 100))
    np.testing.assert_allclose([rate(10 + n) for n in after], expected, atol=1e-6)


def test_adamw_step_is_the_papers():
    """Decoupled weight decay, arXiv:1711.05101, algorithm 2, re-derived for the first step."""
    p, g, rate, decay, eps = np.array([2.0, -3.0]), np.array([0.3, -0.1]), 0.1, 0.01, 1e-8
    tx = optimizer("adamw", AdamOptions(lambda _: rate, 0.9, 0.99, eps, weight_decay=decay), clip=0)
    updates, _ = tx.update(jnp.array(g), tx.init(jnp.array(p)), jnp.array(p))
    np.testing.assert_allclose(updates, -rate * (g / (np.abs(g) + eps) + decay * p), rtol=1e-5)


def test_muon_orthogonalizes_inner_matrices_and_leaves_the_rest_to_nadam():
    """The step on a matrix has singular values near 0.2 sqrt(larger side) rates, whatever the gradient's."""
    rng, rate, eps = np.random.default_rng(0), 0.1, 1e-8
    shapes = {"mid": {"kernel": (3, 3, 4, 8), "bias": (8,)}, "conv_in": {"kernel": (3, 3, 3, 4)}}
    grads = jax.tree.map(
        lambda shape: jnp.array(rng.normal(size=shape)), shapes, is_leaf=lambda x: isinstance(x, tuple)
    )
    options = AdamOptions(lambda _: rate, 0.9, 0.99, eps, weight_decay=0.0)
    tx = optimizer("muon", options, clip=0, layers=LayerNames(outer=("conv_in",)))
    updates, _ = tx.update(grads, tx.init(grads), grads)
    values = np.linalg.svd(updates["mid"]["kernel"].reshape(36, 8), compute_uv=False) / (0.2 * rate * np.sqrt(36))
    assert 0.6 < values.min() < values.max() < 1.3  # what five of its Newton-Schulz iterations give
    assert np.vdot(updates["mid"]["kernel"], grads["mid"]["kernel"]) < 0
    nadam = 0.9 * 0.1 / (1 - 0.9**2) + 1  # of the first step, over the gradient; Dozat 2016
    for name in (("mid", "bias"), ("conv_in", "kernel")):
        g, update = (tree[name[0]][name[1]] for tree in (grads, updates))
        np.testing.assert_allclose(update, -rate * nadam * g / (np.abs(g) + eps), rtol=1e-4)


def test_muon_takes_each_layer_of_a_stack_as_if_it_stood_alone():
    rng, options = np.random.default_rng(0), AdamOptions(lambda _: 0.1, 0.9, 0.99, 1e-8, weight_decay=0.1)
    tx = optimizer("muon", options, clip=0, layers=LayerNames(outer=("conv_in",), stacked=("layers",)))

    def step(params):
        return tx.update(params, tx.init(params), params)[0]

    layers = {"kernel": jnp.array(rng.normal(size=(3, 4, 8))), "bias": jnp.array(rng.normal(size=(3, 8)))}
    stacked = step({"layers": layers})["layers"]
    for i in range(3):
        alone = step({"layer": jax.tree.map(lambda a, i=i: a[i], layers)})["layer"]
        jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-4, atol=1e-6), stacked, alone)


def test_clipping_scales_the_global_norm():
    tx = optimizer("adam", AdamOptions(lambda _: 1.0, 0.0, 0.0, 1e9, weight_decay=0.0), clip=1.0)
    grads = {"a": jnp.array([30.0]), "b": jnp.array([40.0])}
    updates, _ = tx.update(
        grads, tx.init(grads), grads
    )  # an enormous eps makes Adam's step proportional to the gradient
    np.testing.assert_allclose([updates["a"][0] * -1e9, updates["b"][0] * -1e9], [0.6, 0.8], rtol=1e-5)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"name": "sgd"}, "unknown optimizer.name 'sgd'; choose from adam, adamw, muon"),
        ({"weight_decay": 0.1}, "needs optimizer.name='adamw' or 'muon'"),
        ({"mean_dtype": "float16"}, "optimizer.mean_dtype is one of float32, bfloat16; got 'float16'"),
    ],
)
def test_wrong_optimizers_are_named(wrong, message):
    chosen = {"name": "adam", "weight_decay": 0.0, "mean_dtype": "float32"} | wrong
    options = AdamOptions(lambda _: 0.1, 0.9, 0.99, 1e-8, chosen["weight_decay"], chosen["mean_dtype"])
    with pytest.raises(UserError, match=message):
        optimizer(chosen["name"], options, clip=0.0)


@pytest.mark.parametrize("name", ["adam", "adamw", "muon"])
def test_a_mean_in_16_bits_has_half_the_bytes_and_nearly_the_steps(name):
    """Each step differs by the rounding of the mean, 2^-9 at most of what it was; squares stay in 32 bits."""

    def steps(dtype):
        tx = optimizer(name, AdamOptions(lambda _: 0.01, 0.9, 0.999, 1e-8, 0.0, dtype), clip=0)
        params = {"kernel": jnp.zeros((8, 8)), "bias": jnp.zeros(8)}
        state, moved = tx.init(params), params
        for i in range(5):
            grads = jax.tree.map(lambda p, i=i: jax.random.normal(jax.random.key(i), p.shape), params)
            updates, state = tx.update(grads, state, moved)
            moved = jax.tree.map(jnp.add, moved, updates)
        return moved, {a.dtype for a in jax.tree.leaves(state) if jnp.issubdtype(a.dtype, jnp.floating) and a.ndim}

    (exact, _), (got, types) = steps("float32"), steps("bfloat16")
    assert types == ({jnp.dtype("bfloat16"), jnp.dtype("float32")})
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=5 * 0.01 * 2**-6), got, exact)


def test_average_is_the_weighted_sum_of_its_history():
    history = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    average = jnp.array(history[0])
    for p in history[1:]:
        average = ema.update(average, jnp.array(p), jnp.float32(0.8))
    weights = np.array([0.8**19] + [0.2 * 0.8 ** (19 - n) for n in range(1, 20)])
    np.testing.assert_allclose(average, weights @ history, rtol=1e-5)


def test_average_of_a_constant_is_exactly_the_constant():
    p = jnp.array([0.1, 1e-7, 3e5])
    assert (ema.update(p, p, jnp.float32(0.3)) == p).all()


def test_warmup_forgets_the_initialisation():
    """With warm-up the first parameters weigh 10! / (n + 10)! ...: under 1e-3 after 50 steps, against 0.99 without."""
    with_warmup = without = 1.0
    for n in range(50):
        with_warmup *= float(ema.decay_at(jnp.int32(n), 0.9999, warmup=True))
        without *= float(ema.decay_at(jnp.int32(n), 0.9999, warmup=False))
    assert with_warmup < 1e-3
    assert without > 0.99
    assert float(ema.decay_at(jnp.int32(10**7), 0.9999, warmup=True)) == pytest.approx(0.9999)
