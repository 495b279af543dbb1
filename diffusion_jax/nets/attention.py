"""Attention of every network, by the kernel that suits the platform compiled for and the shape.

Dimension key B batch, N queries, M keys, H heads, D features. Reverse mode runs a kernel's own backward pass. Forward
mode, which flash kernels do not have, is XLA's: `jax.jvp` and `jax.linearize` work under every choice, to any order.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from diffusion_jax.errors import UserError
from diffusion_jax.nets import attention_kernels as kernels
from diffusion_jax.nets import packed_attention, platforms, splash_attention
from diffusion_jax.nets.attention_kernels import Gradients, Kernel
from diffusion_jax.nets.own_gradient import Arrays, DifferentiableKernel
from diffusion_jax.nets.rematerialization import product
from diffusion_jax.nets.tpu_kernels import FEWEST_TOKENS

CHOICES = ("auto", "xla", "flash")
"""What `attention_kernel` may be; `attend` says what each does. On TPU all but "xla" allow the gated feed-forward layer
behind an attention its kernel too (`geglu`)."""

SCOPE = "attention_core"
"""The name by which a profile, and a plan, knows what lies between the projections."""

FLASH_FROM = 1024
"""Queries, and keys, from which "auto" takes a flash kernel."""


def check_choice(choice: str) -> None:
    """Raises UserError unless choice is one of `CHOICES`."""
    if choice not in CHOICES:
        raise UserError(f"model.attention_kernel is one of {', '.join(CHOICES)}; got {choice!r}")


def attend(
    q: Array, k: Array, v: Array, mask: Array | None = None, *, kernel: str = "auto", causal: bool = False
) -> Array:
    """softmax(q k^T / sqrt(D)) v, the softmax in float32: q [B, N, H, D], k, v [B, M, H, D] -> like q.

    A query attends to the keys where mask [B or 1, H or 1, N or 1, M] is True and, if causal, to none behind its own
    place. Where the mask has no key for it, it gives 0. kernel chooses the program:

    - "xla" is `jax.nn.dot_product_attention`, which holds all N x M logits.
    - "flash" holds a block of logits at a time: on TPU by the packed kernel, or by splash attention where an example's
      keys do not fit the packed kernel's vector memory; on NVIDIA GPUs in 16 bits by cuDNN's; elsewhere, and for what
      these do not take, by a scan over chunks of keys.
    - "auto" is "flash" from `FLASH_FROM` queries and keys on, and "xla" below, but on TPU the packed kernel from
      `FEWEST_TOKENS` queries on, however few the keys are.

    Causal attention and attention inside a `jax.shard_map` are "xla" always. Raises UserError for another choice.
    """
    check_choice(kernel)
    return _attend(q, k, v, mask, kernel=kernel, causal=causal, portable=platforms.is_portable())


@functools.partial(jax.jit, static_argnames=("kernel", "causal", "portable"), inline=True)
@jax.named_scope(SCOPE)
def _attend(q: Array, k: Array, v: Array, mask: Array | None, *, kernel: str, causal: bool, portable: bool) -> Array:
    """`attend`; portable is an argument for `jax.jit`, which keeps what it traced, to tell the two apart."""
    if mask is not None:
        mask = jnp.broadcast_to(mask, (q.shape[0], *mask.shape[1:]))
    on_tpu = kernel != "xla" and platforms.tpu_kernel_is_possible()
    packed = on_tpu and packed_attention.takes(q, k, mask)
    if _is_flash((q.shape[1], k.shape[1]), kernel) and not causal:
        splash = on_tpu and splash_attention.takes(q, mask)
        tpu = packed_attention.packed() if packed else splash_attention.splash() if splash else None
        return attend_by(_flash(not portable and kernels.cudnn_takes(q, mask), tpu), q, k, v, mask)
    by_xla = functools.partial(_by_xla, causal=causal)
    if packed and not causal and q.shape[1] >= FEWEST_TOKENS:
        by_kernel = functools.partial(attend_by, packed_attention.packed())
        return product(lax.platform_dependent(q, k, v, mask, tpu=by_kernel, default=by_xla))
    return product(by_xla(q, k, v, mask))


def _by_xla(q: Array, k: Array, v: Array, mask: Array | None, causal: bool) -> Array:
    out = jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=causal)
    return out if mask is None else jnp.where(jnp.moveaxis(mask.any(axis=-1, keepdims=True), 1, 2), out, 0)


def _is_flash(lengths: tuple[int, int], kernel: str) -> bool:
    """Whether attention between so many queries and keys takes a flash kernel."""
    wanted = kernel == "flash" or (kernel == "auto" and min(lengths) >= FLASH_FROM)
    return wanted and not platforms.inside_shard_map()


@functools.cache
def _flash(cudnn: bool, tpu: Kernel | None) -> Kernel:
    """cuDNN's kernel on NVIDIA GPUs where asked, the kernel tpu, if any, on TPUs, and elsewhere the chunked one.

    Which it is, lowering decides: it knows the platform that is compiled for, and tracing does not.
    """
    known = ({"cuda": kernels.CUDNN} if cudnn else {}) | ({"tpu": tpu} if tpu else {})
    if not known:
        return kernels.CHUNKED

    def by_platform(part: str) -> Any:
        branches = {platform: getattr(kernel, part) for platform, kernel in known.items()}
        return lambda *args: lax.platform_dependent(*args, default=getattr(kernels.CHUNKED, part), **branches)

    return Kernel(by_platform("primal"), by_platform("forward"), by_platform("backward"))


def attend_by(kernel: Kernel, q: Array, k: Array, v: Array, mask: Array | None = None) -> Array:
    """`attend` by one kernel; mask [B, H or 1, N or 1, M]."""
    return _differentiable(kernel)(q, k, v, *(() if mask is None else (mask,)))


@functools.cache
def _differentiable(kernel: Kernel) -> DifferentiableKernel:
    """A kernel as a function of q, k, v and, if there is one, the mask."""

    def forward(q: Array, k: Array, v: Array, mask: Array | None = None) -> tuple[Array, tuple[Array]]:
        out, logsumexp = kernel.forward(q, k, v, mask)
        return out, (logsumexp,)

    def backward(args: Arrays, residuals: Arrays, dout: Array) -> Gradients:
        (q, k, v, *mask), (out, logsumexp) = args, residuals
        return kernel.backward(q, k, v, mask[0] if mask else None, out, logsumexp, dout)

    return DifferentiableKernel(
        primal=lambda q, k, v, mask=None: kernel.primal(q, k, v, mask),
        forward=forward,
        backward=backward,
        reference=lambda q, k, v, mask=None: kernels.chunked_forward(q, k, v, mask)[0],
        differentiable=3,
        saves_output=True,
        batched=True,
    )
