"""Every attention kernel against XLA's: values, both modes of differentiation, split and unsplit; its memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from diffusion_jax.errors import UserError
from diffusion_jax.nets import (
    attention,
    attention_kernels,
    geglu,
    packed_attention,
    platforms,
    rematerialization,
    splash_attention,
    tpu_kernels,
)
from diffusion_jax.nets.transformer import TransformerLayer
from diffusion_jax.nets.unet import UNet
from diffusion_jax.train import sharding

KERNELS = {
    "chunked": attention_kernels.CHUNKED,
    "splash": splash_attention.splash(interpret=True),
    "packed": packed_attention.packed(interpret=True),
}


def qkv(dtype=jnp.float32, queries=130, keys=300, heads=2):
    """Sizes that are no multiple of a chunk, a block or a lane."""
    q, k, v, g = (
        jax.random.normal(jax.random.key(i), (2, n, heads, 8), dtype)
        for i, n in enumerate((queries, keys, keys, queries))
    )
    return (q, k, v), g


def text_mask(keys=300):
    """[2, 1, 1, keys]: scattered keys of the first example, none of the second."""
    return jax.random.bernoulli(jax.random.key(9), 0.5, (2, 1, 1, keys)).at[1].set(False)


def xla(mask=None):
    return lambda q, k, v: attention.attend(q, k, v, mask, kernel="xla")


def both_ways(f, args, g):
    """(output, gradients of q, k and v) of attention f."""
    out, pull = jax.vjp(f, *args)
    return out, *pull(g)


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_gives_what_xla_gives_forward_and_in_its_gradients(name):
    args, g = qkv()
    mask = text_mask()
    for given in (None, mask):
        f = lambda *a, given=given: by(name, *a, given)  # noqa: E731
        got, alone = jax.jit(lambda args, f=f: (both_ways(f, args, g), f(*args)))(args)
        np.testing.assert_allclose(alone, got[0], rtol=1e-6, atol=1e-6)
        for mine, its in zip(got, both_ways(xla(given), args, g), strict=True):
            np.testing.assert_allclose(mine, its, rtol=1e-5, atol=1e-5)
            assert given is None or not mine[1].any()  # the second example may attend to no key


def by(name, *args):
    return attention.attend_by(KERNELS[name], *args)


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_in_16_bits_is_near_xla_in_32(name):
    args, g = qkv(jnp.bfloat16)
    exact, exact_g = jax.tree.map(lambda a: a.astype(jnp.float32), (args, g))
    for mine, its in zip(both_ways(lambda *a: by(name, *a), args, g), both_ways(xla(), exact, exact_g), strict=True):
        assert mine.dtype == jnp.bfloat16
        np.testing.assert_allclose(mine.astype(jnp.float32), its, rtol=2e-2, atol=2e-2)


def test_the_chunked_kernel_takes_a_mask_of_each_query_and_head():
    args, g = qkv()
    mask = jax.random.bernoulli(jax.random.key(8), 0.5, (1, 2, 130, 300))
    flash = lambda *a: attention.attend(*a, mask, kernel="flash")  # noqa: E731
    for mine, its in zip(both_ways(flash, args, g), both_ways(xla(mask), args, g), strict=True):
        np.testing.assert_allclose(mine, its, rtol=1e-5, atol=1e-5)


def test_the_backward_pass_holds_as_many_keys_as_fit():
    """A multiple of a block that divides all keys, of half a MiB at most; of each such part a gradient is written."""

    def held(keys, features=128, dtype=jnp.bfloat16):
        return splash_attention._held(jax.ShapeDtypeStruct((1, 1, keys, features), dtype))

    assert [held(n) for n in (128, 1024, 4096, 8192, 9216)] == [128, 1024, 2048, 2048, 1536]
    assert held(4096, features=256) == held(4096, dtype=jnp.float32) == 1024
    assert held(4096, features=40) == held(4096)  # vector memory has 40 features in 128 lanes too


@pytest.mark.slow
@pytest.mark.parametrize("keys", [9, 4])
def test_splash_in_several_parts(keys, monkeypatch):
    """Of nine parts of the keys the gradients of the queries come from a pass of their own, of four they are summed."""
    monkeypatch.setattr(splash_attention, "HELD", 128 * 128 * 4)
    args, g = qkv(keys=keys * 128)
    for mine, its in zip(both_ways(lambda *a: by("splash", *a), args, g), both_ways(xla(), args, g), strict=True):
        np.testing.assert_allclose(mine, its, rtol=1e-5, atol=1e-5)


class TestForwardMode:
    """Of each choice, by the derivatives of XLA's attention."""

    args, direction = qkv(queries=12, keys=12)

    def nonlinear(self, choice):
        """What attends depends on q nonlinearly, so that of a second derivative both parts count."""
        _, k, v = self.args
        return lambda q: jnp.sin(attention.attend(jnp.sin(q), k + q, v, kernel=choice))

    def check(self, derivative):
        got, expected = jax.jit(lambda: [derivative(self.nonlinear(choice)) for choice in ("flash", "xla")])()
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)

    def test_jvp_and_a_linearization_mapped_over_directions(self):
        q, g = self.args[0], self.direction
        self.check(lambda f: jax.jvp(f, (q,), (g,))[1])
        self.check(lambda f: jax.vmap(jax.linearize(f, q)[1])(jnp.stack([g, q])))

    def test_the_gradient_of_a_jvp_as_mean_flow_takes_it(self):
        q, g = self.args[0], self.direction
        self.check(lambda f: jax.grad(lambda q: jnp.square(jax.jvp(f, (q,), (g,))[1]).sum())(q))

    def test_the_jvp_of_a_gradient(self):
        q, g = self.args[0], self.direction
        self.check(lambda f: jax.jvp(jax.grad(lambda q: f(q).sum()), (q,), (g,))[1])


def test_gradients_in_a_scan_of_rematerialized_layers_mapped_over_trials():
    args, _ = qkv(queries=12, keys=12)

    def loss(q, choice):
        layer = jax.checkpoint(lambda x: x + attention.attend(x, args[1], x, kernel=choice))
        return jnp.square(jax.lax.scan(lambda x, _: (layer(x), None), q, None, length=3)[0]).sum()

    trials = jnp.stack([args[0], args[2]])
    got, expected = (
        jax.vmap(jax.grad(lambda q, choice=choice: loss(q, choice)))(trials) for choice in ("flash", "xla")
    )
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("axis", ["tensor", "data"])
def test_split_over_two_devices_it_is_what_it_is_on_one(name, axis):
    args, g = qkv(queries=128, keys=128)
    mesh = sharding.mesh(**({"data": 1, "fsdp": 1, "tensor": 1} | {axis: 2}), devices=jax.devices()[:2])
    spec = PartitionSpec(None, None, "tensor") if axis == "tensor" else PartitionSpec("data")
    place = NamedSharding(mesh, spec)
    f = lambda *a: both_ways(lambda *a: by(name, *a), a[:3], a[3])  # noqa: E731
    program = jax.jit(sharding.on_mesh(mesh, f), in_shardings=place, out_shardings=place).lower(*args, g).compile()
    assert "all-" not in program.as_text()  # no device asks another for its heads or examples
    placed = jax.device_put((*args, g), place)
    for mine, its in zip(program(*placed), both_ways(xla(), args, g), strict=True):
        np.testing.assert_allclose(mine, its, rtol=1e-5, atol=1e-5)


def test_memory_of_long_attention_grows_with_the_length_not_its_square():
    def temporaries(length, choice):
        a = jax.ShapeDtypeStruct((1, length, 1, 8), jnp.float32)
        step = jax.grad(lambda *a: attention.attend(*a, kernel=choice).sum(), (0, 1, 2))
        return jax.jit(step).lower(a, a, a).compile().memory_analysis().temp_size_in_bytes

    short, long = temporaries(2048, "auto"), temporaries(8192, "auto")
    assert long < 4.2 * short
    assert temporaries(2048, "xla") > 4 * short


def test_auto_is_xla_below_a_thousand_tokens_and_inside_a_shard_map():
    short, long = (jnp.ones((1, n, 1, 8)) for n in (attention.FLASH_FROM - 1, attention.FLASH_FROM))
    scans = lambda q: "scan" in str(jax.make_jaxpr(attention.attend)(q, q, q))  # noqa: E731
    assert scans(long)
    assert not scans(short)
    mesh = sharding.mesh(2, 1, 1, devices=jax.devices()[:2])
    inside = jax.shard_map(
        lambda q: attention.attend(q, q, q), mesh=mesh, in_specs=PartitionSpec("data"), out_specs=PartitionSpec("data")
    )
    assert "scan" not in str(jax.make_jaxpr(inside)(jnp.concatenate([long, long])))


def test_a_kernel_for_tpus_is_in_the_program_for_a_tpu_alone():
    """A CPU host lowers for a TPU ahead of time: the platform of the program counts, not that of the host."""
    q = jax.ShapeDtypeStruct((1, attention.FLASH_FROM, 1, 8), jnp.float32)
    mesh = sharding.mesh(1, 1, 1, devices=jax.devices()[:1])
    traced = jax.jit(sharding.on_mesh(mesh, lambda q: attention.attend(q, q, q))).trace(q)
    assert "tpu_custom_call" in traced.lower(lowering_platforms=("tpu",)).as_text()
    assert "tpu_custom_call" not in traced.lower(lowering_platforms=("cpu",)).as_text()


def test_a_portable_program_has_no_kernel_of_one_platform():
    """Not in the projections either, whose heads a TPU's kernel would pad; what was traced before does not matter."""
    x = jax.ShapeDtypeStruct((1, attention.FLASH_FROM, 16), jnp.float32)
    mesh = sharding.mesh(1, 1, 1, devices=jax.devices()[:1])
    layer = TransformerLayer(2, kernel="auto")
    params = jax.eval_shape(layer.init, jax.random.key(0), x, x)

    def lowered():
        program = jax.jit(sharding.on_mesh(mesh, lambda params, x: layer.apply(params, x, x)))
        return program.trace(params, x).lower(lowering_platforms=("tpu",)).as_text()

    assert "tpu_custom_call" in lowered()
    with platforms.portable():
        assert "custom_call" not in lowered()
    assert "tpu_custom_call" in lowered()


class TestPacked:
    """Heads side by side in lanes."""

    @pytest.mark.parametrize(("heads", "features"), [(8, 40), (3, 80), (2, 160), (1, 200)])
    def test_heads_that_share_lanes_or_go_over_several(self, heads, features):
        args, g = (
            tuple(jax.random.normal(jax.random.key(i), (1, 128, heads, features)) for i in at)
            for at in ([0, 1, 2], [3])
        )
        f = jax.jit(lambda args: both_ways(lambda *a: by("packed", *a), args, *g))
        for mine, its in zip(f(args), both_ways(xla(), args, *g), strict=True):
            np.testing.assert_allclose(mine, its, rtol=1e-5, atol=1e-5)

    def test_keys_in_several_blocks_and_queries_in_several_steps(self, monkeypatch):
        monkeypatch.setattr(packed_attention, "block_size", lambda size: 128)
        args, g = qkv(queries=384, keys=256)
        for mine, its in zip(both_ways(lambda *a: by("packed", *a), args, g), both_ways(xla(), args, g), strict=True):
            np.testing.assert_allclose(mine, its, rtol=1e-5, atol=1e-5)

    def test_what_it_takes(self):
        """The self-attention of Stable Diffusion of 512 x 512 and 768 x 768; not of 1,024 x 1,024, which splash has."""

        def takes(tokens, heads, features, mask=None):
            a = jax.ShapeDtypeStruct((1, tokens, heads, features), jnp.bfloat16)
            return packed_attention.takes(a, a, mask)

        assert all(takes(*sizes) for sizes in ((4096, 8, 40), (9216, 5, 64), (4096, 12, 64)))
        assert not takes(16384, 8, 40)
        assert takes(256, 16, 72, jax.ShapeDtypeStruct((1, 1, 1, 256), bool))
        assert not takes(256, 16, 72, jax.ShapeDtypeStruct((1, 1, 256, 256), bool))

    @pytest.mark.parametrize("choice", ["auto", "xla"])
    def test_it_is_in_the_program_for_a_tpu_alone(self, choice):
        """Of self-attention and of attention to a few tokens of text; no head has an axis of its own there."""
        layer = TransformerLayer(2, choice, dtype=jnp.bfloat16)
        x, text = (jax.ShapeDtypeStruct((1, n, 80), jnp.bfloat16) for n in (tpu_kernels.FEWEST_TOKENS, 4))
        params = jax.eval_shape(layer.init, jax.random.key(0), x, text)
        mesh = sharding.mesh(1, 1, 1, devices=jax.devices()[:1])
        step = jax.grad(lambda *a: layer.apply(*a).astype(jnp.float32).sum())
        traced = jax.jit(sharding.on_mesh(mesh, step)).trace(params, x, text)
        calls = [
            [
                line
                for line in traced.lower(lowering_platforms=(platform,)).as_text().splitlines()
                if "tpu_custom" in line
            ]
            for platform in ("tpu", "cpu")
        ]
        assert [len(of) for of in calls] == [4 if choice == "auto" else 0, 0]
        assert all("1x256x80xbf16" in line and "x40xbf16" not in line for line in calls[0])


class TestGatedGelu:
    """In 16 bits its gradient is written out."""

    args = tuple(jax.random.normal(jax.random.key(i), (3, 5)) for i in range(4))

    def test_it_is_the_product_in_every_mode(self):
        linear, gate, *tangents = self.args

        def everything(f):
            mixed = lambda linear, gate: jax.jvp(f, (linear, gate), tuple(tangents))[1].sum()  # noqa: E731
            pull = jax.vjp(f, linear, gate)
            return pull[0], pull[1](tangents[0]), mixed(linear, gate), jax.grad(mixed, (0, 1))(linear, gate)

        got, expected = (everything(f) for f in (geglu.gated_gelu_in_16_bits, geglu.gated_gelu))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, expected)

    def test_it_keeps_its_arguments_alone(self):
        a = jax.ShapeDtypeStruct((64, 64), jnp.bfloat16)
        kept = jax.tree.leaves(jax.eval_shape(lambda *a: jax.vjp(geglu.gated_gelu_in_16_bits, *a)[1], a, a))
        assert {(b.shape, b.dtype) for b in kept} == {(a.shape, a.dtype)}
        left_to_jax = jax.tree.leaves(jax.eval_shape(lambda *a: jax.vjp(geglu.gated_gelu, *a)[1], a, a))
        assert len(kept) < len(left_to_jax)


def test_a_layer_gives_the_same_by_each_choice():
    x, text, mask = jnp.ones((2, 4, 4)).at[:, 1].set(2), jnp.ones((2, 3, 3)), jnp.array([[True, True, False]] * 2)
    layer = TransformerLayer(2)
    params = jax.eval_shape(layer.init, jax.random.key(0), x, text, mask)
    params = jax.tree.map(lambda a: jax.random.normal(jax.random.key(1), a.shape) / 4, params)
    outs = jax.jit(lambda: [layer.clone(kernel=k).apply(params, x, text, mask) for k in attention.CHOICES])()
    np.testing.assert_allclose(outs[0], outs[1], rtol=1e-6)
    np.testing.assert_allclose(outs[2], outs[1], rtol=1e-5, atol=1e-5)


def test_another_choice_is_refused():
    with pytest.raises(UserError, match="model.remat is one of none, attention, dots, offload, blocks; got 'True'"):
        rematerialization.check_choice("True")
    net = UNet(1, channels=4, multipliers=(1,), blocks=1, groups=2, attention_kernel="pallas")
    with pytest.raises(UserError, match=r"model.attention_kernel is one of auto, xla, flash; got 'pallas'"):
        jax.eval_shape(net.init, jax.random.key(0), jnp.ones((1, 4, 4, 1)), jnp.ones(1))
