"""The names and shapes of diffusers' autoencoder weights, both ways, with no torch at hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.errors import UserError
from diffusion_jax.interop.diffusers_autoencoder import from_diffusers, to_diffusers
from diffusion_jax.nets.autoencoder import AutoencoderKL

NET = AutoencoderKL(latent_channels=2, channels=4, multipliers=(1, 2, 2), blocks=1, attention=(4,), groups=2)


@pytest.fixture(scope="module")
def shapes():
    return jax.eval_shape(NET.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))["params"]


@pytest.fixture(scope="module")
def params(shapes):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: rng.standard_normal(s.shape, np.float32), shapes)


@pytest.fixture
def state(params):
    return to_diffusers(params)


def test_there_and_back_is_exact(params, shapes, state):
    assert len(state) == len(jax.tree.leaves(params))
    jax.tree.map(np.testing.assert_array_equal, from_diffusers(state, shapes), params)


def test_names_and_layouts_are_theirs(params, state):
    kernel = params["encoder"]["down_1"]["block_0"]["conv1"]["kernel"]
    theirs = state["encoder.down_blocks.1.resnets.0.conv1.weight"]
    assert theirs[5, 2, 0, 1] == kernel[0, 1, 2, 5]
    assert theirs.flags.c_contiguous
    # The decoder's first level, at the lowest resolution, is level 2 here and 0 there.
    query = params["decoder"]["up_2"]["attention_1"]["query"]["kernel"]
    np.testing.assert_array_equal(state["decoder.up_blocks.0.attentions.1.to_q.weight"], query.T)
    shortcut = params["decoder"]["up_0"]["block_0"]["shortcut"]["kernel"]
    np.testing.assert_array_equal(state["decoder.up_blocks.2.resnets.0.conv_shortcut.weight"][:, :, 0, 0], shortcut.T)
    np.testing.assert_array_equal(state["quant_conv.weight"][:, :, 0, 0], params["quant"]["kernel"].T)
    assert {
        "post_quant_conv.bias",
        "encoder.mid_block.attentions.0.to_out.0.bias",
        "decoder.conv_norm_out.bias",
    } <= set(state)


def test_names_and_shapes_from_before_0_12_are_read(params, shapes, state):
    """Stable Diffusion's own files: query, key, value, proj_attn, in some of them as 1 x 1 convolutions."""
    before = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    for new, old in before.items():
        state = {name.replace(f".{new}.", f".{old}."): value for name, value in state.items()}
    assert any(".proj_attn." in name for name in state)
    jax.tree.map(np.testing.assert_array_equal, from_diffusers(state, shapes), params)
    convs = {
        name: value[:, :, None, None] if "attentions" in name and value.ndim == 2 else value
        for name, value in state.items()
    }
    jax.tree.map(np.testing.assert_array_equal, from_diffusers(convs, shapes), params)


def test_half_precision_is_widened(shapes, state):
    half = {name: value.astype(np.float16) for name, value in state.items()}
    assert {p.dtype for p in jax.tree.leaves(from_diffusers(half, shapes))} == {np.dtype("float32")}


def test_every_missing_and_left_over_name_is_told(shapes, state):
    for name in ("decoder.conv_in.weight", "encoder.mid_block.resnets.1.norm2.bias"):
        del state[name]
    state["loss.logvar"] = state["encoder.weight"] = np.zeros(3, np.float32)
    with pytest.raises(UserError) as error:
        from_diffusers(state, shapes)
    assert "missing ['decoder.conv_in.weight', 'encoder.mid_block.resnets.1.norm2.bias']" in str(error.value)
    assert "left over ['encoder.weight', 'loss.logvar']" in str(error.value)


def test_a_net_without_quant_convs_refuses_weights_with_them(state):
    shapes = jax.eval_shape(NET.clone(quant_convs=False).init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))["params"]
    with pytest.raises(UserError, match=r"missing \[\]; left over \['post_quant_conv.bias', .*'quant_conv.weight'\]"):
        from_diffusers(state, shapes)


def test_every_other_shape_is_told(shapes, state):
    state["encoder.conv_in.weight"] = np.zeros((4, 1, 3, 3), np.float32)
    state["quant_conv.weight"] = np.zeros((4, 4, 3, 3), np.float32)
    with pytest.raises(UserError) as error:
        from_diffusers(state, shapes)
    assert "encoder.conv_in.weight (3, 3, 1, 4), not (3, 3, 3, 4)" in str(error.value)
    assert "quant_conv.weight (3, 3, 4, 4), not (4, 4)" in str(error.value)
