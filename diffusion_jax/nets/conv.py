"""A convolution whose gradients are fast on CPU as well; dimension key B *S C, kernels *K C D.

XLA's CPU compiler brings a convolution to the form its fast kernels take in the entry computation alone: in the body of
a `lax.scan` both gradients of `lax.conv_general_dilated` fall to a naive loop, a hundred times slower. And a sum over
B *S, as the kernel's gradient is, its matrix product does faster than its convolution, which wants both operands
transposed. So on CPU the input's gradient is written as a convolution of that form, the kernel's as one matrix product.
TPU and GPU get `lax.conv_general_dilated` and its own gradients.
"""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.export import is_symbolic_dim

INPUT_GRADIENT, KERNEL_GRADIENT = "input_gradient", "kernel_gradient"
"""The names by which a profile, and a plan, knows the two gradients."""

FEW = 4
"""Positions B *S for each channel: with fewer, `conv_upsampled` repeats the input on CPU too."""


@partial(jax.jit, static_argnums=2, inline=True)  # see the docstring of `layers`
def conv(x: Array, kernel: Array, stride: int) -> Array:
    """x [B, *S, C], kernel [*K, C, D] -> [B, *ceil(S / stride), D]; differentiable in both modes, any order.

    The pads are TensorFlow's "SAME": (max(K - stride, 0) // 2, K // 2), S even for stride 2. Inside `jax.shard_map` the
    output varies over every mesh axis that x or the kernel varies over.
    """
    return _conv(*_varying_alike(x, kernel), stride)


@partial(jax.jit, inline=True)
def conv_upsampled(x: Array, kernel: Array) -> Array:
    """`conv` of width 3 of x with every position repeated: x [B, *S, C], kernel [*3, C, D] -> [B, *(2 S), D].

    On CPU, of x itself: an even output sees two positions of x, k_0 times the one before it and k_1 + k_2 times its
    own, an odd one k_0 + k_1 times its own and k_2 times the one after it: 4/9 of the products of rank 2. With few
    positions for its channels, the larger kernel costs more than that.
    """

    def repeated(x: Array, kernel: Array) -> Array:
        return conv(upsample_nearest(x), kernel, 1)

    # Of a batch whose size is not known, as `jax.export` has it, x counts as large.
    if not is_symbolic_dim(x.shape[0]) and x.size < FEW * x.shape[-1] ** 2:
        return repeated(x, kernel)
    return lax.platform_dependent(x, kernel, cpu=_folded, default=repeated)


_TAPS = np.array([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]], np.float32)
"""[parity of the output's position, tap on x, tap of the kernel]."""


def _folded(x: Array, kernel: Array) -> Array:
    rank = x.ndim - 2
    parities, taps, old = "pqr"[:rank], "abe"[:rank], "xyz"[:rank]
    operands = ",".join(p + t + o for p, t, o in zip(parities, taps, old, strict=True))
    folded = jnp.einsum(f"{operands},{old}io->{taps}i{parities}o", *[_TAPS.astype(kernel.dtype)] * rank, kernel)
    folded = folded.reshape(*folded.shape[: rank + 1], -1)  # [*2, C, 2^rank D]
    h = conv(jnp.pad(x, [(0, 0), *[(1, 0)] * rank, (0, 0)]), folded, 1)  # at i: of positions i - 1 and i
    h = h.reshape(*h.shape[:-1], *[2] * rank, -1)  # [B, *(S + 1), *2, D]
    for axis in range(1, rank + 1):
        n = h.shape[axis] - 1
        even, odd = (
            lax.slice_in_dim(lax.index_in_dim(h, parity, rank + 1, keepdims=False), parity, parity + n, axis=axis)
            for parity in (0, 1)
        )
        h = jnp.stack([even, odd], axis=axis + 1)
        h = h.reshape(*h.shape[:axis], 2 * n, *h.shape[axis + 2 :])
    return h


def upsample_nearest(x: Array) -> Array:
    """[B, *S, C] -> [B, *(2 S), C], every position repeated; the gradient of broadcast and reshape is a plain sum."""
    for axis in range(1, x.ndim - 1):
        shape = x.shape
        x = jnp.broadcast_to(jnp.expand_dims(x, axis + 1), (*shape[: axis + 1], 2, *shape[axis + 1 :]))
        x = x.reshape(*shape[:axis], 2 * shape[axis], *shape[axis + 1 :])
    return x


def _varying_alike(x: Array, kernel: Array) -> tuple[Array, Array]:
    """Both with the union of the mesh axes that they vary over inside `jax.shard_map`; elsewhere as they are.

    The gradients of `_conv` are then all of one type, and the cast's own gradient is the sum over the mesh axes that an
    operand did not vary over.
    """
    varying = [jax.typeof(a).manual_axis_type.varying for a in (x, kernel)]
    union = varying[0] | varying[1]
    x, kernel = (
        lax.pcast(a, tuple(union - axes), to="varying") if union - axes else a
        for a, axes in zip((x, kernel), varying, strict=True)
    )
    return x, kernel


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _conv(x: Array, kernel: Array, stride: int) -> Array:
    return _canonical(x, kernel, strides=stride, pads=_pads(kernel, stride))


@_conv.defjvp
def _conv_jvp(stride: int, primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    """The tangents are transposes of the gradients: reverse mode transposes them back, and so runs the gradients."""
    x, kernel = primals
    out = _conv(x, kernel, stride)

    # What a gradient makes of x or the kernel alone is made when it runs, not kept from the forward pass on.
    @partial(jax.checkpoint, prevent_cse=False)
    def tangent(x: Array, kernel: Array, x_tangent: Array, kernel_tangent: Array) -> Array:
        by_x = _transposed(partial(_input_gradient, kernel=kernel, like=x, stride=stride), out, x_tangent)
        by_kernel = _transposed(partial(_kernel_gradient, x=x, like=kernel, stride=stride), out, kernel_tangent)
        return by_x + by_kernel

    return out, tangent(x, kernel, *tangents)


def _transposed(linear: Callable[[Array], Array], like: Array, tangent: Array) -> Array:
    # Not a ShapeDtypeStruct of the shape and dtype: that one varies over no mesh axis of a `jax.shard_map`.
    return jax.linear_transpose(linear, jax.typeof(like))(tangent)[0]


def _input_gradient(g: Array, *, kernel: Array, like: Array, stride: int) -> Array:
    """g [B, *S', D] -> [B, *S, C]: the stride's gaps filled with zeros, convolved with the mirrored kernel."""
    pads = _pads(kernel, stride)
    rank = g.ndim - 2

    def on_cpu(g: Array, kernel: Array) -> Array:
        mirrored = jnp.flip(kernel, range(rank)).swapaxes(-1, -2)
        sizes = zip(like.shape[1:-1], g.shape[1:-1], kernel.shape, pads, strict=False)
        around = [(k - 1 - low, s + low - 1 - (n - 1) * stride) for s, n, k, (low, _) in sizes]
        return _canonical(g, mirrored, pads=around, lhs_dilation=stride)

    def elsewhere(g: Array, kernel: Array) -> Array:
        forward = partial(_canonical, kernel=kernel, strides=stride, pads=pads)
        return jax.linear_transpose(forward, like)(g)[0]

    with jax.named_scope(INPUT_GRADIENT):
        return lax.platform_dependent(g, kernel, cpu=on_cpu, default=elsewhere)


def _kernel_gradient(g: Array, *, x: Array, like: Array, stride: int) -> Array:
    """g [B, *S', D] -> [*K, C, D]: x correlated with g.

    On CPU one product of matrices of B *S' rows, whose columns are x and g once for each tap. The offset between the
    two is taken along the first axes on g and along the others, or all where there is a stride, on x: 3 x 3 taps then
    take three columns of each and not nine of one.
    """
    pads = _pads(like, stride)
    rank = g.ndim - 2
    shift_g = rank // 2 if stride == 1 else 0  # axes

    def on_cpu(g: Array, x: Array) -> Array:
        sizes = g.shape[1:-1]
        for axis, (k, (low, _)) in enumerate(zip(like.shape[:rank], pads, strict=True)):
            if axis < shift_g:
                g = _beside(g, axis + 1, [low - tap for tap in range(k)], 1, x.shape[axis + 1])
            else:
                x = _beside(x, axis + 1, [tap - low for tap in range(k)], stride, sizes[axis])
        rows = math.prod(x.shape[: rank + 1])
        out = lax.dot_general(x.reshape(rows, -1), g.reshape(rows, -1), (((0,), (0,)), ((), ())))
        out = out.reshape(*like.shape[shift_g:-1], *like.shape[:shift_g], like.shape[-1])  # [*K of x, C, *K of g, D]
        return jnp.moveaxis(out, range(rank - shift_g + 1, rank + 1), range(shift_g))

    def elsewhere(g: Array, x: Array) -> Array:
        forward = partial(_canonical, x, strides=stride, pads=pads)
        return jax.linear_transpose(forward, like)(g)[0]

    with jax.named_scope(KERNEL_GRADIENT):
        return lax.platform_dependent(g, x, cpu=on_cpu, default=elsewhere)


def _beside(v: Array, axis: int, offsets: list[int], stride: int, size: int) -> Array:
    """v at stride i + offset along the axis, for i < size; zero outside: [..., S, ..., C] -> [..., size, ..., K, C]."""

    def at(offset: int) -> Array:
        around = [(0, 0, 0)] * v.ndim
        around[axis] = (-offset, stride * (size - 1) + 1 + offset - v.shape[axis], 0)  # less than none: cut off
        return lax.slice_in_dim(lax.pad(v, jnp.zeros((), v.dtype), around), 0, None, stride, axis)

    return jnp.stack([at(offset) for offset in offsets], axis=-2)


def _canonical(
    x: Array,
    kernel: Array,
    *,
    pads: list[tuple[int, int]],
    strides: int = 1,
    lhs_dilation: int = 1,
) -> Array:
    rank = x.ndim - 2
    space = "DHW"[-rank:]
    return lax.conv_general_dilated(
        x,
        kernel,
        (strides,) * rank,
        pads,
        (lhs_dilation,) * rank,
        dimension_numbers=(f"N{space}C", f"{space}IO", f"N{space}C"),
    )


def _pads(kernel: Array, stride: int) -> list[tuple[int, int]]:
    return [(max(k - stride, 0) // 2, k // 2) for k in kernel.shape[:-2]]
