"""What a network predicts, and the hub (x0, eps) through which any prediction becomes any other."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from diffusion_jax.core.schedules import Level
from diffusion_jax.core.schedules.base import safe_log
from diffusion_jax.errors import UserError


class Prediction(NamedTuple):
    """The denoised image x0 and the noise eps of one x_t = alpha x0 + sigma eps; each [B, ...]."""

    x0: Array
    eps: Array
    fraction: Array | None = None
    """Of a network that learns its variance: where log variance lies between the posterior's, 0, and beta, 1."""


class Parameterization(NamedTuple):
    """One kind of network output and its two conversions; levels are scalars or [B]."""

    to_prediction: Callable[[Array, Array, Level], Prediction]
    """(output, x_t, level) -> Prediction: what the sampler needs."""

    target: Callable[[Array, Array, Level], Array]
    """(x0, eps, level) -> the output that is exactly right: what the loss compares with."""

    log_gain: Callable[[Level], Array]
    """log |d output / d x0| at a fixed x_t: how an error of x0 shows in the output; levels below 1e-6 count as that."""

    network_input: Callable[[Array, Level], Array] = lambda x, level: x
    """(x_t, level) -> what the network is given for x_t."""

    learned_variance: bool = False
    """Whether the output has 2 C channels, of which the last C are the fraction of the log variance."""


def x0_from_eps(eps: Array, x: Array, level: Level) -> Array:
    """x0 = (x - sigma eps) / alpha; where alpha = 0, x holds no signal and x0 is 0, the middle of the data's range."""
    alpha, sigma = level.like(x)
    return _divide(x - sigma * eps, alpha)


def eps_from_x0(x0: Array, x: Array, level: Level) -> Array:
    """eps = (x - alpha x0) / sigma; where sigma = 0, x holds no noise and eps is 0, its mean."""
    alpha, sigma = level.like(x)
    return _divide(x - alpha * x0, sigma)


def _divide(a: Array, b: Array) -> Array:
    """a / b; 0 where b = 0, with a gradient that is finite there."""
    return jnp.where(b > 0, a / jnp.where(b > 0, b, 1.0), 0.0)


def eps(sigma_data: float = 0.0, learned_variance: bool = False) -> Parameterization:
    """The noise eps; eq. 14 of DDPM (arXiv:2006.11239). At zero SNR it says nothing of x0, which is then 0."""
    return _with(
        Parameterization(
            to_prediction=lambda out, x, level: Prediction(x0_from_eps(out, x, level), out),
            target=lambda x0, eps, level: eps,
            log_gain=lambda level: safe_log(level.alpha) - safe_log(level.sigma),
        ),
        sigma_data,
        learned_variance,
    )


def x0(sigma_data: float = 0.0, learned_variance: bool = False) -> Parameterization:
    """The image x0. At sigma = 0 it says nothing of eps, which is then 0."""
    return _with(
        Parameterization(
            to_prediction=lambda out, x, level: Prediction(out, eps_from_x0(out, x, level)),
            target=lambda x0, eps, level: x0,
            log_gain=lambda level: jnp.zeros_like(level.alpha),
        ),
        sigma_data,
        learned_variance,
    )


def v(sigma_data: float = 0.0, learned_variance: bool = False) -> Parameterization:
    """v = alpha eps - sigma x0; section 4 and appendix D of progressive distillation (arXiv:2202.00512).

    Well defined at every level; alpha^2 + sigma^2 divides where the schedule does not preserve variance.
    """

    def to_prediction(out: Array, x: Array, level: Level) -> Prediction:
        alpha, sigma = level.like(x)
        norm = alpha**2 + sigma**2
        return Prediction((alpha * x - sigma * out) / norm, (sigma * x + alpha * out) / norm)

    def target(x0: Array, eps: Array, level: Level) -> Array:
        alpha, sigma = level.like(x0)
        return alpha * eps - sigma * x0

    def log_gain(level: Level) -> Array:
        return jnp.log(level.alpha**2 + level.sigma**2) - safe_log(level.sigma)

    return _with(Parameterization(to_prediction, target, log_gain), sigma_data, learned_variance)


def score(sigma_data: float = 0.0, learned_variance: bool = False) -> Parameterization:
    """The score of q(x_t), -eps / sigma at its best; eq. 7 of score-SDE (arXiv:2011.13456).

    It grows without bound as sigma goes to 0: below 1e-6 sigma counts as that in the target.
    """

    def to_prediction(out: Array, x: Array, level: Level) -> Prediction:
        eps = -level.like(x).sigma * out
        return Prediction(x0_from_eps(eps, x, level), eps)

    def target(x0: Array, eps: Array, level: Level) -> Array:
        return -eps / jnp.maximum(level.like(x0).sigma, 1e-6)

    def log_gain(level: Level) -> Array:
        return safe_log(level.alpha) - 2 * safe_log(level.sigma)

    return _with(Parameterization(to_prediction, target, log_gain), sigma_data, learned_variance)


def edm(sigma_data: float = 0.5, learned_variance: bool = False) -> Parameterization:
    """F of EDM's preconditioning: x0 = c_skip x + c_out F(c_in x; c_noise); table 1 of arXiv:2206.00364.

    There alpha = 1: with n^2 = sigma^2 + sigma_data^2, c_skip = sigma_data^2 / n^2, c_out = sigma sigma_data / n and
    c_in = 1 / n. Here x / alpha and sigma / alpha stand for x and sigma, which extends it to any schedule:
    n^2 = sigma^2 + alpha^2 sigma_data^2. F has unit variance for data of standard deviation sigma_data, and both
    conversions are free of division by alpha or sigma. sigma_data = 1 and a variance-preserving schedule make it -v.
    c_noise is the schedule's conditioning.
    """
    if sigma_data <= 0:
        raise UserError(f"prediction 'edm' needs sigma_data > 0, the data's standard deviation; got {sigma_data}")

    def to_prediction(out: Array, x: Array, level: Level) -> Prediction:
        alpha, sigma = level.like(x)
        n = _std(level, sigma_data, x)
        c_skip, c_out = alpha * (sigma_data / n) ** 2, sigma * sigma_data / n
        return Prediction(c_skip * x + c_out * out, sigma / n**2 * x - alpha * sigma_data / n * out)

    def target(x0: Array, eps: Array, level: Level) -> Array:
        alpha, sigma = level.like(x0)
        return (sigma / sigma_data * x0 - alpha * sigma_data * eps) / _std(level, sigma_data, x0)

    def log_gain(level: Level) -> Array:
        alpha, sigma = level
        return 0.5 * jnp.log(sigma**2 + (alpha * sigma_data) ** 2) - safe_log(sigma) - math.log(sigma_data)

    return _with(Parameterization(to_prediction, target, log_gain), sigma_data, learned_variance)


def flow(sigma_data: float = 0.0, learned_variance: bool = False) -> Parameterization:
    """u = eps - x0, the velocity dx_t / dt of rectified flow; arXiv:2209.03003, 2210.02747.

    On another schedule the velocity is alpha'(t) x0 + sigma'(t) eps, and u stays eps - x0: the hub gives that velocity
    from u whatever the schedule. Well defined at every level.
    """

    def to_prediction(out: Array, x: Array, level: Level) -> Prediction:
        alpha, sigma = level.like(x)
        total = alpha + sigma
        return Prediction((x - sigma * out) / total, (x + alpha * out) / total)

    def log_gain(level: Level) -> Array:
        return jnp.log(level.alpha + level.sigma) - safe_log(level.sigma)

    return _with(
        Parameterization(to_prediction, lambda x0, eps, level: eps - x0, log_gain), sigma_data, learned_variance
    )


def _std(level: Level, sigma_data: float, x: Array) -> Array:
    """Standard deviation of x_t for data of standard deviation sigma_data."""
    alpha, sigma = level.like(x)
    return jnp.sqrt(sigma**2 + (alpha * sigma_data) ** 2)


def _with(parameterization: Parameterization, sigma_data: float, learned_variance: bool) -> Parameterization:
    """Adds what any prediction may have: input of unit variance (sigma_data; 0 leaves x_t as is), learned variance."""
    if sigma_data < 0:
        raise UserError(f"sigma_data is the data's standard deviation, or 0 to leave the input as is; got {sigma_data}")
    if sigma_data:
        parameterization = parameterization._replace(
            network_input=lambda x, level: x / jnp.maximum(_std(level, sigma_data, x), 1e-6)
        )
    if not learned_variance:
        return parameterization
    mean = parameterization.to_prediction

    def to_prediction(out: Array, x: Array, level: Level) -> Prediction:
        out, fraction = split_variance(out)
        return mean(out, x, level)._replace(fraction=fraction)

    return parameterization._replace(to_prediction=to_prediction, learned_variance=True)


def split_variance(out: Array) -> tuple[Array, Array]:
    """(output [..., C], fraction [..., C]) of an output [..., 2 C] with learned variance.

    The network's last C channels are the paper's v in [-1, 1], and fraction = (v + 1) / 2; arXiv:2102.09672, its code.
    """
    mean, variance = jnp.split(out, 2, axis=-1)
    return mean, 0.5 * (variance + 1.0)


PREDICTIONS: dict[str, Callable[..., Parameterization]] = {
    "eps": eps,
    "x0": x0,
    "v": v,
    "score": score,
    "edm": edm,
    "flow": flow,
}
