"""The names and shapes of diffusers' DiT weights, both ways, with no torch at hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.errors import UserError
from diffusion_jax.interop.diffusers_dit import from_diffusers, to_diffusers
from diffusion_jax.nets.dit import DiT

NET = DiT(6, num_classes=3, width=8, depth=3, heads=2, waves=6)


def shapes_of(net, **cond):
    cond = {"label": jnp.zeros(1, jnp.int32)} | cond
    return jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 4, 4, 3)), jnp.zeros(1), cond)["params"]


def drawn(shapes):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: rng.standard_normal(s.shape, np.float32), shapes)


@pytest.fixture(scope="module")
def shapes():
    return shapes_of(NET)


@pytest.fixture(scope="module")
def params(shapes):
    return drawn(shapes)


@pytest.fixture
def state(params):
    return to_diffusers(params, patch=2, sinusoids="adm")


@pytest.mark.parametrize("sinusoids", ["adm", "ddpm"])
def test_there_and_back_is_exact(params, shapes, sinusoids):
    state = to_diffusers(params, patch=2, sinusoids=sinusoids)
    assert all(value.flags.c_contiguous and value.dtype == np.float32 for value in state.values())
    jax.tree.map(np.testing.assert_array_equal, from_diffusers(state, shapes, sinusoids=sinusoids), params)


def test_names_and_layouts_are_theirs(params, state):
    kernel = params["patch_in"]["kernel"].reshape(2, 2, 3, 8)  # row, column, channel, width
    assert state["pos_embed.proj.weight"][5, 2, 0, 1] == kernel[0, 1, 2, 5]
    layers = params["layers"]
    query = layers["self_attention"]["query"]["kernel"]
    np.testing.assert_array_equal(state["transformer_blocks.2.attn1.to_q.weight"], query[2].T)
    down = layers["feed_forward"]["down"]["bias"]
    np.testing.assert_array_equal(state["transformer_blocks.1.ff.net.2.bias"], down[1])
    for i in range(3):
        name = f"transformer_blocks.{i}.norm1.emb.class_embedder.embedding_table.weight"
        np.testing.assert_array_equal(state[name], params["label"]["embedding"])


def test_cosines_are_theirs_first(params, state):
    """With "ddpm" the rows for our sines, which come first, are those of theirs, which come last."""
    name = "transformer_blocks.0.norm1.emb.timestep_embedder.linear_1.weight"
    kernel = params["time_0"]["kernel"]
    np.testing.assert_array_equal(state[name], kernel.T)
    exchanged = to_diffusers(params, patch=2, sinusoids="ddpm")[name]
    np.testing.assert_array_equal(exchanged, np.concatenate([kernel[3:], kernel[:3]]).T)


def test_every_missing_and_left_over_name_is_told(shapes, state):
    for name in ("proj_out_2.bias", "transformer_blocks.1.attn1.to_out.0.weight"):
        del state[name]
    state["transformer_blocks.3.ff.net.2.bias"] = np.zeros(8, np.float32)
    with pytest.raises(UserError) as error:
        from_diffusers(state, shapes, sinusoids="adm")
    assert "missing ['proj_out_2.bias', 'transformer_blocks.1.attn1.to_out.0.weight']" in str(error.value)
    assert "left over ['transformer_blocks.3.ff.net.2.bias']" in str(error.value)


def test_every_other_shape_is_told(shapes, state):
    state["proj_out_2.bias"] = np.zeros(5, np.float32)
    state["pos_embed.proj.weight"] = np.zeros((8, 4, 2, 2), np.float32)
    with pytest.raises(
        UserError, match=r"patch_in/kernel \(16, 8\), not \(12, 8\); patch_out/bias \(5,\), not \(24,\)"
    ):
        from_diffusers(state, shapes, sinusoids="adm")


def test_layers_of_different_sizes_are_told(shapes, state):
    state["transformer_blocks.1.ff.net.2.bias"] = np.zeros(7, np.float32)
    with pytest.raises(UserError, match=r"layers/feed_forward/down/bias in layers of unequal shapes"):
        from_diffusers(state, shapes, sinusoids="adm")


def test_layers_that_embed_time_differently_are_refused(shapes, state):
    name = "transformer_blocks.2.norm1.emb.timestep_embedder.linear_2.bias"
    state[name] = state[name] + 1
    with pytest.raises(UserError, match="embeds time and class once") as error:
        from_diffusers(state, shapes, sinusoids="adm")
    assert name in str(error.value)


def test_what_theirs_has_no_place_for_is_refused():
    text = drawn(shapes_of(NET.clone(text_features=5), text=jnp.zeros((1, 2, 5))))
    with pytest.raises(UserError, match="told time and class alone; this net has layers/cross_attention"):
        to_diffusers(text, patch=2, sinusoids="adm")
    plain = {name: value for name, value in drawn(shapes_of(NET)).items() if name != "label"}
    with pytest.raises(UserError, match="told a class; this net has none"):
        to_diffusers(plain, patch=2, sinusoids="adm")
