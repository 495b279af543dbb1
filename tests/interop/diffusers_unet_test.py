"""The names and shapes of diffusers' U-Net weights, both ways, with no torch at hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.errors import UserError
from diffusion_jax.interop.diffusers_unet import from_diffusers, to_diffusers
from diffusion_jax.nets.unet import UNet

NET = UNet(3, channels=8, multipliers=(1, 2, 2), blocks=1, attention=(4,), groups=4, num_classes=3)


@pytest.fixture(scope="module")
def shapes():
    x, t, label = jnp.zeros((1, 8, 8, 3)), jnp.zeros(1), jnp.zeros(1, jnp.int32)
    return jax.eval_shape(NET.init, jax.random.key(0), x, t, {"label": label})["params"]


@pytest.fixture(scope="module")
def params(shapes):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: rng.standard_normal(s.shape, np.float32), shapes)


@pytest.fixture
def state(params):
    return to_diffusers(params)


def test_there_and_back_is_exact(params, shapes, state):
    jax.tree.map(np.testing.assert_array_equal, from_diffusers(state, shapes), params)


def test_names_and_layouts_are_theirs(params, state):
    kernel = params["down_0"]["block_0"]["conv1"]["kernel"]
    theirs = state["down_blocks.0.resnets.0.conv1.weight"]
    assert theirs[5, 2, 0, 1] == kernel[0, 1, 2, 5]
    assert theirs.flags.c_contiguous
    # The decoder's first level, at the lowest resolution, is level 2 here and 0 there.
    query = params["up_2"]["attention_1"]["query"]["kernel"]
    np.testing.assert_array_equal(state["up_blocks.0.attentions.1.to_q.weight"], query.T)
    shortcut = params["up_0"]["block_0"]["shortcut"]["kernel"]
    np.testing.assert_array_equal(state["up_blocks.2.resnets.0.conv_shortcut.weight"][:, :, 0, 0], shortcut.T)
    assert {"time_embedding.linear_2.bias", "class_embedding.weight", "mid_block.attentions.0.to_out.0.bias"} <= set(
        state
    )


def test_names_from_before_0_12_are_read(params, shapes, state):
    before = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    for new, old in before.items():
        state = {name.replace(f".{new}.", f".{old}."): value for name, value in state.items()}
    assert any(".proj_attn." in name for name in state)
    jax.tree.map(np.testing.assert_array_equal, from_diffusers(state, shapes), params)


def test_half_precision_is_widened(shapes, state):
    half = {name: value.astype(np.float16) for name, value in state.items()}
    assert {p.dtype for p in jax.tree.leaves(from_diffusers(half, shapes))} == {np.dtype("float32")}


def test_every_missing_and_left_over_name_is_told(shapes, state):
    for name in ("conv_in.weight", "mid_block.resnets.1.norm2.bias"):
        del state[name]
    state["encoder.weight"] = state["decoder.weight"] = np.zeros(3, np.float32)
    with pytest.raises(UserError) as error:
        from_diffusers(state, shapes)
    assert "missing ['conv_in.weight', 'mid_block.resnets.1.norm2.bias']" in str(error.value)
    assert "left over ['decoder.weight', 'encoder.weight']" in str(error.value)


def test_every_other_shape_is_told(shapes, state):
    state["conv_in.weight"] = np.zeros((8, 4, 3, 3), np.float32)
    state["conv_out.bias"] = np.zeros(4, np.float32)
    with pytest.raises(
        UserError, match=r"conv_in.weight \(3, 3, 4, 8\), not \(3, 3, 3, 8\); conv_out.bias \(4,\), not"
    ):
        from_diffusers(state, shapes)


class TestTextConditional:
    NET = UNet(
        4, channels=8, multipliers=(1, 2), blocks=1, attention=(1,), groups=4, text_features=6, levels=("noise",)
    )

    @pytest.fixture
    def shapes(self):
        cond = {"text": jnp.zeros((1, 5, 6)), "noise": jnp.zeros(1)}
        return jax.eval_shape(self.NET.init, jax.random.key(0), jnp.zeros((1, 8, 8, 4)), jnp.zeros(1), cond)["params"]

    @pytest.fixture
    def params(self, shapes):
        rng = np.random.default_rng(0)
        return jax.tree.map(lambda s: rng.standard_normal(s.shape, np.float32), shapes)

    @pytest.mark.parametrize("linear_projection", [False, True])
    def test_there_and_back_is_exact(self, params, shapes, linear_projection):
        state = to_diffusers(params, linear_projection=linear_projection)
        projection = state["mid_block.attentions.0.proj_in.weight"]
        assert projection.shape == ((16, 16) if linear_projection else (16, 16, 1, 1))
        jax.tree.map(np.testing.assert_array_equal, from_diffusers(state, shapes), params)

    def test_names_and_layouts_are_theirs(self, params):
        state = to_diffusers(params)
        ours = params["down_0"]["attention_0"]["layer_0"]
        theirs = "down_blocks.0.attentions.0.transformer_blocks.0."
        # Their GEGLU is one matrix: the linear half first, the gate after.
        geglu = np.concatenate([ours["feed_forward"]["linear"]["kernel"], ours["feed_forward"]["gate"]["kernel"]], 1)
        np.testing.assert_array_equal(state[theirs + "ff.net.0.proj.weight"], geglu.T)
        np.testing.assert_array_equal(state[theirs + "attn2.to_k.weight"], ours["cross_attention"]["key"]["kernel"].T)
        np.testing.assert_array_equal(state[theirs + "norm3.bias"], ours["norm_feed"]["bias"])
        noise = params["level_noise_1"]["kernel"]
        np.testing.assert_array_equal(state["class_embedding.linear_2.weight"], noise.T)
        assert theirs + "attn1.to_q.bias" not in state

    def test_every_missing_and_left_over_name_is_told(self, params, shapes):
        state = to_diffusers(params)
        del state["mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj.weight"]
        state["mid_block.attentions.0.transformer_blocks.1.norm1.weight"] = np.zeros(16, np.float32)
        with pytest.raises(UserError) as error:
            from_diffusers(state, shapes)
        assert "missing ['mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj.weight']" in str(error.value)
        assert "left over ['mid_block.attentions.0.transformer_blocks.1.norm1.weight']" in str(error.value)

    def test_two_embeddings_beside_t_have_no_place_there(self, params):
        both = {**params, "label": {"embedding": np.zeros((3, 32), np.float32)}}
        with pytest.raises(UserError, match=r"one label or level beside t; this net embeds \['label', 'level_noise'\]"):
            to_diffusers(both)
