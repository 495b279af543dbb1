"""What a network predicts, and its conversion to (x0, eps) and back, through which predictions are exchanged."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from diffusion_jax.core.schedules import Level
from diffusion_jax.core.schedules.base import safe_log
from diffusion_jax.errors import UserError


class Prediction(NamedTuple):
    """The denoised x0 and the noise eps of x_t = alpha x0 + sigma eps, each [B, ...]."""

    x0: Array
    eps: Array
    fraction: Array | None = None
    """For a learned variance: the place of the log variance between the posterior's, 0, and beta's, 1."""


class Parameterization(NamedTuple):
    """A kind of network output and its conversions. Levels are scalars or [B]."""

    to_prediction: Callable[[Array, Array, Level], Prediction]
    """(output, x_t, level) -> the prediction, for a sampler."""

    target: Callable[[Array, Array, Level], Array]
    """(x0, eps, level) -> the exact output, with which a loss compares."""

    log_gain: Callable[[Level], Array]
    """level -> log |d output / d x0| at a fixed x_t, by which an error of x0 appears in the output. Levels below 1e-6
    count as 1e-6."""

    network_input: Callable[[Array, Level], Array] = lambda x, level: x
    """(x_t, level) -> the network's input."""

    learned_variance: bool = False
    """Whether the output has 2 C channels, of which the last C give `Prediction.fraction`."""


def x0_from_eps(eps: Array, x: Array, level: Level) -> Array:
    """x0 = (x - sigma eps) / alpha, and 0, the middle of the data's range, where alpha = 0. eps and x are [B, ...]."""
    alpha, sigma = level.like(x)
    return _divide(x - sigma * eps, alpha)


def eps_from_x0(x0: Array, x: Array, level: Level) -> Array:
    """eps = (x - alpha x0) / sigma, and 0, its mean, where sigma = 0. x0 and x are [B, ...]."""
    alpha, sigma = level.like(x)
    return _divide(x - alpha * x0, sigma)


def _divide(a: Array, b: Array) -> Array:
    """a / b, and 0 with a finite gradient where b = 0."""
    return jnp.where(b > 0, a / jnp.where(b > 0, b, 1.0), 0.0)


def eps(sigma_data: float = 0.0, learned_variance: bool = False) -> Parameterization:
    """The noise eps: eq. 14 of DDPM (arXiv:2006.11239). At zero SNR it does not determine x0, which is then 0."""
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
    """The image x0. At sigma = 0 it does not determine eps, which is then 0."""
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
    """v = alpha eps - sigma x0: section 4 and appendix D of progressive distillation (arXiv:2202.00512).

    It determines x0 and eps at every level; they are divided by alpha^2 + sigma^2, which need not be 1.
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
    """The score of q(x_t), whose target is -eps / sigma: eq. 7 of score-SDE (arXiv:2011.13456).

    It grows without bound as sigma goes to 0, so a sigma below 1e-6 counts as 1e-6 in the target.
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

    In EDM alpha = 1 and, with n^2 = sigma^2 + sigma_data^2, c_skip = sigma_data^2 / n^2, c_out = sigma sigma_data / n
    and c_in = 1 / n. Here x / alpha and sigma / alpha take the places of x and sigma, which extends it to any schedule
    with n^2 = sigma^2 + alpha^2 sigma_data^2. F has unit variance for data of standard deviation sigma_data, and
    neither conversion divides by alpha or sigma. With sigma_data = 1 on a variance-preserving schedule F is -v. c_noise
    is the schedule's conditioning. Raises UserError unless sigma_data > 0.
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
    """u = eps - x0, the velocity dx_t / dt of rectified flow: arXiv:2209.03003, 2210.02747.

    On another schedule the velocity is alpha'(t) x0 + sigma'(t) eps, and u is still eps - x0. It determines x0 and eps
    at every level.
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
    """The parameterization with an input of unit variance for data of deviation sigma_data, and a learned variance.

    sigma_data = 0 does not scale the input. Raises UserError for sigma_data < 0.
    """
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
    """The output [..., C] and the fraction [..., C] in an output [..., 2 C] with learned variance.

    The last C channels are v in [-1, 1], and the fraction is (v + 1) / 2: the code of arXiv:2102.09672.
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
