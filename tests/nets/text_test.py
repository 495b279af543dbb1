"""What holds of a text encoder with any weights: who sees whom, what padding does, where gradients go."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.errors import UserError
from diffusion_jax.nets.text import Bert, ClipText, TextTransformer

VOCABULARY, LENGTH, PAD, EOS = 13, 8, 0, 12
SIZES = {"vocabulary": VOCABULARY, "width": 16, "layers": 2, "heads": 2, "length": LENGTH}
NETS = {
    "clip": ClipText(**SIZES, hidden=24, eos=EOS),
    "bert": Bert(**SIZES, hidden=24),
    "transformer": TextTransformer(**SIZES),
}
TOKENS = np.array([[1, 5, 3, 12, 0, 0, 0, 0], [1, 7, 2, 9, 4, 6, 11, 12], [1, 12, 0, 0, 0, 0, 0, 0]], np.int32)
MASK = np.arange(LENGTH) < np.array([4, 8, 2])[:, None]


@cache
def random(net):
    """Params of which none is zero or one."""
    shapes = jax.eval_shape(net.init, jax.random.key(0), TOKENS)["params"]
    rng = np.random.default_rng(0)
    return {"params": jax.tree.map(lambda s: 0.4 * rng.standard_normal(s.shape, np.float32) + 0.1, shapes)}


@cache
def compiled(net):
    return jax.jit(net.apply)


def apply(net, params, tokens, mask=None):
    return compiled(net)(params, tokens, mask)


@pytest.fixture(scope="module", params=NETS)
def net(request):
    return NETS[request.param]


@pytest.fixture(scope="module")
def params(net):
    return random(net)


def test_masked_tokens_change_nothing(net, params):
    junk = np.where(MASK, TOKENS, 5)
    out, other = apply(net, params, TOKENS, MASK), apply(net, params, junk, MASK)
    np.testing.assert_array_equal(out.hidden[MASK], other.hidden[MASK])
    np.testing.assert_array_equal(out.pooled, other.pooled)
    if not isinstance(net, ClipText):  # the first texts of CLIP never see what follows
        assert np.abs(out.hidden - apply(net, params, junk, np.ones_like(MASK)).hidden)[0, :4].max() > 1e-2


def test_more_padding_and_other_texts_change_nothing(net, params):
    out = apply(net, params, TOKENS, MASK)
    alone = apply(net, params, TOKENS[:1, :4])
    np.testing.assert_allclose(alone.hidden[0], out.hidden[0, :4], atol=2e-6)
    np.testing.assert_allclose(alone.pooled[0], out.pooled[0], atol=2e-6)


@pytest.mark.parametrize("name", ["bert", "transformer"])
def test_no_mask_leaves_out_the_padding(name):
    net, params = NETS[name], random(NETS[name])
    out, masked = apply(net, params, TOKENS), apply(net, params, TOKENS, MASK)
    np.testing.assert_array_equal(out.mask, MASK)
    np.testing.assert_array_equal(out.hidden, masked.hidden)


@pytest.mark.parametrize("i", [2, LENGTH - 1])
def test_a_token_is_seen_from_itself_on_in_clip_and_by_all_in_the_others(net, params, i):
    seen = np.ones_like(MASK)
    changed = TOKENS.copy()
    changed[:, i] = 10
    change = np.abs(apply(net, params, TOKENS, seen).hidden - apply(net, params, changed, seen).hidden).max(axis=-1)
    if isinstance(net, ClipText):
        np.testing.assert_array_equal(change[:, :i], 0)
        assert change[:, i:].min() > 1e-4
    else:
        assert change.min() > 1e-4


def test_without_positions_the_order_of_the_tokens_is_the_order_of_the_outputs(net, params):
    order = np.random.default_rng(1).permutation(LENGTH)
    ordering = {"position", "neighbours"} & set(params["params"])
    zeros = {name: jax.tree.map(jnp.zeros_like, params["params"][name]) for name in ordering}
    orderless = {"params": {**params["params"], **zeros}}
    out = apply(net, orderless, TOKENS, MASK).hidden[:, order]
    moved = apply(net, orderless, TOKENS[:, order], MASK[:, order]).hidden
    equal = np.allclose(out, moved, atol=1e-5)
    assert equal != isinstance(net, ClipText)
    assert not np.allclose(apply(net, params, TOKENS, MASK).hidden[:, order], moved, atol=1e-2)


def test_a_transformer_without_layers_sees_the_neighbours_of_a_token_unless_they_are_masked():
    net = NETS["transformer"].clone(layers=0)
    params, i = random(net), 3
    changed = TOKENS.copy()
    changed[:, i] = 10
    for mask in (np.ones_like(MASK), np.tile(np.arange(LENGTH) != i, (len(TOKENS), 1))):
        change = np.abs(apply(net, params, TOKENS, mask).hidden - apply(net, params, changed, mask).hidden).max(axis=-1)
        seen = (abs(np.arange(LENGTH) - i) <= 1) & mask[:, [i]]
        np.testing.assert_array_equal(change > 1e-4, seen)


def test_each_neighbour_is_added_at_the_size_of_an_embedding():
    net = TextTransformer(VOCABULARY, width=256, layers=0, length=LENGTH)
    params = jax.jit(net.init)(jax.random.key(0), TOKENS)["params"]
    size = np.mean(np.square(params["token"]["embedding"]))
    x = np.random.default_rng(0).standard_normal((100, 256)) * np.sqrt(size)
    for tap in params["neighbours"]["kernel"]:
        assert np.mean(np.square(x @ tap)) == pytest.approx(size, rel=0.05)


def test_bfloat16_computes_near_float32_and_stores_and_gives_float32(net, params):
    half = net.clone(dtype=jnp.bfloat16)
    stored = jax.eval_shape(half.init, jax.random.key(0), TOKENS)
    assert {leaf.dtype for leaf in jax.tree.leaves(stored)} == {jnp.dtype("float32")}
    out, exact = apply(half, params, TOKENS, MASK), apply(net, params, TOKENS, MASK)
    assert out.hidden.dtype == out.pooled.dtype == jnp.float32
    difference = np.abs(out.hidden - exact.hidden)[MASK]
    assert 0 < difference.mean() < 0.02
    assert difference.max() < 0.2


@pytest.mark.parametrize(("width", "depth"), [(16, 2), (64, 2), (256, 4)])
def test_words_and_their_order_are_in_the_states_from_the_start(width, depth):
    """A net that starts with no more than the bag of its words takes long to learn what is left of what."""
    rng = np.random.default_rng(0)
    words = np.stack([rng.permutation(np.arange(3, 12)) for _ in range(16)])
    tokens = np.pad(words, ((0, 0), (1, 0)), constant_values=1).astype(np.int32)
    net = TextTransformer(VOCABULARY, width, depth, heads=4, length=10)
    out = jax.jit(lambda key: net.apply(net.init(key, tokens), tokens))(jax.random.key(0))
    assert np.linalg.norm(out.pooled - out.pooled.mean(axis=0)) > 0.1 * np.linalg.norm(out.pooled)
    states = out.hidden[:, 1:] / np.linalg.norm(out.hidden[:, 1:], axis=-1, keepdims=True)
    likeness = np.einsum("bnd, bmd -> nm", states, states) / 16
    assert likeness[~np.eye(9, dtype=bool)].mean() < 0.5


def test_every_parameter_of_the_transformer_learns():
    net = NETS["transformer"]
    tokens = np.arange(16, dtype=np.int32).reshape(2, LENGTH) % VOCABULARY  # every token, every position
    seen = np.ones(tokens.shape, bool)
    target = np.random.default_rng(2).standard_normal((*tokens.shape, net.width), np.float32)
    params = random(net)
    loss = jax.jit(jax.grad(lambda p: jnp.mean((net.apply(p, tokens, seen, train=True).hidden - target) ** 2)))
    gradients, _ = jax.tree_util.tree_flatten_with_path(loss(params))
    for path, gradient in gradients:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name.endswith("key/bias"):
            # It adds the same to a query's every score, to which softmax is indifferent: q (k + b) = q k + q b.
            assert np.abs(gradient).max() < 1e-7, name
        else:
            assert (np.abs(gradient) > 1e-7).mean() > 0.99, name


def test_masked_tokens_get_no_gradient_and_a_text_without_tokens_gives_zeros():
    net, params = NETS["transformer"], random(NETS["transformer"])
    mask = MASK.copy()
    mask[2] = False
    tokens = np.where(mask, TOKENS, 8)  # 8 stands nowhere else
    out = apply(net, params, tokens, mask)
    np.testing.assert_array_equal(out.hidden[~mask], 0)
    loss = jax.jit(jax.grad(lambda p: net.apply(p, tokens, mask).hidden.sum(axis=-1).var()))
    table = loss(params)["params"]["token"]
    assert np.all(np.isfinite(table["embedding"]))
    np.testing.assert_array_equal(table["embedding"][8], 0)
    assert np.abs(table["embedding"][5]).max() > 0


@pytest.mark.parametrize("name", ["bert", "transformer"])
def test_dropout_is_random_in_training_alone_and_keeps_the_mean(name):
    net = NETS[name].clone(dropout=0.1, layers=0)  # of the embeddings, which a layer norm precedes or follows
    params, keys = random(net), jax.random.split(jax.random.key(0), 2000)
    still = apply(net, params, TOKENS, MASK).hidden
    np.testing.assert_array_equal(still, apply(NETS[name].clone(layers=0, dropout=0.0), params, TOKENS, MASK).hidden)
    draw = jax.jit(jax.vmap(lambda key: net.apply(params, TOKENS, MASK, train=True, rngs={"dropout": key}).hidden))
    draws = np.asarray(draw(keys))
    assert np.abs(draws[0] - draws[1])[MASK].max() > 0.1
    if name == "bert":  # dropped after the norm, the mean is exact: 5 standard errors
        error = np.abs(draws.mean(axis=0) - still) / (np.abs(still) * np.sqrt(0.1 / 0.9 / len(keys)) + 1e-6)
        assert error.max() < 5


def test_clip_is_pooled_at_its_first_eos_or_its_highest_token():
    params = random(NETS["clip"])
    tokens = np.array([[1, 5, 11, 3, 11, 12, 12, 12]], np.int32)
    for eos, end in ((None, 5), (12, 5), (11, 2)):
        out = apply(NETS["clip"].clone(eos=eos), params, tokens)
        np.testing.assert_allclose(out.pooled[0], out.hidden[0, end], rtol=1e-6)


def test_clip_penultimate_is_the_net_of_one_layer_less():
    net, params = NETS["clip"], random(NETS["clip"])
    shorter = {"params": {name: value for name, value in params["params"].items() if name != "layer_1"}}
    out = apply(net.clone(penultimate=True), params, TOKENS)
    np.testing.assert_allclose(out.hidden, apply(net.clone(layers=1), shorter, TOKENS).hidden, atol=1e-6)
    np.testing.assert_allclose(out.pooled, apply(net, params, TOKENS).pooled, atol=1e-6)


def test_a_token_that_the_table_lacks_is_nan_and_never_another(net, params):
    out = apply(net, params, np.full((1, LENGTH), VOCABULARY, np.int32), MASK[1:2])
    assert np.all(np.isnan(out.hidden))


@pytest.mark.parametrize(
    ("options", "tokens", "mask", "words"),
    [
        ({}, np.zeros((2, LENGTH + 1), np.int32), None, "8 positions but the texts 9 tokens"),
        ({}, np.zeros((2, 4), np.float32), None, r"integers of shape \[batch, tokens\]; got float32 \(2, 4\)"),
        ({}, np.zeros(4, np.int32), None, r"got int32 \(4,\)"),
        ({}, np.zeros((2, 4), np.int32), np.ones((2, 5), bool), r"bool \(2, 4\), as they are; got bool \(2, 5\)"),
        ({}, np.zeros((2, 4), np.int32), np.ones((2, 4), np.int32), "got int32"),
        ({"heads": 3}, np.zeros((2, 4), np.int32), None, "16 cannot be split over 3 heads"),
        ({"activation": "swish"}, np.zeros((2, 4), np.int32), None, "one of gelu, .*; got 'swish'"),
    ],
)
def test_mistakes_are_said(options, tokens, mask, words):
    net = NETS["clip"].clone(**options)
    with pytest.raises(UserError, match=words):
        jax.eval_shape(net.init, jax.random.key(0), tokens, mask)
