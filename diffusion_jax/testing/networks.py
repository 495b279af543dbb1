"""The conformance suite of network families."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.nets.network import Network, options


def check_network(net: Network, size: tuple[int, ...] = (8, 8), channels: int = 2) -> None:
    """Raises AssertionError unless net keeps the protocol of `Network`. It should be small, for it is compiled.

    net is made for x [B, *size, channels] and for the entries of cond that its fields declare. The suite checks that
    numeric options have ranges; that output and gradient are float32 and finite; that the output of an example depends
    on the example alone, on t, and on every entry of cond; that one compilation serves all values of these; and that
    tensor rules, outer and stacked layers name parameters of the network.
    """
    for name, default in options(type(net)).items():
        one = default[0] if isinstance(default, tuple) and default else default
        if isinstance(one, int | float) and not isinstance(one, bool):
            assert name in net.ranges, f"the option {name} is a number and has no range"
            net.ranges[name].check(name, default)
    key = jax.random.key(0)
    x = jax.random.normal(key, (3, *size, channels))
    t = jnp.array([10.0, 500.0, 990.0])
    cond = _cond(net, x)
    params = jax.eval_shape(net.init, key, x, t, cond)["params"]
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        assert leaf.dtype == jnp.float32, f"parameters are float32; {jax.tree_util.keystr(path)} is {leaf.dtype}"
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda a: jnp.asarray(0.3 * rng.normal(size=a.shape), jnp.float32), params)
    chex.clear_trace_counter()
    apply = jax.jit(chex.assert_max_traces(lambda params, x, t, cond: net.apply({"params": params}, x, t, cond), n=1))
    out = apply(params, x, t, cond)
    chex.assert_shape(out, (3, *size, net.out_channels))
    assert out.dtype == jnp.float32, f"the output is float32; got {out.dtype}"
    chex.assert_tree_all_finite(out)
    mixed = apply(params, x[::-1], t[::-1], jax.tree.map(lambda a: a[::-1], cond))
    np.testing.assert_allclose(mixed[::-1], out, rtol=1e-3, atol=1e-3, err_msg="an output depends on its example alone")
    assert float(jnp.abs(apply(params, x, t[::-1], cond) - out).max()) > 1e-4, "the output depends on t"
    for name in cond:
        other = {**cond, name: _changed(cond[name])}
        assert float(jnp.abs(apply(params, x, t, other) - out).max()) > 1e-6, f"the output depends on {name}"
    gradients = jax.jit(jax.grad(lambda params: jnp.mean(apply(params, x, t, cond) ** 2)))(params)
    chex.assert_tree_all_finite(gradients)
    paths = ["/" + "/".join(k.key for k in path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    for part in net.outer_layers:
        if part != "embedding":  # which only a net with classes or text has
            assert any(part in path for path in paths), f"outer layer {part!r} is in no parameter's path"
    for part in net.stacked_layers:
        counts = {leaf.shape[:1] for path, leaf in zip(paths, jax.tree.leaves(params), strict=True) if part in path}
        assert len(counts) == 1, f"parameters of the stacked layers {part!r} have one first axis; got {counts}"
    split = [path for path in paths if any(re.search(pattern, path) for pattern, _ in net.tensor_rules)]
    assert split or not net.tensor_rules, "a tensor rule matches a parameter"


def _cond(net: Network, x: jax.Array) -> dict[str, jax.Array]:
    """Random entries of cond as the fields of net declare them."""
    rng, n = np.random.default_rng(1), len(x)
    cond: dict[str, jax.Array] = {}
    if net.num_classes is not None:
        cond["label"] = jnp.arange(n, dtype=jnp.int32) % net.num_classes
    if net.text_features is not None:
        cond["text"] = jnp.asarray(rng.normal(size=(n, 5, net.text_features)), jnp.float32)
        cond["text_mask"] = jnp.arange(5) < jnp.array([3, 4, 5])[:n, None]
    if net.pools_text:
        assert net.text_features is not None, "a network that takes one vector of the text knows its width"
        cond["text_pooled"] = jnp.asarray(rng.normal(size=(n, net.text_features)), jnp.float32)
    cond |= {name: jnp.asarray(rng.normal(size=(*x.shape[:-1], 1)), jnp.float32) for name in net.concat}
    cond |= {name: jnp.asarray(rng.uniform(0, 64, (n, 2)), jnp.float32) for name in net.numbers}
    return cond | {name: jnp.linspace(0.1, 0.9, n) for name in net.levels}


def _changed(a: jax.Array) -> jax.Array:
    """The entry with other values."""
    return a[::-1] if a.dtype != bool else a[:, ::-1]
