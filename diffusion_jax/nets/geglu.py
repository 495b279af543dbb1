"""The gated feed-forward layer GEGLU (arXiv:2002.05202, eq. 6), by XLA's operations or by a kernel for TPUs.

Dimension key B batch, N tokens, C channels, F inner width.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array, lax
from jax.typing import DTypeLike

from diffusion_jax.nets import gated_kernel, platforms
from diffusion_jax.nets.dense import Parameters, linear
from diffusion_jax.nets.gated_kernel import Weights
from diffusion_jax.nets.own_gradient import Arrays, DifferentiableKernel
from diffusion_jax.nets.rematerialization import product
from diffusion_jax.nets.tpu_kernels import FEWEST_TOKENS


class FeedForward(nn.Module):
    """(x V * GELU(x W)) W_2 with an inner width F = 4 C, biases and the exact GELU: [B, N, C] -> [B, N, C].

    V, W and W_2 are the kernels of the parameters "linear", "gate" and "project".
    """

    kernel: str = "auto"
    """One of `attention.CHOICES`: all but "xla" allow the kernel for TPUs."""
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, N, C] -> [B, N, C] of `dtype`."""
        channels, inner = x.shape[-1], 4 * x.shape[-1]
        widths = {"linear": (channels, inner), "gate": (channels, inner), "project": (inner, channels)}
        weights: list[Any] = []  # of each a kernel and a bias, in the order of `Weights`
        for name, (width, features) in widths.items():
            weights += Parameters(features, name=name)(width)
        x = x.astype(self.dtype)
        if self.kernel != "xla" and _suits_the_kernel(x, inner):
            return product(lax.platform_dependent(x, *weights, tpu=by_kernel(), default=feed_forward))
        return feed_forward(x, *weights)


def feed_forward(x: Array, *weights: Array) -> Array:
    """The layer of x [..., C] and `Weights`, computed in x's type by XLA's operations: like x."""
    w = Weights(*weights)
    gated = gated_gelu_in_16_bits if x.dtype.itemsize == 2 else gated_gelu
    inner = gated(linear(x, w.linear, w.linear_bias, x.dtype), linear(x, w.gate, w.gate_bias, x.dtype))  # [..., F]
    return linear(inner, w.project, w.project_bias, x.dtype)


@functools.cache
def by_kernel(*, interpret: bool = False) -> DifferentiableKernel:
    """`feed_forward` of x [B, N, C] by `gated_kernel`."""
    forward = functools.partial(gated_kernel.forward, interpret=interpret)

    def backward(args: Arrays, residuals: Arrays, dout: Array) -> Arrays:
        x, *weights = args
        return gated_kernel.backward(x, dout, *weights, interpret=interpret)

    return DifferentiableKernel(
        primal=forward,
        forward=lambda *args: (forward(*args), ()),
        backward=backward,
        reference=feed_forward,
        differentiable=1 + len(Weights._fields),
        saves_output=False,
        batched=False,  # the weights have no axis of the batch
    )


def _suits_the_kernel(x: Array, inner: int) -> bool:
    """Whether a TPU runs the layer of x [B, N, C] by its kernel: 16 bits, and many tokens of few channels."""
    fits = x.dtype.itemsize == 2 and gated_kernel.takes(x.shape[-1], inner)
    large = x.shape[1] >= FEWEST_TOKENS and gated_kernel.splits(x.shape[0])
    return fits and large and platforms.tpu_kernel_is_possible()


def gated_gelu(linear: Array, gate: Array) -> Array:
    """linear * GELU(gate), the exact GELU; all of one shape."""
    return linear * nn.gelu(gate, approximate=False)


@jax.custom_jvp
def gated_gelu_in_16_bits(linear: Array, gate: Array) -> Array:
    """`gated_gelu`, of which the gradient keeps nothing but the arguments.

    Left to JAX it keeps what GELU has in between, which XLA computes and writes in 32 bits on TPUs. On CPU to keep it
    is faster than to compute it again.
    """
    return gated_gelu(linear, gate)


@gated_gelu_in_16_bits.defjvp
def _gated_gelu_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    """In two parts, whose transposes are computed apart: together, XLA writes what they share and reads it again."""
    linear, gate = primals

    @jax.checkpoint
    def by_linear(gate: Array, tangent: Array) -> Array:
        return gated_gelu(tangent, gate)

    @jax.checkpoint
    def by_gate(linear: Array, gate: Array, tangent: Array) -> Array:
        return linear * jax.jvp(lambda gate: nn.gelu(gate, approximate=False), (gate,), (tangent,))[1]

    return gated_gelu_in_16_bits(linear, gate), by_linear(gate, tangents[0]) + by_gate(linear, gate, tangents[1])
