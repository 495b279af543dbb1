"""The gated feed-forward layer by a Pallas kernel for TPUs, run by XLA, against the layer by XLA's operations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from diffusion_jax.nets import gated_kernel, geglu, tpu_kernels
from diffusion_jax.nets.geglu import FeedForward
from diffusion_jax.train import sharding

KERNEL = geglu.by_kernel(interpret=True)


def arguments(dtype=jnp.float32, batch=2, tokens=300, channels=24, inner=256):
    """x, six weights and a cotangent; the tokens are no multiple of a block, the inner width has two parts of 128."""
    keys = iter(jax.random.split(jax.random.key(0), 8))
    x, g = (jax.random.normal(next(keys), (batch, tokens, channels), dtype) for _ in range(2))
    shapes = {"linear": (channels, inner), "gate": (channels, inner), "project": (inner, channels)}
    weights = [
        jax.random.normal(next(keys), shape) * scale
        for rows, columns in shapes.values()
        for shape, scale in (((rows, columns), rows**-0.5), ((columns,), 1.0))
    ]
    return (x, *weights), g


def both_ways(f, args, g):
    out, pull = jax.vjp(f, *args)
    return [out, *pull(g)]


def close(got, expected, tolerance):
    for mine, its in zip(got, expected, strict=True):
        assert mine.shape == its.shape
        scale = float(jnp.abs(its).max())
        np.testing.assert_allclose(mine.astype(jnp.float32), its, atol=tolerance * scale)


@pytest.fixture
def parts_of_128(monkeypatch):
    monkeypatch.setattr(gated_kernel, "PART", 128)


@pytest.mark.usefixtures("parts_of_128")
class TestKernel:
    def test_it_gives_the_layer_and_all_gradients(self):
        args, g = arguments()
        close(both_ways(KERNEL, args, g), both_ways(geglu.feed_forward, args, g), 1e-5)

    def test_in_16_bits_it_is_near_the_layer_in_32(self):
        args, g = arguments(jnp.bfloat16)
        exact = [args[0].astype(jnp.float32), *args[1:]]
        got = both_ways(KERNEL, args, g)
        assert [a.dtype for a in got] == [jnp.bfloat16] * 2 + [jnp.float32] * 6
        close(got, both_ways(geglu.feed_forward, exact, g.astype(jnp.float32)), 2e-2)

    @pytest.mark.parametrize("axis", ["data", "fsdp"])
    def test_over_two_devices_gradients_of_the_weights_are_summed(self, axis):
        args, g = arguments()
        mesh = sharding.mesh(**({"data": 1, "fsdp": 1, "tensor": 1} | {axis: 2}), devices=jax.devices()[:2])
        program = jax.jit(sharding.on_mesh(mesh, lambda args, g: both_ways(KERNEL, args, g)))
        split = NamedSharding(mesh, PartitionSpec(axis))
        placed = (jax.device_put(args[0], split), *args[1:]), jax.device_put(g, split)
        close(program(*placed), both_ways(geglu.feed_forward, args, g), 1e-5)

    def test_forward_mode_and_its_gradient_are_those_of_the_layer(self):
        args, g = arguments()

        def everything(f):
            moved = lambda x: jax.jvp(lambda x: f(x, *args[1:]), (x,), (g,))[1]  # noqa: E731
            mapped = jax.vmap(lambda x: f(x[None], *args[1:])[0])
            return [
                moved(args[0]),
                jax.grad(lambda x: jnp.square(moved(x)).sum())(args[0]),
                *both_ways(mapped, args[:1], g),
            ]

        close(everything(KERNEL), everything(geglu.feed_forward), 1e-5)


def test_what_it_takes():
    """The layers of Stable Diffusion's U-Net on 64 x 64 and 32 x 32 latents."""
    assert gated_kernel.takes(320, 1280)
    assert gated_kernel.takes(640, 2560)
    assert not gated_kernel.takes(1280, 5120)
    assert not gated_kernel.takes(24, 96)  # no part is a multiple of 128


@pytest.mark.parametrize("choice", ["auto", "xla"])
def test_it_is_in_the_program_for_a_tpu_alone(choice):
    x = jax.ShapeDtypeStruct((2, tpu_kernels.FEWEST_TOKENS, 64), jnp.bfloat16)
    layer = FeedForward(choice, dtype=jnp.bfloat16)
    params = jax.eval_shape(layer.init, jax.random.key(0), x)
    step = jax.value_and_grad(lambda *a: layer.apply(*a).astype(jnp.float32).sum())

    def calls(platform, **sizes):
        mesh = sharding.mesh(
            **({"data": 1, "fsdp": 1, "tensor": 1} | sizes), devices=jax.devices()[: 2 if sizes else 1]
        )
        traced = jax.jit(sharding.on_mesh(mesh, step)).trace(params, x)
        return traced.lower(lowering_platforms=(platform,)).as_text().count("tpu_custom_call")

    expected = 2 if choice == "auto" else 0
    assert (calls("tpu"), calls("cpu")) == (expected, 0)
    assert (calls("tpu", data=2), calls("tpu", tensor=2)) == (expected, 0)
