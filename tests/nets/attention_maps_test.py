"""Attention to text that is read from outside: it is the layers' own, and leaves no trace in them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.nets.attention_maps import mean_map, probabilities, text_attention
from diffusion_jax.nets.transformer import Attention
from diffusion_jax.nets.unet import UNet

TOKENS, WIDTH = 5, 6


@pytest.fixture(scope="module")
def unet():
    """A U-Net that attends to text at two sizes, its random parameters, and what it is applied to."""
    net = UNet(
        3,
        text_features=WIDTH,
        channels=8,
        multipliers=(1, 2),
        blocks=1,
        attention=(1, 2),
        text_alone=(2,),
        groups=4,
        heads=2,
    )
    rng = np.random.default_rng(0)
    x, text = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in ((2, 8, 4, 3), (2, TOKENS, WIDTH)))
    mask = jnp.asarray([[True] * TOKENS, [True, True, True, False, False]])
    arguments = x, jnp.asarray([0.2, 0.8]), {"text": text, "text_mask": mask}
    abstract = jax.eval_shape(net.init, jax.random.key(0), *arguments)["params"]
    params = jax.tree.map(lambda a: jnp.asarray(0.5 * rng.standard_normal(a.shape), a.dtype), abstract)
    return net, params, arguments


@pytest.mark.parametrize("heads", [1, 2])
def test_probabilities_times_values_are_what_the_layer_gives(heads):
    rng = np.random.default_rng(1)
    x, text = rng.standard_normal((2, 7, 4)), rng.standard_normal((2, TOKENS, WIDTH))
    mask = np.asarray([[True] * TOKENS, [True, False, True, True, False]])
    layer = Attention(heads)
    given = jnp.asarray(x, jnp.float32), jnp.asarray(text, jnp.float32), jnp.asarray(mask)
    params = layer.init(jax.random.key(0), *given)["params"]
    with text_attention() as found:
        out = layer.apply({"params": params}, *given)
    (p,) = (np.asarray(each, np.float64) for each in found.values())
    assert p.shape == (2, heads, 7, TOKENS)
    assert not p[1][..., ~mask[1]].any()
    values = (text @ np.asarray(params["value"]["kernel"])).reshape(2, TOKENS, heads, -1)
    attended = np.einsum("bhnm,bmhd->bnhd", p, values).reshape(2, 7, -1)
    np.testing.assert_allclose(attended @ np.asarray(params["out"]["kernel"]), out, atol=1e-5)


def test_probabilities_are_the_softmax():
    rng = np.random.default_rng(2)
    q, k = rng.standard_normal((1, 3, 2, 4)), rng.standard_normal((1, TOKENS, 2, 4))
    mask = np.asarray([[True, True, False, True, False]])
    found = probabilities(jnp.asarray(q), jnp.asarray(k), jnp.asarray(mask))
    for head in range(2):
        weights = np.exp(q[0, :, head] @ k[0, :, head].T / np.sqrt(4)) * mask
        np.testing.assert_allclose(found[0, head], weights / weights.sum(axis=-1, keepdims=True), rtol=1e-5)


def test_every_attention_to_the_text_of_a_u_net_is_found_and_sums_to_one(unet):
    net, params, (x, t, cond) = unet

    def watched(params):
        with text_attention() as found:
            return net.apply({"params": params}, x, t, cond), found, net.apply({"params": params}, x, t, cond)

    out, found, again = jax.jit(watched)(params)
    np.testing.assert_allclose(out, again, rtol=1e-5, atol=1e-5)
    of_text = {path for path in _paths(params) if path.endswith("cross_attention")}
    # At factor 2 the self-attention's place is taken by the text; in the middle it is not.
    alone = {path for path in _paths(params) if path.endswith("self_attention") and path[:6] in ("down_1", "up_1/a")}
    assert alone
    assert set(found) == of_text | alone
    assert {each.shape[2] for each in found.values()} == {8 * 4, 4 * 2}
    for each in found.values():
        np.testing.assert_allclose(each.sum(axis=-1), 1, atol=1e-5)
    maps = mean_map(found, (8, 4))
    assert maps.shape == (2, 8, 4, TOKENS)
    np.testing.assert_allclose(maps.sum(axis=-1), 1, atol=1e-5)
    assert not np.asarray(maps[1, ..., 3:]).any()


def _paths(params, path=()):
    for name, inside in params.items():
        if isinstance(inside, dict):
            yield "/".join((*path, name))
            yield from _paths(inside, (*path, name))


def test_the_program_of_a_step_is_as_it_is_without_the_hook(unet):
    net, params, (x, t, cond) = unet

    def program():
        def loss(params):
            return jnp.mean(net.apply({"params": params}, x, t, cond, train=True) ** 2)

        return str(jax.make_jaxpr(jax.grad(loss))(params))

    before = program()
    with text_attention() as found:
        jax.eval_shape(net.apply, {"params": params}, x, t, cond)
    assert found
    assert program() == before


def test_a_mean_map_has_each_position_in_its_place():
    """Probabilities that are linear in the place stay linear when they are enlarged, but for the margin."""
    rows = jnp.broadcast_to(jnp.arange(4.0)[:, None], (4, 2))  # h w of a layer
    layer = jnp.stack([rows, 3 - rows], axis=-1).reshape(1, 1, 8, 2) / 3
    found = np.asarray(mean_map({"a": layer, "b": jnp.flip(layer, -1)}, (8, 4)))
    np.testing.assert_allclose(found, 0.5, atol=1e-6)
    once = np.asarray(mean_map({"a": layer}, (8, 4)))
    np.testing.assert_allclose(once[0, 1:7, 0, 0], (np.arange(1, 7) - 0.5) / 6, atol=1e-6)
    np.testing.assert_allclose(once[..., 0], np.repeat(once[:, :, :1, 0], 4, axis=2), atol=1e-6)
