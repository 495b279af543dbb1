"""Functions with a backward pass of their own, which can still be differentiated in every other way.

`jax.custom_vjp` has no forward mode, and so no gradient of a Jacobian-vector product, as mean flow takes it. Here
reverse mode runs the function's own backward pass, and forward mode and all higher orders are the derivatives of a
reference made of XLA's operations.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from diffusion_jax.nets.rematerialization import product, statistic


class Rule(NamedTuple):
    """A function of arrays and its derivatives; the output has the shape and type of the first array."""

    output: Callable[..., Array]
    """(*arrays) -> output, where there is no gradient."""
    forward: Callable[..., tuple[Array, tuple[Array, ...]]]
    """(*arrays) -> (output, small arrays that the backward pass reads too)."""
    backward: Callable[..., tuple[Array, ...]]
    """(arrays, what it reads beside them, cotangent of the output) -> cotangents of the first `moving` arrays."""
    reference: Callable[..., Array]
    """(*arrays) -> output, by XLA's operations, differentiable in both modes to any order."""
    moving: int
    """How many of the arrays, from the first on, have derivatives; the others are masks."""
    reads_output: bool
    """Whether the backward pass reads the output, before the small arrays."""
    by_example: bool
    """Whether the first axis of every array is the batch, which an axis that is mapped over may join."""


def apply(rule: Rule, *arrays: Array) -> Array:
    """The output of a rule."""
    run: Callable[..., Array] = _output
    return run(rule, *arrays)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _output(rule: Rule, *arrays: Array) -> Array:
    return rule.output(*arrays)


@_output.defjvp
def _output_jvp(rule: Rule, arrays: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Array, Array]:
    moving, rest = arrays[: rule.moving], arrays[rule.moving :]
    (out, _), (moved, _) = jax.jvp(lambda *moving: _forward(rule, *moving, *rest), moving, tangents[: rule.moving])
    return out, moved


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _forward(rule: Rule, *arrays: Array) -> tuple[Array, tuple[Array, ...]]:
    return rule.forward(*arrays)


@_forward.defjvp
def _forward_jvp(rule: Rule, arrays: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
    """The tangents of the small arrays are left at 0: nothing but the backward pass reads these."""
    out, small = _forward(rule, *arrays)
    out, small = product(out), tuple(map(statistic, small))
    read = (out, *small) if rule.reads_output else small
    moved = TANGENT.bind(*tangents[: rule.moving], *arrays, *read, rule=rule, arrays=len(arrays))
    return (out, small), (moved, tuple(map(jnp.zeros_like, small)))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
@functools.partial(jax.jit, static_argnums=0, inline=True)
def _backward(rule: Rule, arrays: Sequence[Array], read: Sequence[Array], g: Array) -> tuple[Array, ...]:
    return rule.backward(arrays, read, g)


@_backward.defjvp
def _backward_jvp(rule: Rule, primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
    (arrays, _, g), (moved, _, moved_g) = primals, tangents
    n = rule.moving

    def by_xla(g: Array, *moving: Array) -> tuple[Array, ...]:
        return jax.vjp(lambda *moving: rule.reference(*moving, *arrays[n:]), *moving)[1](g)

    return _backward(rule, *primals), jax.jvp(by_xla, (g, *arrays[:n]), (moved_g, *moved[:n]))[1]


TANGENT = Primitive("own_gradient_tangent")
"""The output's tangent, linear in those of the moving arrays: (their tangents, the arrays, what backward reads).

A primitive, for nothing else in JAX gives a function both a forward mode and a transpose of its own: evaluated it is
the reference's tangent, transposed the rule's backward pass.
"""


def tangent(*args: Array, rule: Rule, arrays: int) -> Array:
    """What `TANGENT` computes, of its arguments."""
    n = rule.moving
    linear, moving, rest = args[:n], args[n : 2 * n], args[2 * n : n + arrays]
    return jax.jvp(lambda *moving: rule.reference(*moving, *rest), moving, linear)[1]


def _jvp(primals: Sequence[Any], tangents: Sequence[Any], *, rule: Rule, arrays: int) -> tuple[Any, Any]:
    """Linear in the tangents; of the moving arrays the reference's derivative. What backward reads follows."""
    n = rule.moving

    def moved(start: int) -> list[Any] | None:
        part = tangents[start : start + n]
        return None if all(type(t) is ad.Zero for t in part) else [ad.instantiate_zeros(t) for t in part]

    total: Any = ad.Zero(jax.typeof(primals[n]))
    if (linear := moved(0)) is not None:
        total = TANGENT.bind(*linear, *primals[n:], rule=rule, arrays=arrays)
    if (through := moved(n)) is not None:

        def of(*moving: Array) -> Array:
            return tangent(*primals[:n], *moving, *primals[2 * n :], rule=rule, arrays=arrays)

        bend = jax.jvp(of, tuple(primals[n : 2 * n]), tuple(through))[1]
        total = bend if type(total) is ad.Zero else total + bend
    return TANGENT.bind(*primals, rule=rule, arrays=arrays), total


def _transpose(g: Any, *args: Any, rule: Rule, arrays: int) -> list[Any]:
    wanted = [ad.is_undefined_primal(a) for a in args]
    if type(g) is ad.Zero or not any(wanted):
        return [None] * len(args)
    n = rule.moving
    gradients = _backward(rule, tuple(args[n : n + arrays]), tuple(args[n + arrays :]), g)
    # A tangent that is not asked for is one that is known to be 0.
    asked = [to if each else None for to, each in zip(gradients, wanted, strict=False)]
    return asked + [None] * (len(args) - n)


def _batched(args: Sequence[Array], axes: Sequence[Any], *, rule: Rule, arrays: int) -> tuple[Array, int]:
    """The axis that is mapped over joins the batch; without one in every array, XLA's tangent is mapped."""
    if not rule.by_example:
        f = functools.partial(tangent, rule=rule, arrays=arrays)
        return jax.vmap(f, in_axes=tuple(axes))(*args), 0
    size = next(a.shape[axis] for a, axis in zip(args, axes, strict=True) if axis is not None)
    joined = []
    for a, axis in zip(args, axes, strict=True):
        front = jnp.broadcast_to(a, (size, *a.shape)) if axis is None else jnp.moveaxis(a, axis, 0)
        joined.append(front.reshape(-1, *front.shape[2:]))
    out = TANGENT.bind(*joined, rule=rule, arrays=arrays)
    return out.reshape(size, -1, *out.shape[1:]), 0


TANGENT.def_impl(lambda *args, **how: jax.jit(functools.partial(tangent, **how))(*args))
TANGENT.def_abstract_eval(lambda *args, rule, arrays: args[rule.moving])
ad.primitive_jvps[TANGENT] = _jvp
ad.primitive_transposes[TANGENT] = _transpose
batching.primitive_batchers[TANGENT] = _batched
mlir.register_lowering(TANGENT, mlir.lower_fun(lambda *args, **how: tangent(*args, **how), multiple_results=False))
