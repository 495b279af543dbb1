"""The noisy classifier: its pooling in closed form, what reaches its parameters, what it learns and refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffusion_jax.errors import UserError
from diffusion_jax.nets.classifier import AttentionPool, Classifier

TINY = Classifier(2, channels=8, multipliers=(1, 2), blocks=1, attention=(2,), head_channels=8, groups=4)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def perturbed(params):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda p: p + 0.1 * rng.standard_normal(p.shape).astype(np.float32), params)


def test_attention_pooling_is_the_formula_in_float64():
    x = normal(2, 3, 4, 8)
    pool = AttentionPool(5, heads=2)
    params = pool.init(jax.random.key(0), x)["params"]
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), perturbed(params))
    tokens = x.astype(np.float64).reshape(2, 12, 8)
    tokens = np.concatenate([tokens.mean(1, keepdims=True), tokens], 1) + p["position"]
    q, k, v = ((tokens @ p[n]["kernel"] + p[n]["bias"]).reshape(2, 13, 2, 4) for n in ("query", "key", "value"))
    weights = np.exp(np.einsum("bhd,bmhd->bhm", q[:, 0], k) / 2.0)
    pooled = np.einsum("bhm,bmhd->bhd", weights / weights.sum(-1, keepdims=True), v).reshape(2, 8)
    expected = pooled @ p["out"]["kernel"] + p["out"]["bias"]
    np.testing.assert_allclose(pool.apply({"params": perturbed(params)}, x), expected, rtol=1e-4, atol=1e-4)


def test_the_gradient_reaches_every_parameter():
    net, x, t = TINY.clone(num_classes=5), normal(3, 8, 2), np.float32([1.0, 10.0, 999.0])

    @jax.jit
    def run(x, t):
        params = perturbed(net.init(jax.random.key(0), x, t)["params"])
        out, back = jax.vjp(lambda params: net.apply({"params": params}, x, t), params)
        return out, back(normal(*out.shape, seed=1))[0]

    logits, gradient = run(x, t)
    assert logits.shape == (3, 5)
    for path, g in jax.tree_util.tree_leaves_with_path(gradient):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        # Softmax is indifferent to a key's bias.
        if not name.endswith("key/bias"):
            assert np.abs(g).max() > 1e-6, name


@pytest.mark.parametrize("shape", [(3, 8, 2), (3, 4, 8, 2), (1, 4, 6, 2, 1)])
def test_bfloat16_computes_between_float32_parameters_and_logits(shape):
    net, x, t = TINY.clone(num_classes=5, dtype=jnp.bfloat16), jnp.zeros(shape), jnp.zeros(shape[0])
    logits, variables = jax.eval_shape(net.init_with_output, jax.random.key(0), x, t)
    assert logits.shape == (shape[0], 5)
    assert {a.dtype for a in [logits, *jax.tree.leaves(variables)]} == {jnp.dtype("float32")}
    text = str(jax.make_jaxpr(net.init_with_output)(jax.random.key(0), x, t))
    assert "bf16[" in text
    assert all("bf16[" in line for line in text.splitlines() if "conv_general_dilated[" in line)


def test_a_few_steps_separate_two_classes_of_noisy_sequences():
    """Slow and fast waves of random phase, under noise of the time's size."""
    net, rng = TINY.clone(attention=()), np.random.default_rng(0)

    def draw(n):
        label = rng.integers(0, 2, n)
        phase = 2 * np.pi * (np.arange(16) * np.where(label, 4, 1)[:, None] / 16 + rng.random((n, 1)))
        t = rng.random(n)
        x = np.sqrt(1 - t**2)[:, None] * 1.4 * np.sin(phase) + t[:, None] * 0.5 * rng.standard_normal((n, 16))
        return np.float32(x[..., None]), np.float32(999 * t), label

    params = jax.jit(net.init)(jax.random.key(0), *draw(64)[:2])["params"]
    optimizer = optax.adam(3e-3)
    apply = jax.jit(lambda params, x, t: net.apply({"params": params}, x, t))

    @jax.jit
    def step(params, state, x, t, label):
        def loss(params):
            logits = net.apply({"params": params}, x, t)
            return optax.softmax_cross_entropy_with_integer_labels(logits, label).mean()

        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return optax.apply_updates(params, updates), state

    def accuracy(params):
        x, t, label = draw(64)
        clear = t < 800
        return (np.asarray(apply(params, x, t)).argmax(-1) == label)[clear].mean()

    state = optimizer.init(params)
    for _ in range(40):
        params, state = step(params, state, *draw(64))
    assert accuracy(params) > 0.95


def test_an_image_of_another_size_is_refused_in_one_sentence():
    x, t = jnp.zeros((1, 4, 8, 2)), jnp.zeros(1)
    shapes = jax.eval_shape(TINY.init, jax.random.key(0), x, t)
    with pytest.raises(UserError, match="pools 8 positions at its lowest resolution; got 16; give it images of"):
        jax.eval_shape(TINY.apply, shapes, jnp.zeros((1, 8, 8, 2)), t)


@pytest.mark.parametrize(
    ("net", "size", "message"),
    [
        (TINY, 7, "2 levels .* multiple of 2; got 7"),
        (TINY.clone(attention=(4,)), 8, r"downsampling factors of the levels, \[1, 2\]; got \[4\]"),
        (TINY.clone(head_channels=5), 8, "16 channels cannot be split into attention heads of 5"),
    ],
)
def test_what_does_not_fit_is_refused(net, size, message):
    with pytest.raises(UserError, match=message):
        jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, size, 2)), jnp.zeros(1))


def test_the_pooled_features_are_what_the_last_layer_sees():
    x = normal(2, 3, 4, 8)
    pool = AttentionPool(5, heads=2)
    variables = pool.init(jax.random.key(0), x)
    assert set(variables) == {"params"}
    logits, aside = pool.apply(variables, x, mutable=["intermediates"])
    (pooled,) = aside["intermediates"]["pooled"]
    assert pooled.shape == (2, 8)
    out = variables["params"]["out"]
    np.testing.assert_allclose(pooled @ out["kernel"] + out["bias"], logits, rtol=1e-5, atol=1e-6)
