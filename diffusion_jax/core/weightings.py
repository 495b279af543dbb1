"""Weightings: how a loss weighs its noise levels.

Papers give a weight for the squared error of x0, of eps or of v. For a given x_t these errors are proportional, so a
weight in one space is a weight in any other: with g = |d output / d x0|, w_output = w_x0 / g^2. g^2 is SNR for eps,
SNR + 1 for v and 1 / c_out^2 for EDM's F. A `Weighting` gives the weight in the space of the network's own output, so
that a weighting is the same loss for every prediction. All weightings assume an L2 distance.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from diffusion_jax.core.predictions import PREDICTIONS, Parameterization
from diffusion_jax.core.schedules import Schedule
from diffusion_jax.errors import UserError

Weighting = Callable[[Schedule, Parameterization, Array], Array]
"""(schedule, prediction, t [B]) -> weight [B] of the squared error of the network's output."""


def from_x0(log_weight: Callable[[Array], Array]) -> Weighting:
    """The weighting whose weight of the squared error of x0 is exp(log_weight(log-SNR))."""
    return lambda schedule, parameterization, t: jnp.exp(
        log_weight(schedule.logsnr(t)) - 2 * parameterization.log_gain(schedule.level(t))
    )


def constant(space: str = "output") -> Weighting:
    """Weight 1 for the error of the network's output, as in DDPM's L_simple, or for the error in another space.

    space is "output" or a name of `PREDICTIONS`, such as "x0", "eps", "v" or "flow"; another one raises UserError.
    """
    if space == "output":
        return lambda schedule, parameterization, t: jnp.ones_like(t)
    if space not in PREDICTIONS:
        raise UserError(
            f"weighting 'constant' takes space 'output', {', '.join(map(repr, PREDICTIONS))}; got {space!r}"
        )
    log_gain = PREDICTIONS[space]().log_gain

    def weight(schedule: Schedule, parameterization: Parameterization, t: Array) -> Array:
        level = schedule.level(t)
        return jnp.exp(2 * (log_gain(level) - parameterization.log_gain(level)))

    return weight


def edm(sigma_data: float = 0.5) -> Weighting:
    """(sigma^2 + sigma_data^2) / (sigma sigma_data)^2 for x0, 1 / c_out^2; table 1 of EDM (arXiv:2206.00364).

    sigma is that of x / alpha. For EDM's F of the same sigma_data the weight is 1. Raises UserError unless
    sigma_data > 0.
    """
    if sigma_data <= 0:
        raise UserError(f"weighting 'edm' needs sigma_data > 0; got {sigma_data}")
    log_data = 2 * math.log(sigma_data)
    return from_x0(lambda logsnr: jnp.logaddexp(-logsnr, log_data) + logsnr - log_data)


def min_snr(gamma: float = 5.0) -> Weighting:
    """min(SNR, gamma) for x0, and so min(SNR, gamma) / SNR for eps: section 3.4 of min-SNR (arXiv:2303.09556).

    Raises UserError unless gamma > 0.
    """
    log_gamma = _log("min_snr", "gamma", gamma)
    return from_x0(lambda logsnr: jnp.minimum(logsnr, log_gamma))


def truncated_snr(floor: float = 1.0, ceiling: float = math.inf) -> Weighting:
    """max(SNR, floor) for x0, at most ceiling: section 4 of progressive distillation (arXiv:2202.00512).

    The floor gives zero SNR a weight. Without a ceiling the few examples with the least noise outweigh all others.
    Raises UserError unless 0 < floor <= ceiling.
    """
    log_floor, log_ceiling = _log("truncated_snr", "floor", floor), _log("truncated_snr", "ceiling", ceiling)
    if floor > ceiling:
        raise UserError(f"weighting 'truncated_snr' needs floor <= ceiling; got {floor} and {ceiling}")
    return from_x0(lambda logsnr: jnp.clip(logsnr, log_floor, log_ceiling))


def p2(gamma: float = 1.0, k: float = 1.0) -> Weighting:
    """1 / (k + SNR)^gamma for eps: P2 weighting (arXiv:2204.00227). Raises UserError unless k > 0."""
    log_k = _log("p2", "k", k)
    return from_x0(lambda logsnr: logsnr - gamma * jnp.logaddexp(log_k, logsnr))


def elbo() -> Weighting:
    """-(d logsnr / dt) / 2 for eps: with uniform t, VDM's diffusion loss in nats (section 4 of arXiv:2107.00630)."""
    return _in_logsnr(lambda logsnr: jnp.zeros_like(logsnr))


def sigmoid(bias: float = 0.0) -> Weighting:
    """The `elbo` weight times sigmoid(bias - logsnr); VDM++ (arXiv:2303.00848), simpler diffusion (arXiv:2410.19324).

    With uniform t the loss is an integral over log-SNR, so the schedule changes only the variance of its estimate.
    """
    return _in_logsnr(lambda logsnr: jax.nn.log_sigmoid(bias - logsnr))


def _in_logsnr(log_weight: Callable[[Array], Array]) -> Weighting:
    """The weight by which, for uniform t, a loss integrates exp(log_weight) times half the eps error over log-SNR."""

    def weight(schedule: Schedule, parameterization: Parameterization, t: Array) -> Array:
        logsnr, slope = jax.jvp(schedule.logsnr, (t,), (jnp.ones_like(t),))
        gain = parameterization.log_gain(schedule.level(t))
        return -0.5 * slope * jnp.exp(log_weight(logsnr) + logsnr - 2 * gain)

    return weight


def _log(name: str, argument: str, value: float) -> float:
    if value <= 0:
        raise UserError(f"weighting {name!r} needs {argument} > 0; got {value}")
    return math.log(value)


WEIGHTINGS: dict[str, Callable[..., Weighting]] = {
    "constant": constant,
    "edm": edm,
    "min_snr": min_snr,
    "truncated_snr": truncated_snr,
    "p2": p2,
    "elbo": elbo,
    "sigmoid": sigmoid,
}
