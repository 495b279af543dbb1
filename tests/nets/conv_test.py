"""The convolution against `lax.conv_general_dilated`: values, derivatives of every kind, and what is compiled."""

from functools import partial, reduce

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from diffusion_jax.nets import conv as conv_module
from diffusion_jax.nets.conv import conv, conv_upsampled, upsample_nearest


def reference(x, kernel, stride):
    rank = x.ndim - 2
    space = "DHW"[-rank:]
    names = (f"N{space}C", f"{space}IO", f"N{space}C")
    return lax.conv_general_dilated(x, kernel, (stride,) * rank, "SAME", dimension_numbers=names)


def draw(shape, rank=2, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape, np.float32)
    return x, rng.standard_normal((*(3 for _ in range(rank)), shape[-1], 5), np.float32)


CASES = [
    ((3, 16, 4), 1),
    ((3, 16, 4), 2),
    ((4, 8, 12, 3), 1),
    ((4, 8, 12, 3), 2),
    ((2, 4, 6, 8, 2), 2),
    ((2, 7, 5, 3), 1),
]


@pytest.mark.parametrize(("shape", "stride"), CASES)
def test_value_and_first_derivatives_are_those_of_lax(shape, stride):
    x, kernel = draw(shape, len(shape) - 2)

    @jax.jit
    def everything(x, kernel):
        def both(f):
            out, pull = jax.vjp(lambda x, kernel: f(x, kernel, stride), x, kernel)
            tangent = jax.jvp(lambda x, kernel: f(x, kernel, stride), (x, kernel), (jnp.sin(x), jnp.cos(kernel)))[1]
            return out, pull(jnp.sin(3 * out)), tangent

        return both(conv), both(reference)

    ours, expected = everything(x, kernel)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(b).max()), ours, expected)


# The last has few positions for its channels.
@pytest.mark.parametrize("shape", [(5, 5, 4), (6, 1, 6, 3), (4, 8, 8, 3), (2, 2, 3, 4, 2), (1, 2, 3, 4)])
def test_upsampled_is_the_convolution_of_what_is_upsampled(shape):
    """Value and both gradients, with edges of which some are all there is."""
    x, kernel = draw(shape, len(shape) - 2)

    @jax.jit
    def everything(x, kernel):
        def both(f):
            out, pull = jax.vjp(f, x, kernel)
            return out, pull(jnp.sin(3 * out))

        return both(conv_upsampled), both(lambda x, kernel: reference(upsample_nearest(x), kernel, 1))

    ours, expected = everything(x, kernel)
    assert ours[0].shape == (shape[0], *(2 * n for n in shape[1:-1]), 5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(b).max()), ours, expected)


@pytest.mark.parametrize("widths", [(1, 3), (5, 2), (4, 4), (2, 1)])
@pytest.mark.parametrize("stride", [1, 2])
def test_kernels_of_any_width(widths, stride):
    x, _ = draw((3, 6, 8, 4))
    kernel = np.random.default_rng(1).standard_normal((*widths, 4, 5), np.float32)

    def gradient(f):
        return jax.grad(lambda kernel: jnp.sin(f(x, kernel, stride)).sum())(kernel)

    np.testing.assert_allclose(gradient(conv), gradient(reference), rtol=1e-4, atol=1e-4)


def test_second_derivatives_and_vmap_are_those_of_lax():
    x, kernel = draw((3, 4, 4, 2))

    @jax.jit
    def both(x, kernel):
        def penalty(f):
            by_x = jax.grad(lambda x, kernel: jnp.sin(f(x, kernel, 1)).sum())
            return jax.grad(lambda kernel: jnp.square(by_x(x, kernel)).sum())(kernel)

        def per_example(f):
            return jax.vmap(lambda x: jax.grad(lambda kernel: jnp.sin(f(x[None], kernel, 1)).sum())(kernel))(x)

        return [(penalty(f), per_example(f)) for f in (conv, reference)]

    ours, expected = both(x, kernel)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * np.abs(b).max()), ours, expected)


@pytest.mark.parametrize("split", ["x", "kernel", "both"])
def test_gradients_inside_shard_map_are_those_outside(split):
    """Under the default check of varying axes: what one operand alone varies over is summed for the other."""
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    x, kernel = draw((2, 4, 4, 4))
    kernel = np.stack([kernel, np.cos(kernel)])
    xs, kernels = (P("data") if split in (name, "both") else P() for name in ("x", "kernel"))

    def loss(x, kernel):  # kernel [1 or 2, *K, C, D]
        h = sum(jnp.sin(conv(x, k, stride)).sum() for k in kernel for stride in (1, 2))
        return h + jnp.sin(conv_upsampled(x, kernel[-1])).sum()

    def total(x, kernel):
        return lax.psum(loss(x, kernel), "data")

    def reference(x, kernel):
        """The sum over the two devices."""
        parts = [np.array([0]), np.array([1])]
        rows = parts if split != "kernel" else [slice(None)] * 2
        kept = parts if split != "x" else [slice(None)] * 2
        return sum(loss(x[a], kernel[b]) for a, b in zip(rows, kept, strict=True))

    @jax.jit
    def everything(x, kernel):
        gradient = jax.shard_map(jax.grad(loss, (0, 1)), mesh=mesh, in_specs=(xs, kernels), out_specs=(xs, kernels))
        outside = jax.grad(jax.shard_map(total, mesh=mesh, in_specs=(xs, kernels), out_specs=P()), (0, 1))
        return gradient(x, kernel), outside(x, kernel), jax.grad(reference, (0, 1))(x, kernel)

    within, through, expected = everything(x, kernel)
    for ours in (within, through):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), ours, expected)


def test_reduced_precision_is_kept():
    x, kernel = (a.astype(jnp.bfloat16) for a in draw((2, 4, 4, 3)))
    out, pull = jax.vjp(lambda x, kernel: conv(x, kernel, 1), jnp.asarray(x), jnp.asarray(kernel))
    assert [a.dtype for a in (out, *pull(out))] == [jnp.bfloat16] * 3


def train_in_a_scan(xs, kernel):
    def loss(kernel, x):
        return jnp.square(conv(jax.nn.silu(conv(x, kernel, 1)), kernel, 2)).mean()

    return lax.scan(lambda kernel, x: (kernel - jax.grad(loss)(kernel, x), None), kernel, xs)[0]


SHAPES = jax.ShapeDtypeStruct((2, 4, 8, 8, 4), jnp.float32), jax.ShapeDtypeStruct((3, 3, 4, 4), jnp.float32)


def test_cpu_gets_the_one_form_that_is_fast_in_the_body_of_a_scan():
    text = jax.jit(train_in_a_scan).trace(*SHAPES).lower(lowering_platforms=("cpu",)).compile().as_text()
    convolutions = [line for line in text.splitlines() if " convolution(" in line]
    assert len(convolutions) == 3  # two forwards, one input gradient; both kernel gradients are products
    assert all("dim_labels=b01f_01io->b01f" in line for line in convolutions)


def test_upsampled_takes_four_ninths_of_the_products_on_cpu():
    def flops(f):
        return jax.jit(f).lower(jnp.ones((2, 32, 32, 8)), jnp.ones((3, 3, 8, 8))).compile().cost_analysis()["flops"]

    whole = flops(lambda x, kernel: conv(upsample_nearest(x), kernel, 1))
    assert flops(conv_upsampled) < 0.52 * whole  # 4/9 (33/32)^2, and the folding


@pytest.mark.parametrize("stride", [1, 2])
def test_the_forward_pass_keeps_no_more_than_its_operands(stride):
    x, kernel = draw((2, 8, 8, 4))
    pull = jax.jit(lambda x, kernel: jax.vjp(partial(conv, stride=stride), x, kernel)[1])(x, kernel)
    assert sum(kept.size for kept in jax.tree.leaves(pull)) <= x.size + kernel.size + 1  # and the platform


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_tpu_and_gpu_get_the_gradients_of_lax(platform):
    text = jax.jit(train_in_a_scan).trace(*SHAPES).lower(lowering_platforms=(platform,)).as_text()
    assert text.count("stablehlo.convolution") == 5
    assert "optimization_barrier" not in text
    assert "stablehlo.transpose" not in text


def test_layers_of_one_shape_are_traced_once(monkeypatch):
    traced, whole = [], conv_module._canonical
    monkeypatch.setattr(conv_module, "_canonical", lambda *args, **how: traced.append(1) or whole(*args, **how))
    x, kernel = jnp.ones((3, 7, 5, 11)), jnp.ones((3, 3, 11, 11))  # of no other test

    def trace(layers):
        def net(kernel):
            return reduce(lambda x, _: conv(x, kernel, 1), range(layers), x).sum()

        jax.eval_shape(jax.grad(net), kernel)
        return len(traced)

    once = trace(2)
    assert once > 0
    assert trace(8) == once
