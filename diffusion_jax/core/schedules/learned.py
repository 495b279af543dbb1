"""A log-SNR that is learned with the network: the monotone network of VDM, as init and apply."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from diffusion_jax.core.schedules.base import MAX_LOGSNR, Level, Schedule
from diffusion_jax.errors import UserError

Params = dict[str, Any]
"""A pytree of float32 arrays."""

_BISECTIONS = 24  # halves [0, 1] down to float32's resolution

_LEAST_RISE = 1e-6  # of the network from t = 0 to 1, and of the log-SNR's slope: 0 where all weights are


def init(key: Array, hidden: int = 1024, logsnr_max: float = 13.3, logsnr_min: float = -5.0) -> Params:
    """Parameters of VDM's monotone network (arXiv:2107.00630, appendix H), with its log-SNR at both ends."""
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
    """log-SNR(t) = -gamma(t), from ends[0] at t = 0 to ends[1] at t = 1 and strictly decreasing between.

    gamma~(t) = l1(t) + l3(sigmoid(l2(l1(t)))) with weights |w|, stretched to the ends (appendix H).
    """
    logsnr_max, logsnr_min = params["ends"]
    return logsnr_max + (logsnr_min - logsnr_max) * _progress(params, t)


def _progress(params: Params, t: Array) -> Array:
    """How far gamma(t) is on its way from one end, 0, to the other, 1."""
    low, high = _monotone(params, jnp.zeros(())), _monotone(params, jnp.ones(()))
    return (_monotone(params, t) - low) / jnp.maximum(high - low, _LEAST_RISE)


def _monotone(params: Params, t: Array) -> Array:
    l1 = jnp.abs(params["l1"]["w"]) * t + params["l1"]["b"]
    hidden = jax.nn.sigmoid(jnp.abs(params["l2"]["w"]) * l1[..., None] + params["l2"]["b"])
    return l1 + jnp.sum(jnp.abs(params["l3"]["w"]) * hidden, axis=-1)


@dataclasses.dataclass(frozen=True, eq=False)
class Learned(Schedule):
    """The variance-preserving schedule of `apply`; made inside the loss, it passes gradients on to params."""

    params: Params

    @property
    def t_min(self) -> float:
        """0: the first noise level is the model's own, and no likelihood needs to skip it."""
        return 0.0

    def level(self, t: Array) -> Level:  # noqa: D102
        logsnr = self.logsnr(t)
        return Level(jnp.exp(0.5 * jax.nn.log_sigmoid(logsnr)), jnp.exp(0.5 * jax.nn.log_sigmoid(-logsnr)))

    def logsnr(self, t: Array) -> Array:  # noqa: D102
        return apply(self.params, jnp.asarray(t, jnp.float32))

    def time(self, logsnr: Array) -> Array:
        """The inverse by bisection; one Newton step at its end gives it the gradient of the implicit function."""
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
        """The log-SNR scaled to [0, 1000] from data to noise: VDM's network input, on DDPM's scale."""
        return 1000.0 * _progress(self.params, jnp.asarray(t, jnp.float32))
