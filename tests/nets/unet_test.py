"""The U-Net: its size, the shapes it takes, what its output depends on, and what it refuses."""

import importlib
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax import experiment
from diffusion_jax.errors import UserError
from diffusion_jax.nets import rematerialization
from diffusion_jax.nets.layers import time_embedding
from diffusion_jax.nets.transformer import SpatialTransformer, place_embedding
from diffusion_jax.nets.unet import UNet

TINY = UNet(2, channels=8, multipliers=(1, 2), blocks=1, attention=(2,), groups=4, num_classes=3, dropout=0.3)

SD_1_5 = UNet(
    4,
    channels=320,
    multipliers=(1, 2, 4, 4),
    attention=(1, 2, 4),
    heads=8,
    epsilon=1e-5,
    sinusoids="adm",
    padding="both",
    text_features=768,
)
TEXT = UNet(2, channels=8, multipliers=(1,), blocks=1, attention=(), groups=4, text_features=6, head_channels=4)


def shapes_of(net, x, **cond):
    t = jax.ShapeDtypeStruct(x[:1], jnp.float32)
    entries = {name: jax.ShapeDtypeStruct(x[:1], jnp.int32) for name in cond}
    return jax.eval_shape(net.init, jax.random.key(0), jax.ShapeDtypeStruct(x, jnp.float32), t, entries or None)[
        "params"
    ]


def size(params):
    return sum(math.prod(p.shape) for p in jax.tree.leaves(params))


def perturbed(params):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda p: p + 0.1 * rng.standard_normal(p.shape).astype(np.float32), params)


def drawn(net, *args):
    """Parameters of which none is zero or one; to compile `init` takes seconds."""
    rng = np.random.default_rng(0)

    def draw(path, shape):
        spread = math.prod(shape.shape[:-1]) ** -0.5 if len(shape.shape) > 1 else 0.1
        return np.float32((path[-1].key == "scale") + spread * rng.standard_normal(shape.shape))

    return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(net.init, jax.random.key(0), *args)["params"])


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(1)
    x = rng.standard_normal((3, 4, 8, 2), np.float32)
    return x, np.float32([0.0, 10.0, 999.0]), {"label": np.int32([0, 2, 3])}


@pytest.fixture(scope="module")
def initial(batch):
    return jax.jit(TINY.init)(jax.random.key(0), *batch)["params"]


@pytest.fixture(scope="module")
def params(initial):
    return perturbed(initial)


@pytest.fixture(scope="module")
def run():
    @partial(jax.jit, static_argnames=("train", "net"))
    def run(params, x, t, cond, train=False, seed=0, net=TINY):
        return net.apply({"params": params}, x, t, cond, train=train, rngs={"dropout": jax.random.key(seed)})

    return run


class TestSize:
    def test_ddpm_cifar10_has_the_published_number_of_parameters(self):
        params = shapes_of(UNet(3, dropout=0.1), (1, 32, 32, 3))
        assert size(params) == 35_746_307
        attended = {level for level in params if any(name.startswith("attention") for name in params[level])}
        assert attended == {"down_1", "mid", "up_1"}

    def test_a_class_costs_one_row_and_the_null_class_one_more(self):
        without = size(shapes_of(UNet(3, channels=32), (1, 8, 8, 3)))
        assert size(shapes_of(UNet(3, channels=32, num_classes=10), (1, 8, 8, 3), label=0)) == without + 11 * 4 * 32

    def test_stable_diffusion_1_5_has_the_published_number_of_parameters(self):
        x, t, text = jnp.zeros((1, 64, 64, 4)), jnp.zeros(1), jnp.zeros((1, 77, 768))
        params = jax.eval_shape(SD_1_5.init, jax.random.key(0), x, t, {"text": text})["params"]
        assert size(params) == 859_520_964

    def test_adm_for_imagenet_64_has_the_296_million_of_its_paper(self):
        """Table 11 of arXiv:2105.05233; and exactly what its layers come to, with a row for the null class."""
        config = importlib.import_module("configs.adm_imagenet64").get_config()

        def block(a, b):  # norm, convolution, embedding's scale and shift, norm, convolution, shortcut
            return 2 * a + (9 * a * b + b) + 769 * 2 * b + 2 * b + (9 * b * b + b) + (a * b + b) * (a != b)

        def attention(c):
            return 2 * c + 4 * (c * c + c)

        widths = [192, 384, 576, 768]
        total = 3 * 192 * 9 + 192 + (192 * 768 + 768) + (768 * 768 + 768) + 1001 * 768
        skips, c = [192], 192
        for i, width in enumerate(widths):
            for _ in range(3):
                total += block(c, width) + (attention(width) if i else 0)
                c = width
                skips.append(c)
            if i < 3:
                total += block(c, c)
                skips.append(c)
        total += 2 * block(c, c) + attention(c)
        for i, width in reversed(list(enumerate(widths))):
            for _ in range(4):
                total += block(c + skips.pop(), width) + (attention(width) if i else 0)
                c = width
            total += block(c, c) if i else 0
        total += 2 * 192 + 9 * 192 * 6 + 6
        assert round(total / 1e6) == 296
        assert size(experiment.model(config).abstract) == total

    def test_names_of_parameters(self):
        params = shapes_of(TINY, (1, 8, 8, 2), label=0)
        assert params["down_0"]["block_0"]["conv1"]["kernel"].shape == (3, 3, 8, 8)
        assert params["mid"]["attention"]["query"]["kernel"].shape == (16, 16)
        assert params["up_1"]["block_1"]["shortcut"]["kernel"].shape == (24, 16)
        assert set(params["up_1"]) == {"block_0", "attention_0", "block_1", "attention_1", "upsample"}


@pytest.mark.parametrize(
    ("shape", "net"),
    [
        ((2, 12, 3), UNet(5, channels=9, multipliers=(1, 2, 1), blocks=1, attention=(4,), groups=3)),
        ((1, 6, 10, 1), UNet(1, channels=5, multipliers=(1, 3), blocks=2, attention=(), groups=5, heads=5)),
        ((1, 2, 4, 6, 2), UNet(2, channels=6, multipliers=(1, 1), blocks=1, attention=(1, 2), groups=2, heads=2)),
        ((1, 3, 5, 1), UNet(1, channels=4, multipliers=(1,), blocks=1, attention=(), groups=2)),
    ],
    ids=["sequence", "image", "volume", "one_level"],
)
def test_any_rank_size_and_number_of_channels(shape, net):
    x = np.random.default_rng(0).standard_normal(shape, np.float32)
    t = np.full(shape[0], 7.0, np.float32)

    @jax.jit
    def run(x, t):
        params = net.init(jax.random.key(0), x, t)["params"]
        return net.apply({"params": perturbed(params)}, x, t)

    out = run(x, t)
    assert out.shape == (*shape[:-1], net.out_channels)
    assert np.isfinite(out).all()
    assert np.asarray(out).std() > 0


class TestOutput:
    def test_it_starts_at_zero(self, run, initial, batch):
        np.testing.assert_array_equal(run(initial, *batch), 0.0)

    def test_example_i_depends_on_entry_i_alone(self, run, params, batch):
        x, t, cond = batch
        order = np.array([2, 0, 1])
        shuffled = run(params, x[order], t[order], {"label": cond["label"][order]})
        np.testing.assert_allclose(shuffled, run(params, x, t, cond)[order], rtol=1e-4, atol=1e-4)

    def test_it_depends_on_image_time_and_label(self, run, params, batch):
        x, t, cond = batch
        out = run(params, x, t, cond)
        for other in [
            run(params, x + 0.1, t, cond),
            run(params, x, t + 1.0, cond),
            run(params, x, t, {"label": (cond["label"] + 1) % 4}),
        ]:
            assert (np.abs(other - out).max(axis=(1, 2, 3)) > 1e-4).all()

    def test_only_the_rows_of_labels_in_the_batch_have_a_gradient(self, run, params, batch):
        gradient = jax.grad(lambda params: run(params, *batch).sum())(params)["label"]["embedding"]
        assert (np.abs(gradient).max(axis=1) > 0).tolist() == [True, False, True, True]

    def test_dropout_acts_in_training_alone(self, run, params, batch):
        np.testing.assert_array_equal(run(params, *batch, seed=0), run(params, *batch, seed=1))
        assert np.abs(run(params, *batch, train=True, seed=0) - run(params, *batch, train=True, seed=1)).max() > 1e-3


@pytest.fixture(scope="module")
def text_batch():
    rng = np.random.default_rng(1)
    x, text = rng.standard_normal((3, 4, 6, 2), np.float32), rng.standard_normal((3, 5, 6), np.float32)
    return x, np.float32([0.0, 10.0, 999.0]), {"text": text, "text_mask": np.arange(5) < np.array([[5], [3], [0]])}


@pytest.fixture(scope="module")
def text_params(text_batch):
    return drawn(TEXT, *text_batch)


class TestText:
    def test_only_tokens_that_count_change_the_output_of_their_example(self, run, text_params, text_batch):
        x, t, cond = text_batch
        text, mask = cond["text"], cond["text_mask"]
        out = run(text_params, x, t, cond, net=TEXT)
        assert np.isfinite(out).all()
        other = np.where(mask[..., None], text, 1e4)
        np.testing.assert_array_equal(run(text_params, x, t, cond | {"text": other}, net=TEXT), out)
        other = np.where(mask[..., None], text + 0.5, text)
        changed = np.abs(run(text_params, x, t, cond | {"text": other}, net=TEXT) - out).max(axis=(1, 2, 3))
        assert (changed[:2] > 1e-4).all()
        assert changed[2] == 0

    def test_no_mask_is_a_mask_of_ones(self, run, text_params, text_batch):
        x, t, cond = text_batch
        ones = run(text_params, x, t, cond | {"text_mask": np.ones((3, 5), bool)}, net=TEXT)
        np.testing.assert_allclose(run(text_params, x, t, {"text": cond["text"]}, net=TEXT), ones, rtol=1e-5, atol=1e-5)

    def test_bfloat16_computes_between_float32_parameters_and_output(self, run, text_params, text_batch):
        net = TEXT.clone(dtype=jnp.bfloat16)
        assert {p.dtype for p in jax.tree.leaves(jax.eval_shape(net.init, jax.random.key(0), *text_batch))} == {
            jnp.dtype("float32")
        }
        exact, out = run(text_params, *text_batch, net=TEXT), run(text_params, *text_batch, net=net)
        assert out.dtype == jnp.float32
        assert 0 < np.square(out - exact).mean() < 0.02**2 * np.square(exact).mean()
        text = str(jax.make_jaxpr(partial(run, net=net))(text_params, *text_batch))
        products = [line for line in text.splitlines() if "dot_general[" in line and ":f32" in line]
        # The logits of the one layer's two attentions.
        assert len(products) == 2, products

    @pytest.mark.parametrize("shape", [(5,), (4, 6), (2, 3, 4)])
    def test_places_make_of_equal_positions_different_ones(self, shape):
        """Without them, what is at a position goes where the position goes."""
        rng = np.random.default_rng(0)
        x, text = rng.standard_normal((2, *shape, 12), np.float32), rng.standard_normal((2, 3, 6), np.float32)
        order = rng.permutation(math.prod(shape))

        def moved(h):
            return h.reshape(2, -1, 12)[:, order].reshape(x.shape)

        for net in (SpatialTransformer(2, 4), SpatialTransformer(2, 4, places=True)):
            params = drawn(net, x, text)
            apply = jax.jit(partial(net.apply, {"params": params}))
            difference = np.abs(apply(moved(x), text) - moved(apply(x, text))).max()
            assert difference > 1e-2 if net.places else difference < 1e-5

    def test_a_place_is_that_of_the_formula_whatever_the_size(self):
        places = place_embedding((4, 6), 18).reshape(4, 6, 18)
        u, v = -1 + 2 * (np.array([2, 5]) + 0.5) / [4, 6]
        waves = math.pi * 10.0 ** (-np.arange(4) / 4)
        expected = [np.sin(u * waves), np.cos(u * waves), np.sin(v * waves), np.cos(v * waves), np.zeros(2)]
        np.testing.assert_allclose(places[2, 5], np.concatenate(expected), atol=1e-6)
        np.testing.assert_allclose(
            place_embedding((12,), 8).reshape(4, 3, 8)[:, 1], place_embedding((4,), 8), atol=1e-6
        )
        assert len(np.unique(place_embedding((16, 16), 32).round(3), axis=0)) == 256

    def test_every_pair_of_matrices_is_named_for_tensor_parallelism(self, text_params):
        layer = text_params["mid"]["attention"]["layer_0"]
        shapes = {p: {name: w["kernel"].shape for name, w in layer[p].items()} for p in layer if "norm" not in p}
        same, wide = (8, 8), (8, 32)
        assert shapes == {
            "self_attention": {"query": same, "key": same, "value": same, "out": same},
            "cross_attention": {"query": same, "key": (6, 8), "value": (6, 8), "out": same},
            "feed_forward": {"linear": wide, "gate": wide, "project": (32, 8)},
        }


class TestConditions:
    NET = UNet(2, channels=4, multipliers=(1,), blocks=1, attention=(), groups=2)

    def test_concatenated_entries_follow_x_in_their_order(self, run):
        rng = np.random.default_rng(0)
        x, a, b = (rng.standard_normal((2, 6, c), np.float32) for c in (2, 1, 3))
        t = np.float32([1.0, 2.0])
        whole = np.concatenate([x, b, a], axis=-1)
        params = drawn(self.NET, whole, t)
        got = run(params, x, t, {"a": a, "b": b}, net=self.NET.clone(concat=("b", "a")))
        np.testing.assert_array_equal(got, run(params, whole, t, None, net=self.NET))

    def test_every_level_has_an_embedding_of_its_own(self, run):
        x, t = np.random.default_rng(0).standard_normal((2, 6, 2), np.float32), np.float32([1.0, 2.0])
        net, zero = self.NET.clone(levels=("low", "high")), np.zeros(2, np.float32)
        cond = {"low": zero, "high": zero}
        params = drawn(net, x, t, cond)
        assert {"level_low_0", "level_low_1", "level_high_0", "level_high_1"} <= set(params)
        out = run(params, x, t, cond, net=net)
        low = run(params, x, t, cond | {"low": np.float32([0.0, 7.0])}, net=net)
        high = run(params, x, t, cond | {"high": np.float32([0.0, 7.0])}, net=net)
        np.testing.assert_array_equal(low[0], out[0])
        assert min(np.abs(a[1] - b[1]).max() for a, b in [(low, out), (high, out), (low, high)]) > 1e-4

    def test_levels_are_scaled_to_where_sinusoids_tell_them_apart(self, run):
        """A level s at scale 1000 is what 1000 s is unscaled; unscaled, all levels of [0, 1) look alike."""
        x, t = np.random.default_rng(0).standard_normal((2, 6, 2), np.float32), np.float32([1.0, 2.0])
        net, level = self.NET.clone(levels=("low",)), np.float32([0.125, 0.25])
        scaled = net.clone(level_scale=1000.0)
        params = drawn(net, x, t, {"low": level})
        got = run(params, x, t, {"low": level}, net=scaled)
        np.testing.assert_array_equal(got, run(params, x, t, {"low": 1000 * level}, net=net))
        # Of 32 features, how far the levels of a cascade are apart: as far as different times are.
        told = [np.asarray(time_embedding(s * np.float32([0.1, 0.2]), 32)) for s in (1, 1000)]
        apart = [np.linalg.norm(a - b) for a, b in told]
        assert apart[0] < 0.2 < 2 < apart[1]


def test_one_vector_of_the_text_is_added_to_the_time_embedding(run):
    net = UNet(2, channels=4, multipliers=(1,), blocks=1, attention=(), groups=2, text_features=3, pooled_text=True)
    x, t = np.random.default_rng(0).standard_normal((2, 4, 2), np.float32), np.float32([1.0, 2.0])
    cond = {"text": x[:, :, [0, 1, 1]], "text_pooled": np.float32([[1, 2, 3], [4, 5, 6]])}
    params = drawn(net, x, t, cond)
    out = run(params, x, t, cond, net=net)
    other = run(params, x, t, cond | {"text_pooled": np.float32([[1, 2, 3], [0, 0, 0]])}, net=net)
    np.testing.assert_array_equal(other[0], out[0])
    assert np.abs(other[1] - out[1]).max() > 1e-4
    biases = {name: params[name] for name in ("time_1", "text_pooled")}
    moved = jax.tree.map(lambda a: a, params)
    moved["time_1"] = biases["time_1"] | {"bias": biases["time_1"]["bias"] + biases["text_pooled"]["bias"]}
    moved["text_pooled"] = biases["text_pooled"] | {"bias": jnp.zeros_like(biases["text_pooled"]["bias"])}
    np.testing.assert_allclose(run(moved, x, t, cond, net=net), out, atol=1e-5)
    with pytest.raises(UserError, match=r"missing \['text_pooled'\]"):
        net.apply({"params": params}, x, t, {"text": cond["text"]})


@pytest.mark.parametrize("options", [{}, {"text_features": 3, "scale_shift": True}])
def test_no_rematerialization_changes_parameters_output_or_gradient(options):
    x, t = np.random.default_rng(0).standard_normal((2, 4, 2), np.float32), np.float32([1.0, 2.0])
    cond = {"text": x[:, :, [0, 1, 1]]} if options else None
    plain = UNet(2, channels=4, multipliers=(1,), blocks=1, attention=(), groups=2, dropout=0.3).clone(**options)
    params = drawn(plain, x, t, cond)

    def gradient(net):
        def loss(params):
            out = net.apply({"params": params}, x, t, cond, train=True, rngs={"dropout": jax.random.key(0)})
            return jnp.square(out).mean()

        assert ("remat" in str(jax.make_jaxpr(loss)(params))) == (net.remat != "none")
        return jax.jit(jax.value_and_grad(loss))(params)

    expected = gradient(plain)
    for remat in rematerialization.CHOICES[1:] if options else ("dots",):
        got = gradient(plain.clone(remat=remat))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), got, expected)


def test_bfloat16_computes_between_float32_parameters_and_output(run, params, batch):
    net = TINY.clone(dtype=jnp.bfloat16)
    text = str(jax.make_jaxpr(partial(run, net=net))(params, *batch))
    convolutions = [line for line in text.splitlines() if "conv_general_dilated[" in line]
    assert sum("bf16[" in line for line in convolutions) == len(convolutions) - 1  # all but the last
    assert {p.dtype for p in jax.tree.leaves(shapes_of(net, (1, 4, 8, 2), label=0))} == {jnp.dtype("float32")}
    exact, out = run(params, *batch), run(params, *batch, net=net)
    assert out.dtype == jnp.float32
    assert 0 < np.square(out - exact).mean() < 0.02**2 * np.square(exact).mean()
    read = net.as_read(params)
    assert {read[name]["kernel"].dtype for name in ("conv_in", "conv_out")} == {jnp.dtype("bfloat16"), out.dtype}
    np.testing.assert_array_equal(run(read, *batch, net=net), out)


@pytest.mark.parametrize(
    ("net", "x", "cond", "message"),
    [
        (UNet(3), (1, 30, 36, 3), {}, "4 levels .* multiple of 8; got 30 x 36; the nearest that fits is 32 x 32"),
        (UNet(3), (1, 2, 8, 3), {}, "got 2 x 8; the nearest that fits is 8 x 8"),
        (UNet(3), (1, 32, 3, 1, 1, 1), {}, "one to three spatial axes"),
        (UNet(3, channels=48), (1, 32, 32, 3), {}, "48 channels cannot be normalized in 32 groups"),
        (UNet(3, heads=3), (1, 32, 32, 3), {}, "256 channels cannot be split over 3 attention heads"),
        (UNet(3, attention=(2, 16)), (1, 32, 32, 3), {}, r"downsampling factors .*\[1, 2, 4, 8\]; got \[16\]"),
        (UNet(3), (1, 32, 32, 3), {"label": 0}, r"num_classes=None takes no cond; got \['label'\]"),
        (UNet(3, num_classes=10), (1, 32, 32, 3), {}, r"num_classes=10 takes cond \['label'\]; got none"),
        (
            UNet(3, num_classes=10),
            (1, 32, 32, 3),
            {"label": 0, "text": 0},
            r"got \['label', 'text'\]; superfluous \['text'\]",
        ),
        (UNet(3, head_channels=96), (1, 32, 32, 3), {}, "256 channels cannot be split into attention heads of 96"),
        (UNet(3, resample="pool"), (1, 32, 32, 3), {}, "resample is 'conv' or 'block'; got 'pool'"),
        (UNet(3, places=True), (1, 32, 32, 3), {}, "a net without text does not have"),
        (UNet(3, text_features=5), (1, 32, 32, 3), {}, r"text_features=5 takes cond \['text'\]; got none; missing"),
        (
            UNet(3, text_features=5),
            (1, 32, 32, 3),
            {"text": 0},
            r"cond\['text'\] must have shape \(1, any, 5\); got \(1,\)",
        ),
        (UNet(3), (1, 32, 32, 3), {"text_mask": 0}, r"takes no cond; got \['text_mask'\]"),
        (
            UNet(3, concat=("mask",), levels=("noise",)),
            (1, 32, 32, 3),
            {"noise": 0},
            r"concat=\('mask',\), levels=\('noise',\) takes cond \['mask', 'noise'\]; got \['noise'\]; missing",
        ),
        (UNet(3, concat=("mask",)), (2, 32, 16, 3), {"mask": 0}, r"cond\['mask'\] must have shape \(2, 32, 16, any\)"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(net, x, cond, message):
    with pytest.raises(UserError, match=message) as error:
        shapes_of(net, x, **cond)
    assert "\n" not in str(error.value)


def test_a_mask_of_numbers_is_refused():
    cond = {"text": jnp.zeros((1, 5, 6)), "text_mask": jnp.ones((1, 5))}
    with pytest.raises(UserError, match=r"cond\['text_mask'\] is bool, True where a token counts; got float32"):
        TEXT.init(jax.random.key(0), jnp.zeros((1, 4, 4, 2)), jnp.zeros(1), cond)


def test_one_time_for_all_is_refused():
    with pytest.raises(UserError, match=r"one value for each of 2 examples, shape \(2,\); got \(\)"):
        UNet(3).init(jax.random.key(0), jnp.zeros((2, 32, 32, 3)), jnp.zeros(()))
