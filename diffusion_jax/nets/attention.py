"""Attention of every network, by the kernel that suits the platform compiled for and the shape.

Dimension key B batch, N queries, M keys, H heads, D features. Reverse mode runs a kernel's own backward pass. Forward
mode, which flash kernels do not have, is XLA's: `jax.jvp` and `jax.linearize` work under every choice, to any order.
"""

import contextlib
import contextvars
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.sharding import AxisType

from diffusion_jax.errors import UserError
from diffusion_jax.nets import attention_kernels as kernels
from diffusion_jax.nets import splash_attention
from diffusion_jax.nets.attention_kernels import Gradients, Kernel
from diffusion_jax.nets.rematerialization import product, statistic

CHOICES = ("auto", "xla", "flash")
"""What `attention_kernel` may be; `attend` says what each does."""

SCOPE = "attention_core"
"""The name by which a profile, and a plan, knows what lies between the projections."""

FLASH_FROM = 1024
"""Queries, and keys, from which "auto" takes a flash kernel. On a TPU that divides the bytes of Stable Diffusion's
U-Net by three."""


def check_choice(choice: str) -> None:
    """Raises UserError unless choice is one of `CHOICES`."""
    if choice not in CHOICES:
        raise UserError(f"model.attention_kernel is one of {', '.join(CHOICES)}; got {choice!r}")


_PORTABLE = contextvars.ContextVar("portable", default=False)


@contextlib.contextmanager
def portable() -> Iterator[None]:
    """What is traced in the block has no kernel of one platform: "flash" is the scan over chunks of keys everywhere.

    So are programs that `jax.export` lowers for several platforms; cuDNN's kernel is in none that it writes.
    """
    token = _PORTABLE.set(True)
    try:
        yield
    finally:
        _PORTABLE.reset(token)


def attend(
    q: Array, k: Array, v: Array, mask: Array | None = None, *, kernel: str = "auto", causal: bool = False
) -> Array:
    """softmax(q k^T / sqrt(D)) v, the softmax in float32: q [B, N, H, D], k, v [B, M, H, D] -> like q.

    Attended to is where mask [B or 1, H or 1, N or 1, M] is True, if causal by no query before its key; a query with no
    such key in the mask gives 0.

    kernel "xla" is `jax.nn.dot_product_attention`, which holds all N x M logits. "flash" holds a block of them at a
    time: splash attention on TPU, cuDNN's on NVIDIA GPUs for 16 bits, and a scan over chunks of keys elsewhere and for
    what these do not take. "auto" is "flash" from `FLASH_FROM` queries and keys on, and "xla" below. Causal attention
    and attention inside a `jax.shard_map` are "xla" always.
    """
    check_choice(kernel)
    return _attend(q, k, v, mask, kernel=kernel, causal=causal, anywhere=_PORTABLE.get())


@functools.partial(jax.jit, static_argnames=("kernel", "causal", "anywhere"), inline=True)
@jax.named_scope(SCOPE)
def _attend(q: Array, k: Array, v: Array, mask: Array | None, *, kernel: str, causal: bool, anywhere: bool) -> Array:
    if not _is_flash((q.shape[1], k.shape[1]), kernel) or causal:
        out = product(jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=causal))
        return out if mask is None else jnp.where(jnp.moveaxis(mask.any(axis=-1, keepdims=True), 1, 2), out, 0)
    if mask is not None:
        mask = jnp.broadcast_to(mask, (q.shape[0], *mask.shape[1:]))
    if anywhere:
        return attend_by(kernels.CHUNKED, q, k, v, mask)
    cudnn = kernels.cudnn_takes(q, mask)
    return attend_by(_flash(cudnn, splash_attention.takes(q, mask) and _tpu_is_possible()), q, k, v, mask)


def _is_flash(lengths: tuple[int, int], kernel: str) -> bool:
    """Whether attention between so many queries and keys takes a flash kernel."""
    return kernel != "xla" and (kernel == "flash" or min(lengths) >= FLASH_FROM) and not _inside_shard_map()


def splash_is_possible(lengths: tuple[int, int], features: int, kernel: str) -> bool:
    """Whether attention between so many queries and keys, masked by key or not, is splash attention on a TPU."""
    fits = _is_flash(lengths, kernel) and features <= splash_attention.MOST_FEATURES
    return fits and _tpu_is_possible() and not _PORTABLE.get()


def _inside_shard_map() -> bool:
    return AxisType.Manual in jax.sharding.get_abstract_mesh().axis_types


def _tpu_is_possible() -> bool:
    """Whether a kernel for one TPU can be in the program: the mesh is known, or there is but one device."""
    return not jax.sharding.get_abstract_mesh().empty or jax.device_count() == 1


@functools.cache
def _flash(cudnn: bool, splash: bool) -> Kernel:
    """The flash kernel of the platform that is compiled for, which lowering knows and tracing does not."""
    known = ({"cuda": kernels.CUDNN} if cudnn else {}) | ({"tpu": splash_attention.splash()} if splash else {})
    if not known:
        return kernels.CHUNKED

    def by_platform(part: str) -> Any:
        ways = {platform: getattr(kernel, part) for platform, kernel in known.items()}
        return lambda *args: lax.platform_dependent(*args, default=getattr(kernels.CHUNKED, part), **ways)

    return Kernel(by_platform("output"), by_platform("forward"), by_platform("backward"))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def attend_by(kernel: Kernel, q: Array, k: Array, v: Array, mask: Array | None = None) -> Array:
    """`attend` by one kernel; mask [B, H or 1, N or 1, M]."""
    return kernel.output(q, k, v, mask)


@attend_by.defjvp
def _attend_jvp(kernel: Kernel, primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Array, Array]:
    (out, _), (tangent, _) = jax.jvp(lambda q, k, v: _forward(kernel, q, k, v, primals[3]), primals[:3], tangents[:3])
    return out, tangent


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _forward(kernel: Kernel, q: Array, k: Array, v: Array, mask: Array | None) -> tuple[Array, Array]:
    return kernel.forward(q, k, v, mask)


@_forward.defjvp
def _forward_jvp(kernel: Kernel, primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
    """The tangent of the logsumexp is left at 0: nothing but the backward pass reads it."""
    q, k, v, mask = primals
    out, logsumexp = _forward(kernel, *primals)
    out, logsumexp = product(out), statistic(logsumexp)
    held = (q, k, v, out, logsumexp) if mask is None else (q, k, v, out, logsumexp, mask)
    tangent = TANGENT.bind(*tangents[:3], *held, kernel=kernel)
    return (out, logsumexp), (tangent, jnp.zeros_like(logsumexp))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
@functools.partial(jax.jit, static_argnums=0, inline=True)
def _backward(
    kernel: Kernel, q: Array, k: Array, v: Array, mask: Array | None, out: Array, logsumexp: Array, g: Array
) -> Gradients:
    return kernel.backward(q, k, v, mask, out, logsumexp, g)


@_backward.defjvp
def _backward_jvp(kernel: Kernel, primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
    q, k, v, mask, _, _, g = primals

    moved = (*tangents[:3], tangents[-1])
    by_xla = jax.jvp(lambda q, k, v, g: kernels.gradients(q, k, v, mask, g), (q, k, v, g), moved)[1]
    return _backward(kernel, *primals), by_xla


TANGENT = Primitive("attention_tangent")
"""The output's tangent, linear in those of q, k and v: (their tangents, q, k, v, output, logsumexp, mask if any).

A primitive, for nothing else in JAX gives a function both a forward mode and a transpose of its own: evaluated it is
XLA's tangent, transposed the kernel's backward pass.
"""


def tangent(*args: Array) -> Array:
    """What `TANGENT` computes, of its arguments."""
    to_q, to_k, to_v, q, k, v, _, _, *mask = args
    return kernels.derivative(q, k, v, mask[0] if mask else None, (to_q, to_k, to_v))


def _jvp(primals: Sequence[Any], tangents: Sequence[Any], *, kernel: Kernel) -> tuple[Any, Any]:
    """Linear in the first three; of q, k and v XLA's derivative. Output and logsumexp follow from those."""

    def moved(start: int) -> list[Any] | None:
        part = tangents[start : start + 3]
        return None if all(type(t) is ad.Zero for t in part) else [ad.instantiate_zeros(t) for t in part]

    total: Any = ad.Zero(jax.typeof(primals[6]))
    if (linear := moved(0)) is not None:
        total = TANGENT.bind(*linear, *primals[3:], kernel=kernel)
    if (through := moved(3)) is not None:
        bend = jax.jvp(lambda *qkv: tangent(*primals[:3], *qkv, *primals[6:]), tuple(primals[3:6]), tuple(through))[1]
        total = bend if type(total) is ad.Zero else total + bend
    return TANGENT.bind(*primals, kernel=kernel), total


def _transpose(g: Any, *args: Any, kernel: Kernel) -> list[Any]:
    wanted = [ad.is_undefined_primal(a) for a in args]
    if type(g) is ad.Zero or not any(wanted):
        return [None] * len(args)
    q, k, v, out, logsumexp, *mask = args[3:]
    gradients = _backward(kernel, q, k, v, mask[0] if mask else None, out, logsumexp, g)
    # A tangent that is not asked for is one that is known to be 0.
    return [to if asked else None for to, asked in zip(gradients, wanted, strict=False)] + [None] * (len(args) - 3)


def _batched(args: Sequence[Array], axes: Sequence[Any], *, kernel: Kernel) -> tuple[Array, int]:
    """The axis that is mapped over joins the batch."""
    size = next(a.shape[axis] for a, axis in zip(args, axes, strict=True) if axis is not None)
    joined = []
    for a, axis in zip(args, axes, strict=True):
        front = jnp.broadcast_to(a, (size, *a.shape)) if axis is None else jnp.moveaxis(a, axis, 0)
        joined.append(front.reshape(-1, *front.shape[2:]))
    out = TANGENT.bind(*joined, kernel=kernel)
    return out.reshape(size, -1, *out.shape[1:]), 0


TANGENT.def_impl(lambda *args, kernel: jax.jit(tangent)(*args))
TANGENT.def_abstract_eval(lambda *args, kernel: args[6])
ad.primitive_jvps[TANGENT] = _jvp
ad.primitive_transposes[TANGENT] = _transpose
batching.primitive_batchers[TANGENT] = _batched
mlir.register_lowering(TANGENT, mlir.lower_fun(lambda *args, kernel: tangent(*args), multiple_results=False))
