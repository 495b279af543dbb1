"""The interface of a noise schedule: x_t = alpha(t) x_0 + sigma(t) eps, for t from 0 at the data to 1 at the noise."""

import abc
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

# Below this alpha^2 or sigma^2 the log-SNR is constant, so that it and its gradient are finite at both ends.
MIN_VARIANCE = 1e-12

MAX_LOGSNR = -math.log(MIN_VARIANCE)  # 27.6; a log-SNR lies in [-MAX_LOGSNR, MAX_LOGSNR]


class Level(NamedTuple):
    """The signal and noise level of x = alpha x_0 + sigma eps: scalars, a grid [N + 1], or one of each example [B]."""

    alpha: Array
    sigma: Array

    def like(self, x: Array) -> "Level":
        """The level with trailing axes of length 1, so that [B] broadcasts against x [B, ...]."""
        return Level(*(jnp.reshape(a, jnp.shape(a) + (1,) * (x.ndim - jnp.ndim(a))) for a in self))


class Schedule(abc.ABC):
    """A noise schedule. Every method is elementwise on arrays of any shape, differentiable, and finite on [0, 1].

    alpha falls and sigma rises with t. alpha(0) = 1 and sigma(0) = 0, so that x_0 is the image itself; only a learned
    schedule has some noise at t = 0, which belongs to its model.
    """

    steps: int | None = None
    """The number of steps T of a discrete chain, with index i at t = (i + 1) / T; None for a continuous schedule."""

    prior_std: float = 1.0
    """The standard deviation of the Gaussian from which sampling starts at t = 1."""

    variance_preserving: bool = True
    """Whether alpha^2 + sigma^2 = 1 at every t."""

    @property
    def t_min(self) -> float:
        """The first time with enough noise for a step of a sampler to end there.

        It is 1 / T on a chain, the time of sigma_min on a variance-exploding schedule, and otherwise 1e-3, where
        score-SDE ends its sampling too (arXiv:2011.13456, appendix C).
        """
        return 1e-3 if self.steps is None else 1 / self.steps

    @abc.abstractmethod
    def level(self, t: Array) -> Level:
        """(alpha(t), sigma(t))."""

    @abc.abstractmethod
    def logsnr(self, t: Array) -> Array:
        """log(alpha^2 / sigma^2), which falls strictly with t except where it is clipped to be finite."""

    @abc.abstractmethod
    def time(self, logsnr: Array) -> Array:
        """The t at which the schedule has this log-SNR, clipped to [0, 1]: the inverse of `logsnr`."""

    def conditioning(self, t: Array) -> Array:
        """The number that a network gets for t: the index T t - 1 on a discrete schedule, 1000 t on a continuous one.

        The factor 1000 gives a continuous time the scale for which DDPM's sinusoidal embeddings are made.
        """
        return 1000.0 * t if self.steps is None else self.steps * t - 1.0

    def alpha(self, t: Array) -> Array:
        """The signal level alpha(t)."""
        return self.level(t).alpha

    def sigma(self, t: Array) -> Array:
        """The noise level sigma(t)."""
        return self.level(t).sigma


class LogAlpha(Schedule):
    """A variance-preserving schedule given by log alpha^2.

    sigma^2 = -expm1(log alpha^2) is then accurate where alpha is close to 1.
    """

    @abc.abstractmethod
    def log_alpha2(self, t: Array) -> Array:
        """log alpha(t)^2, which falls from 0."""

    @abc.abstractmethod
    def time_of(self, log_alpha2: Array) -> Array:
        """The t in [0, 1] at which log alpha^2 has this value."""

    def level(self, t: Array) -> Level:  # noqa: D102
        log_alpha2 = self.log_alpha2(t)
        return Level(jnp.exp(0.5 * log_alpha2), safe_sqrt(-jnp.expm1(log_alpha2)))

    def logsnr(self, t: Array) -> Array:  # noqa: D102
        log_alpha2 = jnp.clip(self.log_alpha2(t), -MAX_LOGSNR, -MIN_VARIANCE)
        return log_alpha2 - jnp.log(-jnp.expm1(log_alpha2))

    def time(self, logsnr: Array) -> Array:  # noqa: D102
        return jnp.clip(self.time_of(jax.nn.log_sigmoid(logsnr)), 0.0, 1.0)


def safe_sqrt(x: Array) -> Array:
    """The square root, with gradient 0 at x = 0 in place of an infinite one."""
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1.0)), 0.0)


def safe_log(x: Array) -> Array:
    """log max(x, MIN_VARIANCE^(1/2)) of a level alpha or sigma, finite with its gradient where the level is 0."""
    return jnp.log(jnp.maximum(x, MIN_VARIANCE**0.5))
