"""DiT: its size, how it starts, what its output depends on, its scanned layers and how they are split."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dit_twin import random_params
from flax import linen as nn

from diffusion_jax.errors import UserError
from diffusion_jax.nets import rematerialization
from diffusion_jax.nets.dit import DiT, Layer, positions
from diffusion_jax.nets.families import NETWORKS
from diffusion_jax.nets.layers import time_embedding
from diffusion_jax.runs.plan.compiled import collectives
from diffusion_jax.testing import check_network
from diffusion_jax.train import sharding

TINY = DiT(2, width=12, depth=3, heads=2, waves=8, num_classes=3)
FULL = TINY.clone(text_features=5, concat=("hint",), levels=("low",), pooled_text=True, depth=2)


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    normal = lambda *shape: rng.standard_normal(shape, np.float32)  # noqa: E731
    cond = {"label": np.int32([0, 3]), "text": normal(2, 4, 5), "text_mask": np.arange(4) < np.array([[4], [2]])}
    cond |= {"text_pooled": normal(2, 5), "hint": normal(2, 4, 6, 1), "low": np.float32([0.1, 0.9])}
    return normal(2, 4, 6, 2), np.float32([10.0, 900.0]), cond


@pytest.fixture(scope="module")
def params(batch):
    return random_params(FULL, *batch)


@pytest.fixture(scope="module")
def run():
    @partial(jax.jit, static_argnames=("net", "train"))
    def run(params, x, t, cond, net=FULL, train=False, seed=0):
        return net.apply({"params": params}, x, t, cond, train=train, rngs={"dropout": jax.random.key(seed)})

    return run


@pytest.fixture(scope="module")
def gradient():
    @partial(jax.jit, static_argnames=("net", "train"))
    def gradient(params, x, t, cond, net=FULL, train=False):
        def loss(params):
            rngs = {"dropout": jax.random.key(0)}
            return jnp.square(net.apply({"params": params}, x, t, cond, train=train, rngs=rngs)).mean()

        return jax.value_and_grad(loss)(params)

    return gradient


def close(a, b, rtol=1e-4, atol=1e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), a, b)


def test_it_is_a_family():
    assert NETWORKS["dit"] is DiT


@pytest.mark.parametrize(
    ("net", "size"),
    [
        (TINY.clone(num_classes=None, patch=4, depth=1), (12,)),
        (FULL, (4, 6)),
        (TINY.clone(concat=("a", "b"), depth=1), (2, 4, 2)),
    ],
    ids=["sequence", "image_with_all_conditions", "volume"],
)
def test_it_conforms(net, size):
    check_network(net, size)


class TestSize:
    def test_dit_xl_2_has_the_published_number_of_parameters(self):
        """675,129,632 at 32 x 32 x 4 with learned sigma; of them the table of positions is no parameter here."""
        cond = {"label": jnp.zeros(1, jnp.int32)}
        shapes = jax.eval_shape(
            DiT(8, num_classes=1000).init, jax.random.key(0), jnp.zeros((1, 32, 32, 4)), jnp.zeros(1), cond
        )["params"]
        trained = sum(math.prod(a.shape) for a in jax.tree.leaves(shapes))
        table = positions((16, 16), 1152).size
        assert (trained, table, trained + table) == (674_834_720, 294_912, 675_129_632)

    def test_parameters_of_layers_are_stacked(self, params):
        assert params["layers"]["self_attention"]["query"]["kernel"].shape == (2, 12, 12)
        assert params["layers"]["cross_attention"]["key"]["kernel"].shape == (2, 5, 12)
        assert params["layers"]["feed_forward"]["up"]["kernel"].shape == (2, 12, 48)
        assert params["layers"]["modulation"]["bias"].shape == (2, 72)
        assert params["patch_in"]["kernel"].shape == (2 * 2 * 3, 12)


class TestPositions:
    def test_they_are_those_of_the_formula(self):
        table = positions((3, 4), 18).reshape(3, 4, 18)
        waves = 10000.0 ** (-np.arange(4) / 4)
        row, column = 2 * waves, 3 * waves
        expected = [np.sin(column), np.cos(column), np.sin(row), np.cos(row), np.zeros(2)]
        np.testing.assert_allclose(table[2, 3], np.concatenate(expected), atol=1e-6)

    @pytest.mark.parametrize("size", [(16,), (3, 5), (2, 3, 4)])
    def test_no_two_are_alike(self, size):
        table = positions(size, 12)
        assert table.shape == (math.prod(size), 12)
        assert len(np.unique(table.round(4), axis=0)) == len(table)


class TestStart:
    def test_the_output_and_what_every_layer_adds_start_at_zero(self, batch):
        x, t, cond = batch
        initial = jax.jit(FULL.init)(jax.random.key(0), x, t, cond)["params"]
        np.testing.assert_array_equal(FULL.apply({"params": initial}, x, t, cond), 0.0)
        layer = Layer(2, 48, 0.0)
        states, emb = np.random.default_rng(0).standard_normal((2, 6, 12), np.float32), np.ones((2, 12), np.float32)
        first = jax.tree.map(lambda a: a[0], initial["layers"])
        after, _ = layer.apply({"params": first}, states, emb, cond["text"], cond["text_mask"])
        np.testing.assert_array_equal(after, states)

    def test_every_layer_starts_with_weights_of_its_own_and_of_its_own_size(self):
        """Uniform within sqrt(6 / (in + out)) of one layer, not of the stack."""
        cond = {"label": jnp.zeros(1, jnp.int32)}
        net = TINY.clone(width=48)
        initial = jax.jit(net.init)(jax.random.key(0), jnp.zeros((1, 4, 4, 2)), jnp.zeros(1), cond)["params"]
        kernel = np.asarray(initial["layers"]["feed_forward"]["up"]["kernel"])
        assert np.abs(kernel).max() == pytest.approx(math.sqrt(6 / (48 + 192)), rel=0.01)
        assert np.abs(kernel[0] - kernel[1]).max() > 0.1


def dense(p, x):
    return x @ p["kernel"] + p["bias"]


def norm(x):
    h = x - x.mean(-1, keepdims=True)
    return h / np.sqrt(np.square(h).mean(-1, keepdims=True) + 1e-6)


def by_a_plain_loop(net, params, x, t, cond):
    """The output of an image net with all conditions, its patches and layers taken one after another."""
    joined, rows, columns = np.concatenate([x, cond["hint"]], -1), x.shape[1] // 2, x.shape[2] // 2
    corners = [(2 * i, 2 * j) for i in range(rows) for j in range(columns)]
    patches = np.stack([joined[:, i : i + 2, j : j + 2].reshape(len(x), -1) for i, j in corners], axis=1)
    h = dense(params["patch_in"], patches) + positions((rows, columns), net.width)
    told = {name: time_embedding(v, net.waves, "adm") for name, v in [("time", t), ("level_low", cond["low"])]}
    emb = sum(dense(params[f"{name}_1"], nn.silu(dense(params[f"{name}_0"], w))) for name, w in told.items())
    emb += params["label"]["embedding"][cond["label"]] + dense(params["text_pooled"], cond["text_pooled"])
    for i in range(net.depth):
        layer = Layer(net.heads, 4 * net.width, 0.0)
        weights = jax.tree.map(lambda a, i=i: a[i], params["layers"])
        h, _ = layer.apply({"params": weights}, h, emb, cond["text"], cond["text_mask"])
    shift, scale = jnp.split(dense(params["modulation_out"], nn.silu(emb))[:, None], 2, axis=-1)
    given = dense(params["patch_out"], norm(h) * (1 + scale) + shift).reshape(*h.shape[:2], 2, 2, -1)
    out = np.zeros((*x.shape[:-1], net.out_channels), np.float32)
    for n, (i, j) in enumerate(corners):
        out[:, i : i + 2, j : j + 2] = given[:, n]
    return out


class TestLayers:
    def test_scanned_layers_are_layers_one_after_another(self, run, params, batch):
        expected = by_a_plain_loop(FULL, params, *batch)
        np.testing.assert_allclose(run(params, *batch), expected, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("other", [*({"remat": choice} for choice in rematerialization.CHOICES[1:]), {"unroll": 2}])
    def test_neither_remat_nor_unrolling_changes_output_or_gradient(self, gradient, params, batch, other):
        net = FULL.clone(dropout=0.3)
        changed = net.clone(**other)
        text = str(jax.make_jaxpr(partial(gradient, net=changed, train=True))(params, *batch))
        assert ("remat" in text) == (changed.remat != "none")
        expected = gradient(params, *batch, net=net, train=True)
        close(gradient(params, *batch, net=changed, train=True), expected)

    def test_each_rematerialization_holds_less_than_the_one_before(self):
        """As the compiler lays it out: in a U-Net, CPU's puts together again what was to be computed twice."""
        x, t = jax.ShapeDtypeStruct((4, 16, 16, 3), jnp.float32), jax.ShapeDtypeStruct((4,), jnp.float32)

        def temporaries(remat):
            net = DiT(3, patch=1, width=16, depth=4, heads=2, remat=remat)
            loss = lambda params, x, t: jnp.square(net.apply({"params": params}, x, t, train=True)).mean()  # noqa: E731
            params = jax.eval_shape(net.init, jax.random.key(0), x, t)["params"]
            return jax.jit(jax.grad(loss)).lower(params, x, t).compile().memory_analysis().temp_size_in_bytes

        none, attention, dots, blocks = map(temporaries, ("none", "attention", "dots", "blocks"))
        assert none > 1.5 * attention
        assert attention > 1.2 * dots
        assert dots > 1.2 * blocks

    def test_dropout_acts_in_training_alone(self, run, params, batch):
        net = FULL.clone(dropout=0.5)
        out = run(params, *batch)
        np.testing.assert_array_equal(run(params, *batch, net=net), out)
        drawn = [run(params, *batch, net=net, train=True, seed=seed) for seed in (0, 0, 1)]
        np.testing.assert_array_equal(drawn[0], drawn[1])
        assert min(np.abs(drawn[0] - other).max() for other in (out, drawn[2])) > 1e-2

    def test_bfloat16_computes_between_float32_parameters_and_output(self, run, params, batch):
        net = FULL.clone(dtype=jnp.bfloat16)
        shapes = jax.eval_shape(net.init, jax.random.key(0), *batch)
        assert {a.dtype for a in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
        exact, out = run(params, *batch), run(params, *batch, net=net)
        assert out.dtype == jnp.float32
        assert 0 < np.square(out - exact).mean() < 0.03**2 * np.square(exact).mean()
        read = net.as_read(params)
        assert {read[name]["kernel"].dtype for name in ("patch_in", "patch_out")} == {jnp.dtype("bfloat16"), out.dtype}
        np.testing.assert_array_equal(run(read, *batch, net=net), out)
        text = str(jax.make_jaxpr(partial(run, net=net))(params, *batch))
        products = [line for line in text.splitlines() if "dot_general[" in line and ":f32" in line]
        # The logits of the two attentions of the layer, which stands there once, and the last layer.
        assert len(products) == 3, products


class TestText:
    def test_only_tokens_that_count_change_the_output_of_their_example(self, run, params, batch):
        x, t, cond = batch
        out = run(params, x, t, cond)
        mask = cond["text_mask"][..., None]
        np.testing.assert_array_equal(run(params, x, t, cond | {"text": np.where(mask, cond["text"], 1e4)}), out)
        first = cond["text"] + np.float32([1, 0])[:, None, None]
        changed = np.abs(run(params, x, t, cond | {"text": first}) - out).max(axis=(1, 2, 3))
        assert changed[0] > 1e-4
        assert changed[1] == 0


@pytest.fixture(scope="module")
def pieces():
    """Parameters, the network as a function of (params, x), and x, v and w of its shape."""
    net, rng = TINY.clone(depth=2), np.random.default_rng(3)
    x, v, w = (rng.standard_normal((2, 4, 4, 2), np.float32) for _ in range(3))
    t, cond = np.float32([10.0, 900.0]), {"label": np.int32([0, 3])}
    return random_params(net, x, t, cond), lambda params, x: net.apply({"params": params}, x, t, cond), x, v, w


class TestDerivatives:
    """What mean flow and vectorised sweeps ask of a network."""

    def test_forward_mode_is_the_transpose_of_reverse_mode(self, pieces):
        params, apply, x, v, w = pieces
        forward = jax.jit(lambda: jax.jvp(partial(apply, params), (x,), (v,))[1])()
        backward = jax.jit(lambda: jax.vjp(partial(apply, params), x)[1](w)[0])()
        assert np.vdot(w, forward) == pytest.approx(np.vdot(backward, v), rel=1e-4)

    def test_gradient_of_a_jvp_is_the_jvp_of_a_gradient(self, pieces):
        params, apply, x, v, w = pieces
        of_jvp = jax.grad(lambda params: jnp.vdot(w, jax.jvp(partial(apply, params), (x,), (v,))[1]))
        gradient = jax.grad(lambda params, x: jnp.vdot(w, apply(params, x)))
        expected = jax.jit(lambda params: jax.jvp(partial(gradient, params), (x,), (v,))[1])(params)
        close(jax.jit(of_jvp)(params), expected, rtol=1e-3, atol=1e-4)

    def test_several_nets_at_once(self, pieces):
        params, apply, x, *_ = pieces
        both = jax.tree.map(lambda a: np.stack([a, 0.5 * a]), params)
        out = jax.jit(jax.vmap(apply, (0, None)))(both, x)
        for i in range(2):
            np.testing.assert_allclose(out[i], apply(jax.tree.map(lambda a, i=i: a[i], both), x), rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def mesh():
    return sharding.mesh(1, 1, 2, jax.devices()[:2])


class TestTensorParallel:
    """Megatron's pairing over two devices."""

    def test_every_pair_of_matrices_is_split_and_nothing_else(self, params, mesh):
        layout = sharding.tree_sharding({"params": params}, mesh, DiT.tensor_rules)["params"]
        split = jax.tree.map(lambda s: tuple(s.spec).index("tensor") if "tensor" in s.spec else -1, layout)
        one = {"kernel": 2, "bias": 1}
        attention = dict.fromkeys(("query", "key", "value"), one) | {"out": {"kernel": 1, "bias": -1}}
        assert split.pop("layers") == {
            "self_attention": attention,
            "cross_attention": attention,
            "feed_forward": {"up": one, "down": {"kernel": 1, "bias": -1}},
            "modulation": {"kernel": -1, "bias": -1},
        }
        assert set(jax.tree.leaves(split)) == {-1}

    def test_output_and_gradient_are_those_of_one_device_and_only_sums_are_exchanged(
        self, gradient, params, batch, mesh
    ):
        layout = sharding.tree_sharding(params, mesh, DiT.tensor_rules)
        step = jax.jit(gradient, out_shardings=(None, layout))
        program = step.lower(jax.device_put(params, layout), *batch).compile()
        close(program(jax.device_put(params, layout), *batch), gradient(params, *batch))
        assert {collective.kind for collective in collectives(program.as_text(), 2)} == {"all-reduce"}


@pytest.mark.parametrize(
    ("net", "x", "message"),
    [
        (DiT(2, patch=3), (1, 9, 8, 2), "patches of 3 do not divide an image of 9 x 8"),
        (DiT(2, width=100), (1, 8, 8, 2), "100 channels cannot be split over 16 attention heads"),
        (DiT(2), (1, 2, 2, 2, 2, 2), "one to three spatial axes"),
        (DiT(2, width=4, heads=1), (1, 2, 2, 2, 2), "width is at least 6, a sine and a cosine for each of 3"),
        (DiT(2, depth=0), (1, 4, 4, 2), "depth and unroll count layers, from 1; got 0 and 1"),
        (DiT(2, sinusoids="cosine"), (1, 4, 4, 2), "'ddpm' or 'adm'; got 'cosine'"),
        (DiT(2, num_classes=3), (1, 4, 4, 2), r"num_classes=3 takes cond \['label'\]; got none"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(net, x, message):
    with pytest.raises(UserError, match=message) as error:
        jax.eval_shape(net.init, jax.random.key(0), jnp.zeros(x), jnp.zeros(1))
    assert "\n" not in str(error.value)


def test_one_time_for_all_is_refused():
    with pytest.raises(UserError, match=r"one value for each of 2 examples, shape \(2,\); got \(\)"):
        DiT(3).init(jax.random.key(0), jnp.zeros((2, 4, 4, 3)), jnp.zeros(()))
