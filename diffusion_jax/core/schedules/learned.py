"""A schedule whose log-SNR is learned with the network: the monotone network of VDM, as `init` and `apply`."""

import dataclasses
from typing import TypedDict

import jax
import jax.numpy as jnp
from jax import Array

from diffusion_jax.core.schedules.base import MAX_LOGSNR, Level, Schedule
from diffusion_jax.errors import UserError


class Layer(TypedDict, total=False):
    """A linear layer; float32."""

    w: Array
    b: Array


class Params(TypedDict):
    """The parameters of the network, and the log-SNR at t = 0 and at t = 1; float32."""

    ends: Array  # [2]
    l1: Layer  # scalars
    l2: Layer  # [hidden]
    l3: Layer  # [hidden]


_BISECTIONS = 24  # which reach float32's resolution of [0, 1]

_LEAST_RISE = 1e-6  # the least rise of the network from t = 0 to 1, and of the log-SNR's slope: both divide


def init(key: Array, hidden: int = 1024, logsnr_max: float = 13.3, logsnr_min: float = -5.0) -> Params:
    """Random parameters of VDM's monotone network (arXiv:2107.00630, appendix H), with the log-SNR at both ends.

    Raises UserError unless -27 < logsnr_min < logsnr_max < 27.
    """
    if not -MAX_LOGSNR < logsnr_min < logsnr_max < MAX_LOGSNR:
        raise UserError(
            f"a learned schedule needs -27 < logsnr_min < logsnr_max < 27; got {logsnr_min} and {logsnr_max}"
        )
    first, second, third = jax.random.split(key, 3)
    return {
        "ends": jnp.array([logsnr_max, logsnr_min], jnp.float32),
        "l1": {"w": jnp.ones(()), "b": 0.1 * jax.random.normal(first, ())},
        "l2": {"w": jax.random.normal(second, (hidden,)), "b": jnp.linspace(-3.0, 3.0, hidden)},
        "l3": {"w": jax.random.normal(third, (hidden,)) / hidden},
    }


def apply(params: Params, t: Array) -> Array:
    """The log-SNR -gamma(t), elementwise, which falls strictly from ends[0] at t = 0 to ends[1] at t = 1.

    gamma is l1(t) + l3(sigmoid(l2(l1(t)))) with weights |w|, scaled to the ends (appendix H).
    """
    logsnr_max, logsnr_min = params["ends"]
    return logsnr_max + (logsnr_min - logsnr_max) * _progress(params, t)


def _progress(params: Params, t: Array) -> Array:
    """The network of `apply` scaled to rise from 0 at t = 0 to 1 at t = 1."""
    low, high = _monotone(params, jnp.zeros(())), _monotone(params, jnp.ones(()))
    return (_monotone(params, t) - low) / jnp.maximum(high - low, _LEAST_RISE)


def _monotone(params: Params, t: Array) -> Array:
    l1 = jnp.abs(params["l1"]["w"]) * t + params["l1"]["b"]
    hidden = jax.nn.sigmoid(jnp.abs(params["l2"]["w"]) * l1[..., None] + params["l2"]["b"])
    return l1 + jnp.sum(jnp.abs(params["l3"]["w"]) * hidden, axis=-1)


@dataclasses.dataclass(frozen=True, eq=False)
class Learned(Schedule):
    """The variance-preserving schedule of `apply`. Where the loss makes it, gradients reach its parameters."""

    params: Params

    @property
    def t_min(self) -> float:
        """0: the noise at t = 0 belongs to the model, so a likelihood begins there."""
        return 0.0

    def level(self, t: Array) -> Level:  # noqa: D102
        logsnr = self.logsnr(t)
        return Level(jnp.exp(0.5 * jax.nn.log_sigmoid(logsnr)), jnp.exp(0.5 * jax.nn.log_sigmoid(-logsnr)))

    def logsnr(self, t: Array) -> Array:  # noqa: D102
        return apply(self.params, jnp.asarray(t, jnp.float32))

    def time(self, logsnr: Array) -> Array:
        """The inverse by bisection. A Newton step at the end gives it the gradient of the implicit function."""
        logsnr = jnp.asarray(logsnr, jnp.float32)

        def halve(_, ends):
            low, high = ends
            middle = 0.5 * (low + high)
            later = jax.lax.stop_gradient(self.logsnr(middle) > logsnr)
            return jnp.where(later, middle, low), jnp.where(later, high, middle)

        ends = (jnp.zeros_like(logsnr), jnp.ones_like(logsnr))
        low, high = jax.lax.fori_loop(0, _BISECTIONS, halve, ends)
        t = jax.lax.stop_gradient(0.5 * (low + high))
        slope = jax.jvp(self.logsnr, (t,), (jnp.ones_like(t),))[1]
        slope = jnp.minimum(jax.lax.stop_gradient(slope), -_LEAST_RISE)
        return jnp.clip(t - (self.logsnr(t) - logsnr) / slope, 0.0, 1.0)

    def conditioning(self, t: Array) -> Array:
        """The log-SNR scaled to [0, 1000] from data to noise: VDM's network input on DDPM's scale."""
        return 1000.0 * _progress(self.params, jnp.asarray(t, jnp.float32))
