"""The floating-point operations of a program, counted from its jaxpr.

Matrix products and convolutions count, with a multiplication and an addition for each product of two numbers; they are
all but a few hundredths of a network's work. The gradient counts too, since it is in the jaxpr.
"""

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

from diffusion_jax.experiment.plan import UNEXPANDED


class Work(NamedTuple):
    """FLOPs on all devices together."""

    flops: int  # a scan's body as often as it runs
    once: int  # every loop's body once, as a compiler's own count has it
    open_loops: int  # `while` loops, whose length no program tells: their bodies are in flops once

    def __add__(self, other: "Work") -> "Work":  # type: ignore[override]
        return Work(*(a + b for a, b in zip(self, other, strict=True)))


_NOTHING = Work(0, 0, 0)


def count(jaxpr: ClosedJaxpr | Jaxpr, platform: str = "") -> Work:
    """The work of a jaxpr and of all jaxprs that it calls; a `cond` counts with its most expensive branch.

    Where branches are for platforms, the one for `platform` counts; without a platform, the most expensive and, of
    equal ones, that with the fewest loops. The work of a Pallas kernel is that of the other platforms' branch, as if it
    had no loops, since the kernel's jaxpr has the work of one block alone.
    """
    inner = jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr
    return sum((_of(equation, platform) for equation in inner.eqns), _NOTHING)


def _of(equation: JaxprEqn, platform: str) -> Work:
    name, parameters = equation.primitive.name, equation.params
    if name == "dot_general":
        return _matrix(_dot(equation))
    if name == "conv_general_dilated":
        return _matrix(_conv(equation))
    if name == "cond":
        return _branch(parameters["branches"], parameters.get("branches_platforms"), platform)
    if name in UNEXPANDED:
        f = functools.partial(UNEXPANDED[name], **parameters)
        return count(jax.make_jaxpr(f)(*(v.aval for v in equation.invars)), platform)
    inside = sum((count(jaxpr, platform) for jaxpr in _jaxprs(parameters)), _NOTHING)
    if name == "scan":
        length = parameters["length"]
        unrolled = min(parameters["unroll"], length)  # what is unrolled, a compiler sees
        return inside._replace(flops=inside.flops * length, once=inside.once * unrolled)
    if name == "while" and inside.flops:
        return inside._replace(open_loops=inside.open_loops + 1)
    if name == "shard_map":  # its body is what each device does
        each = parameters["mesh"].size
        return inside._replace(flops=inside.flops * each, once=inside.once * each)
    return inside


def _branch(branches: Sequence[ClosedJaxpr], platforms: Sequence[tuple[str, ...] | None] | None, platform: str) -> Work:
    """The work of a `cond`. platforms: for each branch the names of its platforms, or None for all others."""
    if platforms is None or not platform:
        return max((count(branch, platform) for branch in branches), key=lambda work: (work.flops, work.once))
    default = branches[platforms.index(None)] if None in platforms else branches[0]
    known = {name: branch for names, branch in zip(platforms, branches, strict=True) for name in names or ()}
    chosen = known.get(platform, default)
    work = count(default if _has_kernel(chosen) else chosen, platform)
    return work._replace(once=work.flops) if _has_kernel(chosen) else work


def _has_kernel(jaxpr: ClosedJaxpr | Jaxpr) -> bool:
    inner = jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr
    return any(
        equation.primitive.name == "pallas_call" or any(_has_kernel(part) for part in _jaxprs(equation.params))
        for equation in inner.eqns
    )


def _matrix(products: int) -> Work:
    return Work(2 * products, 2 * products, 0)


def _jaxprs(parameters: Mapping[str, object]) -> Iterator[ClosedJaxpr | Jaxpr]:
    for value in parameters.values():
        for part in value if isinstance(value, tuple | list) else (value,):
            if isinstance(part, ClosedJaxpr | Jaxpr):
                yield part


def _dot(equation: JaxprEqn) -> int:
    """Multiplications of a matrix product: each element of the result sums over the contracted axes."""
    (contracted, _), _ = equation.params["dimension_numbers"]
    shape = equation.invars[0].aval.shape  # type: ignore[attr-defined]
    return math.prod(equation.outvars[0].aval.shape) * math.prod(shape[axis] for axis in contracted)  # type: ignore[attr-defined]


def _conv(equation: JaxprEqn) -> int:
    """Multiplications of a convolution, without those by padding. Each of its two gradients has the same number."""
    p = equation.params
    (lhs, rhs), (out,) = ([v.aval.shape for v in side] for side in (equation.invars, equation.outvars))  # type: ignore[attr-defined]
    lhs_axes, rhs_axes, out_axes = p["dimension_numbers"]
    met = 1
    for i, (left, right, result) in enumerate(zip(lhs_axes[2:], rhs_axes[2:], out_axes[2:], strict=True)):
        met *= taps(
            lhs[left],
            rhs[right],
            out[result],
            stride=p["window_strides"][i],
            low=p["padding"][i][0],
            lhs_dilation=p["lhs_dilation"][i],
            rhs_dilation=p["rhs_dilation"][i],
        )
    return out[out_axes[0]] * out[out_axes[1]] * rhs[rhs_axes[1]] * met


def taps(size: int, kernel: int, out: int, *, stride: int, low: int, lhs_dilation: int, rhs_dilation: int) -> int:
    """Multiplications along one axis: pairs of places in result and kernel that meet an element of the input.

    Padding and the zeros of lhs_dilation are not elements of the input.
    """
    at = np.arange(out)[:, None] * stride + np.arange(kernel) * rhs_dilation - low
    return int(((at >= 0) & (at <= (size - 1) * lhs_dilation) & (at % lhs_dilation == 0)).sum())
