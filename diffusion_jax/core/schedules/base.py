"""What a noise schedule is: x_t = alpha(t) x_0 + sigma(t) eps, for t in [0, 1] from data to noise."""

import abc
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

# Below this alpha^2 or sigma^2 the log-SNR is held constant, so that it and its gradient stay finite at both ends.
MIN_VARIANCE = 1e-12

MAX_LOGSNR = -math.log(MIN_VARIANCE)  # 27.6; a log-SNR lies in [-MAX_LOGSNR, MAX_LOGSNR]


class Level(NamedTuple):
    """Signal and noise level of x = alpha x_0 + sigma eps; scalars, a grid [N + 1] or one entry an example [B]."""

    alpha: Array
    sigma: Array

    def like(self, x: Array) -> "Level":
        """The same level with trailing unit axes, so that [B] broadcasts against x [B, ...]."""
        return Level(*(jnp.reshape(a, jnp.shape(a) + (1,) * (x.ndim - jnp.ndim(a))) for a in self))


class Schedule(abc.ABC):
    """A noise schedule. Every method is elementwise on arrays of any shape, differentiable, and finite on [0, 1].

    alpha falls and sigma rises with t; alpha(0) = 1 and sigma(0) = 0, so that x_0 is the image itself (a learned
    schedule alone starts a little above: its first noise level is part of its model).
    """

    steps: int | None = None
    """Number of steps T of a discrete chain, whose index i is t = (i + 1) / T; None for a continuous schedule."""

    prior_std: float = 1.0
    """Standard deviation of the Gaussian that stands for x_1."""

    variance_preserving: bool = True
    """Whether alpha^2 + sigma^2 = 1 at every t."""

    @property
    def t_min(self) -> float:
        """The first noise level worth a step of its own: 1 / T on a chain, sigma_min on a variance-exploding schedule.

        1e-3 on other schedules, where score-SDE (arXiv:2011.13456, appendix C) ends its sampling too.
        """
        return 1e-3 if self.steps is None else 1 / self.steps

    @abc.abstractmethod
    def level(self, t: Array) -> Level:
        """(alpha(t), sigma(t))."""

    @abc.abstractmethod
    def logsnr(self, t: Array) -> Array:
        """log(alpha^2 / sigma^2), strictly decreasing in t but for the clip that keeps it finite."""

    @abc.abstractmethod
    def time(self, logsnr: Array) -> Array:
        """The t at which the schedule has this log-SNR: the inverse of `logsnr`, clipped to [0, 1]."""

    def conditioning(self, t: Array) -> Array:
        """What a network is fed for t: the paper's index T t - 1 on a discrete schedule, 1000 t on a continuous one.

        1000 puts a continuous time on the scale that sinusoidal embeddings of DDPM were designed for.
        """
        return 1000.0 * t if self.steps is None else self.steps * t - 1.0

    def alpha(self, t: Array) -> Array:
        """Signal level alpha(t)."""
        return self.level(t).alpha

    def sigma(self, t: Array) -> Array:
        """Noise level sigma(t)."""
        return self.level(t).sigma


class LogAlpha(Schedule):
    """A variance-preserving schedule given by log alpha^2.

    Working in logarithms keeps sigma^2 = -expm1(log alpha^2) accurate where alpha is all but 1.
    """

    @abc.abstractmethod
    def log_alpha2(self, t: Array) -> Array:
        """log alpha(t)^2, falling from 0."""

    @abc.abstractmethod
    def time_of(self, log_alpha2: Array) -> Array:
        """The t in [0, 1] of a log alpha^2."""

    def level(self, t: Array) -> Level:  # noqa: D102
        log_alpha2 = self.log_alpha2(t)
        return Level(jnp.exp(0.5 * log_alpha2), safe_sqrt(-jnp.expm1(log_alpha2)))

    def logsnr(self, t: Array) -> Array:  # noqa: D102
        log_alpha2 = jnp.clip(self.log_alpha2(t), -MAX_LOGSNR, -MIN_VARIANCE)
        return log_alpha2 - jnp.log(-jnp.expm1(log_alpha2))

    def time(self, logsnr: Array) -> Array:  # noqa: D102
        return jnp.clip(self.time_of(jax.nn.log_sigmoid(logsnr)), 0.0, 1.0)


def safe_sqrt(x: Array) -> Array:
    """Square root whose gradient at 0 is 0 and not infinite."""
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1.0)), 0.0)


def safe_log(x: Array) -> Array:
    """log max(x, MIN_VARIANCE^(1/2)) of a level alpha or sigma: finite, and its gradient too, where the level is 0."""
    return jnp.log(jnp.maximum(x, MIN_VARIANCE**0.5))
