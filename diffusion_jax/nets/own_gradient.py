"""Kernels with a backward pass of their own that can still be differentiated in forward mode.

A Pallas kernel comes with a backward pass, which JAX cannot derive. `jax.custom_vjp` would run it, but such a function
has no forward mode: `jax.jvp`, `jax.linearize` and the gradient of a Jacobian-vector product, the loss of mean flow,
all raise. `jax.custom_jvp` has a forward mode, but its gradient is the transpose of that, and not the kernel's.

Here a kernel is a `jax.custom_jvp` whose tangent is computed by a primitive, `TANGENT`, for which both are stated:

- evaluated, in forward mode, it is the Jacobian-vector product of a reference made of XLA's operations;
- transposed, in reverse mode, it is the kernel's backward pass.

All derivatives of higher order are those of the reference.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from diffusion_jax.nets.rematerialization import product, statistic

Arrays = tuple[Array, ...]


@dataclasses.dataclass(frozen=True)
class DifferentiableKernel:
    """A function of arrays and its derivatives; the output has the shape and type of the first argument."""

    primal: Callable[..., Array]
    """(*args) -> output, where nothing is differentiated."""
    forward: Callable[..., tuple[Array, Arrays]]
    """(*args) -> (output, residuals): small arrays that the backward pass reads beside the arguments."""
    backward: Callable[[Arrays, Arrays, Array], Arrays]
    """(args, residuals, cotangent of the output) -> cotangents of the active arguments."""
    reference: Callable[..., Array]
    """(*args) -> output, by XLA's operations, differentiable in both modes to any order."""
    differentiable: int
    """How many arguments, from the first on, are active, that is, have derivatives; the others are masks."""
    saves_output: bool
    """Whether the output is a residual too, which `backward` gets before the others."""
    batched: bool
    """Whether the first axis of every argument is the batch, which an axis of `jax.vmap` may be merged into."""

    def __call__(self, *args: Array) -> Array:
        """The output, with these derivatives."""
        run: Callable[..., Array] = _primal
        return run(self, *args)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _primal(kernel: DifferentiableKernel, *args: Array) -> Array:
    """What runs without derivatives; with any, its rule puts `_forward` in its place, which saves the residuals."""
    return kernel.primal(*args)


@_primal.defjvp
def _primal_jvp(kernel: DifferentiableKernel, args: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Array, Array]:
    n = kernel.differentiable
    (out, _), (out_tangent, _) = jax.jvp(lambda *active: _forward(kernel, *active, *args[n:]), args[:n], tangents[:n])
    return out, out_tangent


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _forward(kernel: DifferentiableKernel, *args: Array) -> tuple[Array, Arrays]:
    """(output, residuals). It has a rule of its own, and `_backward` too, since higher orders differentiate them."""
    return kernel.forward(*args)


@_forward.defjvp
def _forward_jvp(kernel: DifferentiableKernel, args: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
    """The tangents of the residuals are left at 0: nothing but the backward pass reads residuals."""
    out, residuals = _forward(kernel, *args)
    out, residuals = product(out), tuple(map(statistic, residuals))
    saved = (out, *residuals) if kernel.saves_output else residuals
    out_tangent = TANGENT.bind(*tangents[: kernel.differentiable], *args, *saved, kernel=kernel, arity=len(args))
    return (out, residuals), (out_tangent, tuple(map(jnp.zeros_like, residuals)))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
@functools.partial(jax.jit, static_argnums=0, inline=True)
def _backward(kernel: DifferentiableKernel, args: Arrays, residuals: Arrays, cotangent: Array) -> Arrays:
    return kernel.backward(args, residuals, cotangent)


@_backward.defjvp
def _backward_jvp(kernel: DifferentiableKernel, primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
    """The derivative of the backward pass is that of the reference's gradient; it does not read the residuals."""
    (args, _, cotangent), (arg_tangents, _, cotangent_tangent) = primals, tangents
    n = kernel.differentiable

    def gradient(cotangent: Array, *active: Array) -> Arrays:
        return jax.vjp(lambda *active: kernel.reference(*active, *args[n:]), *active)[1](cotangent)

    derivative = jax.jvp(gradient, (cotangent, *args[:n]), (cotangent_tangent, *arg_tangents[:n]))[1]
    return _backward(kernel, *primals), derivative


TANGENT = Primitive("own_gradient_tangent")
"""The tangent of a kernel's output, of (tangents of the active arguments, arguments, residuals).

It is linear in the tangents. Its parameters are the kernel and `arity`, the number of arguments. Only a primitive can
have an evaluation and a transpose that are different programs.
"""


def tangent(*operands: Array, kernel: DifferentiableKernel, arity: int) -> Array:
    """What `TANGENT` computes of its operands: the Jacobian-vector product of the reference."""
    n = kernel.differentiable
    tangents, args = operands[:n], operands[n : n + arity]
    return jax.jvp(lambda *active: kernel.reference(*active, *args[n:]), args[:n], tangents)[1]


def _tangent_jvp(
    primals: Sequence[Any], tangents: Sequence[Any], *, kernel: DifferentiableKernel, arity: int
) -> tuple[Any, Any]:
    """The sum of two parts: linear in the tangents, and the reference's second derivative in the arguments."""
    n = kernel.differentiable
    of_tangents, of_args = (_instantiated(tangents[start : start + n]) for start in (0, n))
    total: Any = ad.Zero(jax.typeof(primals[n]))
    if of_tangents is not None:
        total = TANGENT.bind(*of_tangents, *primals[n:], kernel=kernel, arity=arity)
    if of_args is not None:

        def of(*active: Array) -> Array:
            return tangent(*primals[:n], *active, *primals[2 * n :], kernel=kernel, arity=arity)

        curvature = jax.jvp(of, tuple(primals[n : 2 * n]), tuple(of_args))[1]
        total = curvature if type(total) is ad.Zero else total + curvature
    return TANGENT.bind(*primals, kernel=kernel, arity=arity), total


def _instantiated(tangents: Sequence[Any]) -> list[Any] | None:
    """Tangents as arrays, or None where all are known to be 0."""
    return None if all(type(t) is ad.Zero for t in tangents) else [ad.instantiate_zeros(t) for t in tangents]


def _tangent_transpose(cotangent: Any, *operands: Any, kernel: DifferentiableKernel, arity: int) -> list[Any]:
    """The kernel's backward pass; of a tangent that is known to be 0 no cotangent is asked."""
    linear = [ad.is_undefined_primal(a) for a in operands]
    if type(cotangent) is ad.Zero or not any(linear):
        return [None] * len(operands)
    n = kernel.differentiable
    gradients = _backward(kernel, tuple(operands[n : n + arity]), tuple(operands[n + arity :]), cotangent)
    asked = [gradient if wanted else None for gradient, wanted in zip(gradients, linear, strict=False)]
    return asked + [None] * (len(operands) - n)


def _tangent_batched(
    operands: Sequence[Array], axes: Sequence[Any], *, kernel: DifferentiableKernel, arity: int
) -> tuple[Array, int]:
    """The mapped axis is merged into the batch, so that the transpose is still the kernel's backward pass.

    Where the kernel is not `batched`, the reference's tangent is mapped.
    """
    if not kernel.batched:
        f = functools.partial(tangent, kernel=kernel, arity=arity)
        return jax.vmap(f, in_axes=tuple(axes))(*operands), 0
    size = next(a.shape[axis] for a, axis in zip(operands, axes, strict=True) if axis is not None)
    merged = []
    for a, axis in zip(operands, axes, strict=True):
        front = jnp.broadcast_to(a, (size, *a.shape)) if axis is None else jnp.moveaxis(a, axis, 0)
        merged.append(front.reshape(-1, *front.shape[2:]))  # [mapped B, ...]
    out = TANGENT.bind(*merged, kernel=kernel, arity=arity)
    return out.reshape(size, -1, *out.shape[1:]), 0


TANGENT.def_impl(lambda *operands, **how: jax.jit(functools.partial(tangent, **how))(*operands))
TANGENT.def_abstract_eval(lambda *operands, kernel, arity: operands[kernel.differentiable])
ad.primitive_jvps[TANGENT] = _tangent_jvp
ad.primitive_transposes[TANGENT] = _tangent_transpose
batching.primitive_batchers[TANGENT] = _tangent_batched
mlir.register_lowering(TANGENT, mlir.lower_fun(tangent, multiple_results=False))
