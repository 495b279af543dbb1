"""FLOPs against counts by hand, and against XLA's own count of a program before it is optimized."""

import jax
import jax.numpy as jnp
import pytest

from diffusion_jax.nets import attention, attention_kernels
from diffusion_jax.runs.plan import flops
from diffusion_jax.train import sharding


def work(f, *args):
    return flops.count(jax.jit(f).trace(*args).jaxpr)


def conv(x, w, stride=1, groups=1):
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, w, (stride,) * 2, "SAME", None, None, numbers, groups)


def dense(x, w):
    return jnp.sum((x @ w) ** 2)


X, W = jnp.zeros((5, 7)), jnp.zeros((7, 3))
PRODUCT = 2 * 5 * 7 * 3


@pytest.mark.parametrize(
    ("f", "products"),
    [
        (dense, 1),
        (jax.grad(dense, argnums=1), 2),  # x w, and x^T times the gradient of x w
        (jax.grad(dense, argnums=(0, 1)), 3),
        (jax.grad(lambda x, w: jax.checkpoint(dense)(x, w), argnums=(0, 1)), 4),  # x w is computed again
        (lambda x, w: jax.lax.cond(x[0, 0] > 0, lambda: dense(x, w), lambda: 0.0), 1),
        (jax.vmap(lambda x, w: x @ w, in_axes=(0, None)), 1),
    ],
)
def test_matrix_products_by_hand(f, products):
    assert work(f, X, W) == (products * PRODUCT, products * PRODUCT, 0)


def test_a_scan_counts_its_length_and_so_does_its_gradient():
    def loss(x, ws):
        return jnp.sum(jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, ws)[0])

    x, ws = jnp.zeros((5, 7)), jnp.zeros((11, 7, 7))
    body = 2 * 5 * 7 * 7
    assert work(loss, x, ws) == (11 * body, body, 0)
    assert work(jax.grad(loss, argnums=(0, 1)), x, ws) == (3 * 11 * body, 3 * body, 0)


@pytest.mark.parametrize(("unroll", "seen"), [(1, 1), (2, 2), (True, 8)])
def test_what_is_unrolled_is_seen_by_the_compiler(unroll, seen):
    def f(x, ws):
        return jax.lax.scan(lambda x, w: (x @ w, None), x, ws, unroll=unroll)[0]

    x, ws = jnp.zeros((50, 70)), jnp.zeros((8, 70, 70))
    body = 2 * 50 * 70 * 70
    assert work(f, x, ws) == (8 * body, seen * body, 0)
    assert jax.jit(f).lower(x, ws).compile().cost_analysis()["flops"] == pytest.approx(seen * body, rel=0.05)


def test_of_ways_to_do_the_same_the_one_without_a_loop_is_taken():
    def f(x):
        parts = x.reshape(4, 2, 7)
        looped = lambda: jax.lax.map(lambda part: part @ W, parts).reshape(8, 3)  # noqa: E731
        return jax.lax.platform_dependent(cpu=looped, default=lambda: x @ W)

    assert work(f, jnp.zeros((8, 7))) == (2 * 8 * 7 * 3, 2 * 8 * 7 * 3, 0)


def test_a_loop_of_unknown_length_is_told():
    def f(x, w):
        return jax.lax.while_loop(lambda x: jnp.sum(x) < 1, lambda x: x @ w, x)

    assert work(f, jnp.zeros((5, 7)), jnp.zeros((7, 7))) == (2 * 5 * 7 * 7, 2 * 5 * 7 * 7, 1)


@pytest.mark.parametrize(("stride", "taps"), [(1, 8 * 3 - 2), (2, 4 * 3 - 1)])  # of each axis, without what is padding
def test_a_convolution_and_its_two_gradients_by_hand(stride, taps):
    x, w = jnp.zeros((2, 8, 8, 3)), jnp.zeros((3, 3, 3, 5))
    one = 2 * 2 * 3 * 5 * taps**2
    assert work(lambda x, w: conv(x, w, stride), x, w).flops == one
    grad = jax.grad(lambda x, w: jnp.sum(conv(x, w, stride) ** 2), argnums=(0, 1))
    assert work(grad, x, w).flops == 3 * one


@pytest.mark.parametrize(("stride", "groups"), [(1, 1), (2, 1), (1, 2), (2, 2)])
def test_convolutions_as_xla_counts_them(stride, groups):
    x, w = jnp.zeros((4, 9, 9, 6)), jnp.zeros((3, 3, 6 // groups, 8))
    y = conv(x, w, stride, groups)
    cases = [
        (lambda x: conv(x, w, stride, groups), x),
        (lambda y: jax.linear_transpose(lambda x: conv(x, w, stride, groups), x)(y)[0], y),
        (lambda y: jax.linear_transpose(lambda w: conv(x, w, stride, groups), w)(y)[0], y),
    ]
    for f, argument in cases:
        assert work(f, argument).flops == jax.jit(f).lower(argument).cost_analysis()["flops"]


def test_attention_counts_by_the_platform_it_is_compiled_for():
    """The jaxpr of a TPU's kernel has the work of one block; that of all is in no loop."""
    q = jnp.zeros((1, attention.FLASH_FROM, 1, 8))
    products = 2 * 2 * attention.FLASH_FROM**2 * 8  # of queries and keys, of probabilities and values
    chunks = attention.FLASH_FROM // attention_kernels.CHUNK
    mesh = sharding.mesh(1, 1, 1, devices=jax.devices()[:1])
    traced = jax.jit(sharding.on_mesh(mesh, attention.attend)).trace(q, q, q).jaxpr
    assert flops.count(traced, "tpu") == (products, products, 0)
    assert flops.count(traced, "cpu") == (products, products // chunks, 0)
    assert work(lambda q: attention.attend(q, q, q, kernel="xla"), q).flops == products


def test_the_tangent_of_attention_counts():
    q = jnp.zeros((1, 6, 1, 8))
    along = lambda kernel: lambda q, t: jax.jvp(lambda q: attention.attend(q, q, q, kernel=kernel), (q,), (t,))[1]  # noqa: E731
    assert work(along("flash"), q, q).flops >= work(along("xla"), q, q).flops > 0
