"""Tokens split over the mesh axis `context`: what comes out is what one device gives."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.errors import UserError
from diffusion_jax.nets.dit import DiT
from diffusion_jax.nets.unet import UNet
from diffusion_jax.train import sharding


def mesh_of(**sizes):
    """A mesh of four devices."""
    return sharding.mesh(**({"data": 1} | sizes), devices=jax.devices()[:4])


NETS = {
    "dit": lambda: DiT(out_channels=2, patch=1, width=32, depth=2, heads=4, waves=8),
    "remat": lambda: DiT(out_channels=2, patch=1, width=32, depth=2, heads=4, waves=8, remat="attention"),
    "unet, flash": lambda: UNet(
        out_channels=2, channels=16, multipliers=(1,), blocks=1, attention=(1,), groups=4, heads=4,
        attention_kernel="flash",
    ),
}  # fmt: skip


def spread(params):
    """Parameters that no layer starts at zero with."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(3), len(leaves))
    return jax.tree.unflatten(
        tree, [0.3 * jax.random.normal(key, a.shape) for key, a in zip(keys, leaves, strict=True)]
    )


def program_and_arguments(net, mesh, side):
    """(program, its arguments) of the mean square of what a network gives, and its gradients, on a mesh."""
    x = jax.random.normal(jax.random.key(0), (4, side, side, 2))
    t = jnp.linspace(0.1, 0.9, 4)
    params = spread(jax.eval_shape(net.init, jax.random.key(1), x, t)["params"])

    def loss(params, x):
        return jnp.square(net.apply({"params": params}, x, t)).mean()

    split = sharding.batch_sharding(mesh)
    program = jax.jit(
        sharding.on_mesh(mesh, jax.value_and_grad(loss, argnums=(0, 1))),
        in_shardings=(sharding.replicated(mesh), split),
    )
    return program, (params, x)


def compiled(net, mesh, side=4):
    program, arguments = program_and_arguments(net, mesh, side)
    return program.lower(*arguments).compile()


def value_and_gradients(net, mesh, side=4):
    program, arguments = program_and_arguments(net, mesh, side)
    return program(*arguments)


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("dit", {"context": 4}),
        ("remat", {"data": 2, "context": 2}),
        pytest.param("unet, flash", {"tensor": 2, "context": 2}, marks=pytest.mark.slow),
    ],
)
def test_the_result_does_not_depend_on_the_axis(name, sizes):
    expected = value_and_gradients(NETS[name](), sharding.mesh(1, devices=jax.devices()[:1]))
    got = value_and_gradients(NETS[name](), mesh_of(**sizes))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), got, expected)


def test_tokens_are_split_and_self_attention_swaps_the_split():
    """Between the patches' embedding and the last layer no device gathers tokens: all-to-alls move parts of heads."""
    text = compiled(NETS["dit"](), mesh_of(context=4), side=8).as_text()
    moved = re.findall(r" (all-to-all|all-gather|collective-permute)(?:-start)?\(.*op_name=\"([^\"]*)\"", text)
    inside = [kind for kind, where in moved if "/layers/" in where]
    assert inside == ["all-to-all"] * 8  # of query, key, value and output, and of their gradients
    assert "f32[4,64,32]" not in text  # [B, N, D]


@pytest.mark.parametrize(
    ("heads", "side", "said"),
    [
        (2, 4, "mesh.context=4 does not divide the 2 heads of an attention; choose sizes that do"),
        (4, 3, "mesh.context=4 does not divide a sequence of 9 tokens; choose a size that does"),
    ],
)
def test_tokens_and_heads_that_the_axis_does_not_divide_are_refused(heads, side, said):
    net = DiT(out_channels=2, patch=1, width=32, depth=1, heads=heads, waves=8)
    with pytest.raises(UserError, match=said):
        value_and_gradients(net, mesh_of(context=4), side)
