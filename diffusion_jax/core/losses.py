"""Training losses of a denoising network, one number an example."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from diffusion_jax.core import weightings
from diffusion_jax.core.arguments import check_one_each, check_output
from diffusion_jax.core.bound import term
from diffusion_jax.core.denoisers import Condition
from diffusion_jax.core.predictions import Parameterization, Prediction, split_variance
from diffusion_jax.core.process import diffuse, log_variances
from diffusion_jax.core.schedules import Schedule
from diffusion_jax.errors import UserError

Network = Callable[[Array, Array, Condition], Array]
"""(network input [B, ...], conditioning [B], condition) -> output [B, ...]."""

Distance = Callable[[Array], Array]
"""Error -> the size of the error, elementwise."""


def l2() -> Distance:
    """error^2."""
    return jnp.square


def l1() -> Distance:
    """|error|."""
    return jnp.abs


def huber(delta: float = 1.0) -> Distance:
    """error^2 where |error| <= delta, and its tangent beyond: twice Huber's loss. Raises UserError unless delta > 0."""
    if delta <= 0:
        raise UserError(f"distance 'huber' needs delta > 0; got {delta}")

    def distance(error: Array) -> Array:
        size = jnp.abs(error)
        return jnp.where(size <= delta, error**2, delta * (2 * size - delta))

    return distance


DISTANCES: dict[str, Callable[..., Distance]] = {"l2": l2, "l1": l1, "huber": huber}


def simple_loss(
    apply: Network,
    schedule: Schedule,
    parameterization: Parameterization,
    x0: Array,
    cond: Condition,
    t: Array,
    eps: Array,
) -> Array:
    """L_simple, eq. 14 of DDPM, for any prediction: the mean squared error of the network's output, [B].

    The arguments are those of `denoising_loss`.
    """
    return denoising_loss(apply, schedule, parameterization, x0, cond, t, eps)


def denoising_loss(
    apply: Network,
    schedule: Schedule,
    parameterization: Parameterization,
    x0: Array,
    cond: Condition,
    t: Array,
    eps: Array,
    *,
    weighting: weightings.Weighting | None = None,
    distance: Distance | None = None,
    vlb_weight: float | Array = 0.001,
) -> Array:
    """The weighted distance between the network's output and its target, averaged over each example: [B], float32.

    x0 [B, ...] are examples, cond [B, ...] their conditions, t [B] times and eps [B, ...] standard normal noise. By
    default the weight is 1 and the distance `l2`: L_simple. With a flow prediction on rectified flow it is conditional
    flow matching (arXiv:2210.02747, eq. 23); with EDM's prediction, weighting and times it is EDM's loss.

    Where the network learns its variance, the loss is L_hybrid = L_simple + vlb_weight L_vlb of improved DDPM
    (arXiv:2102.09672, eq. 16), in which the gradient of L_vlb reaches the variance and not the mean. That needs a
    discrete schedule; UserError is raised for a continuous one.
    """
    check_one_each(x0, t=t)
    level = schedule.level(t)
    x = diffuse(x0, eps, level)
    out = _output(apply, schedule, parameterization, x, cond, t)
    mean = split_variance(out)[0] if parameterization.learned_variance else out
    error = mean - parameterization.target(x0, eps, level).astype(jnp.float32)
    loss = jnp.mean((distance or l2())(error), axis=tuple(range(1, error.ndim)))
    if weighting is not None:
        loss = weighting(schedule, parameterization, t) * loss
    if parameterization.learned_variance and (isinstance(vlb_weight, Array) or vlb_weight):
        prediction = parameterization.to_prediction(out, x, level)
        fixed = jax.tree.map(jax.lax.stop_gradient, prediction)._replace(fraction=prediction.fraction)
        loss = loss + vlb_weight * _vlb(schedule, x0, x, t, fixed, "learned")
    return loss


def vlb_loss(
    apply: Network,
    schedule: Schedule,
    parameterization: Parameterization,
    x0: Array,
    cond: Condition,
    t: Array,
    eps: Array,
    *,
    variance: str = "small",
) -> Array:
    """T L_t in bits per dimension, [B]. Its mean over uniform steps t is L_vlb without the prior term.

    Section 3.3 of improved DDPM (arXiv:2102.09672), which trains it with times drawn by importance. The arguments are
    those of `denoising_loss`; variance is one of `core.bound.VARIANCES`. Raises UserError for a continuous schedule.
    """
    check_one_each(x0, t=t)
    level = schedule.level(t)
    x = diffuse(x0, eps, level)
    out = _output(apply, schedule, parameterization, x, cond, t)
    return _vlb(schedule, x0, x, t, parameterization.to_prediction(out, x, level), variance)


def _output(
    apply: Network, schedule: Schedule, parameterization: Parameterization, x: Array, cond: Condition, t: Array
) -> Array:
    """The network's output for x = x_t, in float32."""
    out = apply(parameterization.network_input(x, schedule.level(t)), schedule.conditioning(t), cond)
    check_output(out, x, learned_variance=parameterization.learned_variance)
    return out.astype(jnp.float32)


def _vlb(schedule: Schedule, x0: Array, x: Array, t: Array, prediction: Prediction, variance: str) -> Array:
    """T times the term of L_vlb for the step that begins at t [B]."""
    steps = schedule.steps
    if steps is None:
        raise UserError(
            "L_vlb and a learned variance need a discrete schedule, as 'linear' and 'cosine' are; "
            "on a continuous one use the weighting 'elbo' and learned_variance=False"
        )
    small, large = log_variances(schedule.level(jnp.linspace(1.0, 0.0, steps + 1)))
    n = jnp.clip(steps - jnp.round(t * steps).astype(jnp.int32), 0, steps - 1)
    t = 1.0 - n / steps
    s = jnp.maximum(t - 1 / steps, 0.0)
    return steps * term(x0, x, prediction, schedule.level(s), schedule.level(t), small[n], large[n], variance)
