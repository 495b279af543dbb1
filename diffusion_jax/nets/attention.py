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
from jax.sharding import AxisType

from diffusion_jax.errors import UserError
from diffusion_jax.nets import attention_kernels as kernels
from diffusion_jax.nets import own_gradient, packed_attention, splash_attention
from diffusion_jax.nets.attention_kernels import Gradients, Kernel
from diffusion_jax.nets.rematerialization import product

CHOICES = ("auto", "xla", "flash")
"""What `attention_kernel` may be; `attend` says what each does. On TPU all but "xla" allow the gated feed-forward layer
behind an attention its kernel too, `gated_kernel`."""

SCOPE = "attention_core"
"""The name by which a profile, and a plan, knows what lies between the projections."""

FLASH_FROM = 1024
"""Queries, and keys, from which "auto" takes a flash kernel."""

PACKED_FROM = 256
"""Queries from which "auto" takes the packed kernel on a TPU, however few the keys are."""


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
    time: on TPU the packed kernel, or splash attention where an example's keys do not fit its vector memory; cuDNN's on
    NVIDIA GPUs for 16 bits; and a scan over chunks of keys elsewhere and for what these do not take. "auto" is "flash"
    from `FLASH_FROM` queries and keys on and, on TPU alone, the packed kernel from `PACKED_FROM` queries on; else
    "xla". Causal attention and attention inside a `jax.shard_map` are "xla" always.
    """
    check_choice(kernel)
    return _attend(q, k, v, mask, kernel=kernel, causal=causal, anywhere=_PORTABLE.get())


@functools.partial(jax.jit, static_argnames=("kernel", "causal", "anywhere"), inline=True)
@jax.named_scope(SCOPE)
def _attend(q: Array, k: Array, v: Array, mask: Array | None, *, kernel: str, causal: bool, anywhere: bool) -> Array:
    if mask is not None:
        mask = jnp.broadcast_to(mask, (q.shape[0], *mask.shape[1:]))
    packed = not anywhere and tpu_kernel_is_possible(kernel) and packed_attention.takes(q, k, mask)
    if not _is_flash((q.shape[1], k.shape[1]), kernel) or causal:
        plain = functools.partial(_by_xla, causal=causal)
        if packed and not causal and q.shape[1] >= PACKED_FROM:
            by_kernel = functools.partial(attend_by, packed_attention.packed())
            return product(lax.platform_dependent(q, k, v, mask, tpu=by_kernel, default=plain))
        return product(plain(q, k, v, mask))
    if anywhere:
        return attend_by(kernels.CHUNKED, q, k, v, mask)
    splash = splash_attention.takes(q, mask) and _tpu_is_possible()
    tpu = packed_attention.packed() if packed else splash_attention.splash() if splash else None
    return attend_by(_flash(kernels.cudnn_takes(q, mask), tpu), q, k, v, mask)


def _by_xla(q: Array, k: Array, v: Array, mask: Array | None, causal: bool) -> Array:
    out = jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=causal)
    return out if mask is None else jnp.where(jnp.moveaxis(mask.any(axis=-1, keepdims=True), 1, 2), out, 0)


def _is_flash(lengths: tuple[int, int], kernel: str) -> bool:
    """Whether attention between so many queries and keys takes a flash kernel."""
    return kernel != "xla" and (kernel == "flash" or min(lengths) >= FLASH_FROM) and not _inside_shard_map()


def tpu_kernel_is_possible(kernel: str) -> bool:
    """Whether the choice allows a Pallas kernel in what is traced, should it be compiled for TPUs."""
    return kernel != "xla" and not _PORTABLE.get() and _tpu_is_possible() and not _inside_shard_map()


def _inside_shard_map() -> bool:
    return AxisType.Manual in jax.sharding.get_abstract_mesh().axis_types


def _tpu_is_possible() -> bool:
    """Whether a kernel for one TPU can be in the program: the mesh is known, or there is but one device."""
    return not jax.sharding.get_abstract_mesh().empty or jax.device_count() == 1


@functools.cache
def _flash(cudnn: bool, tpu: Kernel | None) -> Kernel:
    """The flash kernel of the platform that is compiled for, which lowering knows and tracing does not."""
    known = ({"cuda": kernels.CUDNN} if cudnn else {}) | ({"tpu": tpu} if tpu else {})
    if not known:
        return kernels.CHUNKED

    def by_platform(part: str) -> Any:
        ways = {platform: getattr(kernel, part) for platform, kernel in known.items()}
        return lambda *args: lax.platform_dependent(*args, default=getattr(kernels.CHUNKED, part), **ways)

    return Kernel(by_platform("output"), by_platform("forward"), by_platform("backward"))


def attend_by(kernel: Kernel, q: Array, k: Array, v: Array, mask: Array | None = None) -> Array:
    """`attend` by one kernel; mask [B, H or 1, N or 1, M]."""
    return own_gradient.apply(_rule(kernel), q, k, v, *(() if mask is None else (mask,)))


@functools.cache
def _rule(kernel: Kernel) -> own_gradient.Rule:
    """A kernel as a function of q, k, v and the mask, if any."""

    def forward(q: Array, k: Array, v: Array, mask: Array | None = None) -> tuple[Array, tuple[Array]]:
        out, logsumexp = kernel.forward(q, k, v, mask)
        return out, (logsumexp,)

    def backward(arrays: Sequence[Array], read: Sequence[Array], g: Array) -> Gradients:
        (q, k, v, *mask), (out, logsumexp) = arrays, read
        return kernel.backward(q, k, v, mask[0] if mask else None, out, logsumexp, g)

    return own_gradient.Rule(
        output=lambda q, k, v, mask=None: kernel.output(q, k, v, mask),
        forward=forward,
        backward=backward,
        reference=lambda q, k, v, mask=None: kernels.chunked_forward(q, k, v, mask)[0],
        moving=3,
        reads_output=True,
        by_example=True,
    )
