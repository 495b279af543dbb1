"""The layers against closed forms and independent implementations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from diffusion_jax.errors import UserError
from diffusion_jax.nets import layers
from diffusion_jax.nets.attention import attend
from diffusion_jax.nets.conv import upsample_nearest
from diffusion_jax.nets.layers import Conv, Downsample, GroupNorm, ResBlock, SelfAttention, Upsample


def normal(*shape, seed=0, scale=1.0, mean=0.0):
    return np.asarray(mean + scale * np.random.default_rng(seed).standard_normal(shape), np.float32)


def randomized(params, seed=1, scale=0.3):
    """Params moved by noise, so that no layer is zero."""
    leaves, tree = jax.tree.flatten(params)
    return tree.unflatten([p + normal(*p.shape, seed=seed + i, scale=scale) for i, p in enumerate(leaves)])


@pytest.mark.parametrize("features", [8, 9, 128])
@pytest.mark.parametrize(("form", "first", "second", "less"), [("ddpm", np.sin, np.cos, 1), ("adm", np.cos, np.sin, 0)])
def test_time_embedding_is_the_formula_in_float64(features, form, first, second, less):
    t = np.array([0.0, 0.5, 1.0, 37.0, 999.0, 3999.0])
    half = features // 2
    angles = t[:, None] * 10000.0 ** (-np.arange(half) / (half - less))
    expected = np.zeros((len(t), features))
    expected[:, :half], expected[:, half : 2 * half] = first(angles), second(angles)
    got = layers.time_embedding(jnp.asarray(t, jnp.float32), features, form)
    # The angles are float32: off by up to 4000 x 2^-24.
    np.testing.assert_allclose(got, expected, atol=5e-4)
    assert got.dtype == jnp.float32


@pytest.mark.parametrize("shape", [(2, 5, 3), (2, 3, 4, 3), (1, 2, 3, 4, 2)])
def test_upsampling_is_nearest_neighbour(shape):
    x = normal(*shape)
    doubled = (shape[0], *(2 * n for n in shape[1:-1]), shape[-1])
    np.testing.assert_array_equal(upsample_nearest(x), jax.image.resize(x, doubled, "nearest"))


@pytest.mark.parametrize("shape", [(2, 6, 3), (2, 6, 4, 3), (1, 2, 4, 6, 2)])
def test_average_pooling_is_that_of_flax_and_undoes_upsampling(shape):
    x, width = normal(*shape), (2,) * (len(shape) - 2)
    np.testing.assert_allclose(layers.average_pool(x), nn.avg_pool(x, width, width), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(layers.average_pool(upsample_nearest(x)), x, rtol=1e-6)


def test_conv_and_resampling_are_those_of_flax():
    x = normal(2, 6, 8, 3)
    for ours, theirs, seen in [
        (Conv(5), nn.Conv(5, (3, 3)), x),
        (Downsample(), nn.Conv(3, (3, 3), strides=(2, 2), padding=((0, 1), (0, 1))), x),
        (Downsample("both"), nn.Conv(3, (3, 3), strides=(2, 2), padding=1), x),
        (Upsample(), nn.Conv(3, (3, 3)), np.repeat(np.repeat(x, 2, 1), 2, 2)),
    ]:
        params = randomized(ours.init(jax.random.key(0), x)["params"])
        inner = params.get("conv", params)
        expected = theirs.apply({"params": inner}, seen)
        np.testing.assert_allclose(ours.apply({"params": params}, x), expected, rtol=1e-4, atol=1e-5)


class TestGroupNorm:
    @pytest.mark.parametrize("shape", [(2, 7, 6), (2, 4, 5, 6), (2, 2, 3, 4, 6)])
    def test_value_and_gradients_are_those_of_flax(self, shape):
        x, weight = normal(*shape, scale=3.0, mean=0.5), normal(*shape, seed=1)
        ours, theirs = GroupNorm(3), nn.GroupNorm(3, epsilon=1e-6)
        params = randomized(ours.init(jax.random.key(0), x)["params"])

        def loss(norm):
            def f(params, x):
                y = norm.apply({"params": params}, x)
                return (jnp.sin(y) * weight).sum(), y

            return jax.jit(jax.value_and_grad(f, (0, 1), has_aux=True))(params, x)

        for got, expected in zip(jax.tree.leaves(loss(ours)), jax.tree.leaves(loss(theirs)), strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-4, atol=2e-5)

    @pytest.mark.parametrize(("mean", "tolerance"), [(100.0, 2e-5), (1e4, 2e-3), (-1e4, 2e-3)])
    def test_a_large_mean_costs_no_more_than_its_rounding(self, mean, tolerance):
        """E[x^2] - E[x]^2 in float32 would be wrong by 1e-3 at mean 100 and by 10 at mean 1e4, for a variance of 1."""
        x, weight = normal(2, 8, 8, 4, mean=mean), normal(2, 8, 8, 4, seed=1)
        x += np.float32([0.0, 3.0, -2.0, 0.0])  # channels of one group with means of their own

        def normalized(x, np):
            groups = x.reshape(2, 8, 8, 2, 2)
            centred = groups - groups.mean(axis=(1, 2, 4), keepdims=True)
            return (centred / np.sqrt((centred**2).mean(axis=(1, 2, 4), keepdims=True) + 1e-6)).reshape(x.shape)

        got = jax.jit(lambda x: GroupNorm(2).apply({"params": {"scale": jnp.ones(4), "bias": jnp.zeros(4)}}, x))
        np.testing.assert_allclose(got(x), normalized(x.astype(np.float64), np), atol=tolerance)
        with jax.enable_x64(True):
            exact = jax.vjp(lambda x: normalized(x, jnp), jnp.asarray(x, jnp.float64))[1](
                jnp.asarray(weight, "float64")
            )
        np.testing.assert_allclose(jax.vjp(got, x)[1](jnp.asarray(weight))[0], exact[0], atol=tolerance)

    def test_a_constant_image_gives_the_bias(self):
        params = {"scale": jnp.full(4, 2.0), "bias": jnp.arange(4.0)}
        y = GroupNorm(4).apply({"params": params}, jnp.full((1, 5, 5, 4), 37.3))
        np.testing.assert_allclose(y, np.broadcast_to(np.arange(4.0), y.shape), atol=1e-5)

    def test_statistics_of_bfloat16_are_float32(self):
        x = jnp.asarray(normal(2, 16, 16, 4, mean=20.0), jnp.bfloat16)
        params = {"scale": jnp.ones(4), "bias": jnp.zeros(4)}
        y = GroupNorm(2, dtype=jnp.bfloat16).apply({"params": params}, x)
        exact = nn.GroupNorm(2, epsilon=1e-6).apply({"params": params}, x.astype(jnp.float32))
        assert y.dtype == jnp.bfloat16
        # Only the output is rounded: half a unit in the last of bfloat16's 8 bits.
        np.testing.assert_allclose(y.astype(jnp.float32), exact, rtol=2**-8, atol=1e-5)

    def test_groups_must_divide_the_channels(self):
        with pytest.raises(UserError, match="10 channels cannot be normalized in 4 groups"):
            GroupNorm(4).init(jax.random.key(0), jnp.zeros((1, 4, 10)))


class TestSelfAttention:
    def test_it_is_the_formula_in_float64(self):
        x = normal(2, 3, 4, 8)
        block = SelfAttention(heads=2, groups=4)
        params = randomized(block.init(jax.random.key(0), x)["params"])
        p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
        h = np.asarray(GroupNorm(4).apply({"params": params["norm"]}, x), np.float64).reshape(2, 12, 8)
        q, k, v = ((h @ p[n]["kernel"] + p[n]["bias"]).reshape(2, 12, 2, 4) for n in ("query", "key", "value"))
        logits = np.einsum("bnhd,bmhd->bhnm", q, k) / 2.0
        weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        out = np.einsum("bhnm,bmhd->bnhd", weights, v).reshape(x.shape)
        expected = x + out @ p["out"]["kernel"] + p["out"]["bias"]
        np.testing.assert_allclose(block.apply({"params": params}, x), expected, rtol=1e-4, atol=1e-4)

    def test_positions_have_no_order(self):
        x = normal(1, 6, 8)
        block = SelfAttention(heads=1, groups=4)
        params = randomized(block.init(jax.random.key(0), x)["params"])
        order = np.array([3, 0, 5, 1, 2, 4])
        shuffled = block.apply({"params": params}, x[:, order])
        np.testing.assert_allclose(shuffled, block.apply({"params": params}, x)[:, order], rtol=1e-5, atol=1e-5)

    def test_softmax_of_bfloat16_is_float32(self):
        # Two keys whose logits, 512 and 513, are one number in bfloat16.
        q = jnp.asarray([32.0, 1.0, 0.0, 0.0], jnp.bfloat16).reshape(1, 1, 1, 4)
        k = jnp.asarray([[32.0, 0.0, 0.0, 0.0], [32.0, 2.0, 0.0, 0.0]], jnp.bfloat16).reshape(1, 2, 1, 4)
        v = jnp.asarray([0.0, 1.0], jnp.bfloat16).reshape(1, 2, 1, 1)
        got = float(attend(q, k, jnp.broadcast_to(v, (1, 2, 1, 4)))[0, 0, 0, 0])
        assert got == pytest.approx(1 / (1 + np.exp(-1.0)), abs=5e-3)

    def test_heads_must_divide_the_channels(self):
        with pytest.raises(UserError, match="8 channels cannot be split over 3 attention heads"):
            SelfAttention(heads=3, groups=4).init(jax.random.key(0), jnp.zeros((1, 4, 8)))


class TestMask:
    """True is where a key may be attended to."""

    def draw(self):
        q, k, v = normal(2, 3, 2, 4), normal(2, 5, 2, 4, seed=1), normal(2, 5, 2, 4, seed=2)
        return q, k, v, np.array([[1, 0, 1, 1, 0], [0, 0, 0, 1, 1]], bool)

    def test_it_leaves_the_attention_to_the_other_keys(self):
        q, k, v, mask = self.draw()
        got = attend(q, k, v, mask[:, None, None])
        for i, kept in enumerate(mask):
            alone = attend(q[i : i + 1], k[i : i + 1, kept], v[i : i + 1, kept])
            np.testing.assert_allclose(got[i : i + 1], alone, rtol=1e-5, atol=1e-6)

    def test_without_a_key_the_result_is_zero_and_the_gradient_finite(self):
        q, k, v, mask = self.draw()
        mask[0] = False
        out, back = jax.vjp(lambda *qkv: attend(*qkv, mask[:, None, None]), q, k, v)
        np.testing.assert_array_equal(out[0], 0.0)
        for g in back(out):
            np.testing.assert_array_equal(g[0], 0.0)
            assert np.isfinite(g).all()
            assert np.abs(g[1]).max() > 0


class TestResBlock:
    def test_it_starts_as_its_shortcut(self):
        x, emb = normal(2, 4, 4, 6), normal(2, 8, seed=1)
        same, wider = ResBlock(6, groups=3), ResBlock(9, groups=3)
        np.testing.assert_array_equal(same.init_with_output(jax.random.key(0), x, emb, False)[0], x)
        out, state = wider.init_with_output(jax.random.key(0), x, emb, False)
        np.testing.assert_allclose(out, x @ state["params"]["shortcut"]["kernel"], rtol=1e-5, atol=1e-5)

    def test_dropout_acts_in_training_alone(self):
        x, emb = normal(2, 4, 4, 6), normal(2, 8, seed=1)
        block = ResBlock(6, groups=3, dropout=0.5)
        params = randomized(block.init(jax.random.key(0), x, emb, False)["params"])

        def run(train, seed):
            return block.apply({"params": params}, x, emb, train, rngs={"dropout": jax.random.key(seed)})

        np.testing.assert_array_equal(run(False, 0), run(False, 1))
        assert np.abs(run(True, 0) - run(True, 1)).max() > 0.1
        without = ResBlock(6, groups=3).apply({"params": params}, x, emb, True)
        np.testing.assert_array_equal(run(False, 0), without)

    def test_adaptive_group_norm_is_the_formula(self):
        x, emb = normal(2, 4, 4, 6), normal(2, 8, seed=1)
        block = ResBlock(6, groups=3, scale_shift=True)
        p = randomized(block.init(jax.random.key(0), x, emb, False)["params"])
        h = nn.silu(GroupNorm(3).apply({"params": p["norm1"]}, x))
        h = GroupNorm(3).apply({"params": p["norm2"]}, Conv(6).apply({"params": p["conv1"]}, h))
        scale, shift = np.split((nn.silu(emb) @ p["emb"]["kernel"] + p["emb"]["bias"])[:, None, None], 2, axis=-1)
        expected = x + Conv(6).apply({"params": p["conv2"]}, nn.silu(h * (1 + scale) + shift))
        np.testing.assert_allclose(block.apply({"params": p}, x, emb, False), expected, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("resample", [layers.average_pool, upsample_nearest])
    def test_resampling_block_starts_as_its_resampling(self, resample):
        x, emb = normal(2, 4, 6, 6), normal(2, 8, seed=1)
        out, _ = ResBlock(6, groups=3, resample=resample).init_with_output(jax.random.key(0), x, emb, False)
        np.testing.assert_array_equal(out, resample(x))


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (lambda: layers.time_embedding(jnp.zeros(1), 8, "sd"), "'ddpm' or 'adm'; got 'sd'"),
        (lambda: Downsample("same").init(jax.random.key(0), jnp.zeros((1, 4, 8))), "'end' or 'both' sides; got 'same'"),
        (lambda: layers.attention_heads(48, 1, 32), "48 channels cannot be split into attention heads of 32"),
    ],
)
def test_an_option_that_is_none_is_refused(layer, message):
    with pytest.raises(UserError, match=message):
        layer()


def test_initial_weights_have_the_variance_of_ddpm():
    """Uniform with variance 1 / mean(fan in, fan out): Glorot's, and what DDPM's code calls `default_init(1.)`."""
    kernel = Conv(48).init(jax.random.key(0), jnp.zeros((1, 4, 4, 16)))["params"]["kernel"]
    expected = 1 / (9 * (16 + 48) / 2)
    assert float(kernel.var()) == pytest.approx(expected, rel=0.05)
    assert float(jnp.abs(kernel).max()) <= np.sqrt(3 * expected)


@pytest.mark.parametrize("shape", [(2, 12, 3), (2, 8, 12, 3), (2, 4, 8, 4, 1)])
def test_patches_hold_their_own_pixels_and_come_apart_again(shape):
    x = jnp.arange(np.prod(shape), dtype=jnp.float32).reshape(shape)
    patches = layers.to_patches(x, 4)
    assert patches.shape == (2, *(n // 4 for n in shape[1:-1]), 4 ** (len(shape) - 2) * shape[-1])
    np.testing.assert_array_equal(layers.from_patches(patches, 4), x)
    corner = (slice(None), *(slice(0, 4) for _ in shape[1:-1]))
    np.testing.assert_array_equal(patches[(slice(None), *(0 for _ in shape[1:-1]))], x[corner].reshape(2, -1))
    with pytest.raises(UserError, match="patches of 3 do not divide"):
        layers.to_patches(jnp.zeros((1, 8, 1)), 3)


@pytest.mark.parametrize("name", ["conv", "group_norm", "dropout", "attend"])
def test_what_is_traced_once_is_no_function_of_its_own_in_the_program(name):
    """In one, each gradient would be summed over the devices by itself."""
    x, ones = jnp.ones((2, 4, 4, 8)), jnp.ones(8)
    call = {
        "conv": lambda x: layers.conv(x, jnp.ones((3, 3, 8, 8)), 1),
        "group_norm": lambda x: layers.group_norm(x, ones, ones, 4, 1e-6, jnp.float32),
        "dropout": lambda x: layers.dropout(jax.random.key(0), x, 0.5),
        "attend": lambda x: attend(x, x, x),
    }[name]
    program = jax.jit(jax.grad(lambda x: jnp.square(call(x)).sum())).lower(x).as_text()
    assert "@main" in program
    assert f"@{name}" not in program
