"""A convolution whose gradients are fast on CPU as well; dimension key B *S C, kernels *K C D.

XLA's CPU compiler brings a convolution to the form its fast kernels take in the entry computation alone: in the body of
a `lax.scan` both gradients of `lax.conv_general_dilated` fall to a naive loop, a hundred times slower. And its fast
kernels do the kernel's gradient, a sum over B *S, at a quarter of their speed where that sum is long. So on CPU the
gradients are written in that form, the kernel's as a sum over parts of the batch. TPU and GPU get
`lax.conv_general_dilated` and its own gradients.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax

PART = 2**18
"""Values of the output's gradient in one part: 1 MB, which the cache of one core holds."""


@partial(jax.jit, static_argnums=2, inline=True)  # see the docstring of `layers`
def conv(x: Array, kernel: Array, stride: int) -> Array:
    """x [B, *S, C], kernel [*K, C, D], K odd -> [B, *ceil(S / stride), D]; differentiable in both modes, any order.

    The pads are (K // 2, K // 2) for stride 1 and TensorFlow's "SAME" for even S and stride 2: (K // 2 - 1, K // 2).
    """
    return _conv(x, kernel, stride)


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _conv(x: Array, kernel: Array, stride: int) -> Array:
    return _canonical(x, kernel, strides=stride, pads=_pads(kernel, stride))


@_conv.defjvp
def _conv_jvp(stride: int, primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    """The tangents are transposes of the gradients: reverse mode transposes them back, and so runs the gradients."""
    x, kernel = primals
    out = _conv(x, kernel, stride)
    by_x = _transposed(partial(_input_gradient, kernel=kernel, like=x, stride=stride), out, tangents[0])
    by_kernel = _transposed(partial(_kernel_gradient, x=x, like=kernel, stride=stride), out, tangents[1])
    return out, by_x + by_kernel


def _transposed(linear: Callable[[Array], Array], like: Array, tangent: Array) -> Array:
    return jax.linear_transpose(linear, jax.ShapeDtypeStruct(like.shape, like.dtype))(tangent)[0]


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

    return lax.platform_dependent(g, kernel, cpu=on_cpu, default=elsewhere)


def _kernel_gradient(g: Array, *, x: Array, like: Array, stride: int) -> Array:
    """g [B, *S', D] -> [*K, C, D]: x correlated with g; channels take the place of the batch, and the batch theirs."""
    pads = _pads(like, stride)

    def on_cpu(g: Array, x: Array) -> Array:
        parts = _parts(len(g), g.size)

        sizes = zip(x.shape[1:-1], g.shape[1:-1], like.shape, pads, strict=False)
        around = [(low, k - s - low + (n - 1) * stride) for s, n, k, (low, _) in sizes]

        def add(total: Array, part: tuple[Array, Array]) -> tuple[Array, None]:
            x, g = jnp.swapaxes(part[0], 0, -1), jnp.moveaxis(part[1], 0, -2)  # [C, *S, B / parts], [*S', B / parts, D]
            return total + _canonical(x, g, pads=around, rhs_dilation=stride), None

        zero = jnp.zeros((x.shape[-1], *like.shape[:-2], g.shape[-1]), g.dtype)
        # Part i holds examples i, i + parts, ...: a batch split over devices stays so.
        x_parts, g_parts = (jnp.moveaxis(v.reshape(-1, parts, *v.shape[1:]), 1, 0) for v in (x, g))
        total, _ = lax.scan(add, zero, (x_parts, g_parts), unroll=min(parts, 4))
        return jnp.moveaxis(total, 0, -2)

    def elsewhere(g: Array, x: Array) -> Array:
        forward = partial(_canonical, x, strides=stride, pads=pads)
        return jax.linear_transpose(forward, like)(g)[0]

    return lax.platform_dependent(g, x, cpu=on_cpu, default=elsewhere)


def _canonical(
    x: Array,
    kernel: Array,
    *,
    pads: list[tuple[int, int]],
    strides: int = 1,
    lhs_dilation: int = 1,
    rhs_dilation: int = 1,
) -> Array:
    rank = x.ndim - 2
    space = "DHW"[-rank:]
    return lax.conv_general_dilated(
        x,
        kernel,
        (strides,) * rank,
        pads,
        (lhs_dilation,) * rank,
        (rhs_dilation,) * rank,
        (f"N{space}C", f"{space}IO", f"N{space}C"),
    )


def _pads(kernel: Array, stride: int) -> list[tuple[int, int]]:
    return [((k - stride) // 2, k // 2) for k in kernel.shape[:-2]]


def _parts(batch: int, values: int) -> int:
    """The fewest equal parts of the batch that hold at most PART values each; at most single examples."""
    return next(n for n in range(1, batch + 1) if batch % n == 0 and (values <= n * PART or n == batch))
