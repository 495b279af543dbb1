"""Modifiers: functions from a schedule to a schedule, as in `shift(0.25)(cosine())`."""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from diffusion_jax.core.schedules.base import MIN_VARIANCE, Level, Schedule, safe_log, safe_sqrt
from diffusion_jax.errors import UserError

Modifier = Callable[[Schedule], Schedule]
"""A schedule -> the modified schedule."""


class _Modified(Schedule):
    """A schedule with the steps, prior, t_min and conditioning of its base."""

    base: Schedule

    @property
    def steps(self) -> int | None:  # type: ignore[override]
        """That of the base."""
        return self.base.steps

    @property
    def prior_std(self) -> float:  # type: ignore[override]
        """That of the base."""
        return self.base.prior_std

    @property
    def variance_preserving(self) -> bool:  # type: ignore[override]
        """That of the base."""
        return self.base.variance_preserving

    @property
    def t_min(self) -> float:
        """That of the base."""
        return self.base.t_min

    def conditioning(self, t: Array) -> Array:
        """That of the base."""
        return self.base.conditioning(t)


class _Scaled(_Modified):
    """A schedule whose log-SNR is that of its base plus 2 log(scale)."""

    scale: float

    def logsnr(self, t: Array) -> Array:
        return self.base.logsnr(t) + 2 * math.log(self.scale)

    def time(self, logsnr: Array) -> Array:
        return self.base.time(logsnr - 2 * math.log(self.scale))


@dataclasses.dataclass(frozen=True)
class Shifted(_Scaled):
    """The variance-preserving schedule with the log-SNR of the base plus 2 log(scale)."""

    base: Schedule
    scale: float

    def level(self, t: Array) -> Level:  # noqa: D102
        alpha, sigma = self.base.level(t)
        norm = jnp.sqrt((self.scale * alpha) ** 2 + sigma**2)
        return Level(self.scale * alpha / norm, sigma / norm)


@dataclasses.dataclass(frozen=True)
class Rescaled(_Scaled):
    """The base with sigma / scale in place of sigma: x_t / scale of the base with images multiplied by scale."""

    base: Schedule
    scale: float
    variance_preserving = False

    @property
    def prior_std(self) -> float:  # type: ignore[override]
        """That of the base, divided by scale."""
        return self.base.prior_std / self.scale

    def level(self, t: Array) -> Level:  # noqa: D102
        alpha, sigma = self.base.level(t)
        return Level(alpha, sigma / self.scale)


@dataclasses.dataclass(frozen=True)
class Retimed(_Modified):
    """The base at t' = scale t / (1 + (scale - 1) t). The network gets the conditioning of t'."""

    base: Schedule
    scale: float

    def _to_base(self, t: Array) -> Array:
        return self.scale * t / (1.0 + (self.scale - 1.0) * t)

    def _from_base(self, t: Array) -> Array:
        return t / (self.scale - (self.scale - 1.0) * t)

    @property
    def t_min(self) -> float:
        """That of the base, in this schedule's time."""
        return self.base.t_min / (self.scale - (self.scale - 1.0) * self.base.t_min)

    def level(self, t: Array) -> Level:  # noqa: D102
        return self.base.level(self._to_base(t))

    def logsnr(self, t: Array) -> Array:  # noqa: D102
        return self.base.logsnr(self._to_base(t))

    def time(self, logsnr: Array) -> Array:  # noqa: D102
        return self._from_base(self.base.time(logsnr))

    def conditioning(self, t: Array) -> Array:  # noqa: D102
        return self.base.conditioning(self._to_base(t))


@dataclasses.dataclass(frozen=True)
class ZeroTerminal(_Modified):
    """The base with alpha scaled linearly so that alpha(1) = 0 and alpha(first) stays; variance-preserving.

    first is 1 / T on a chain and 0 otherwise. Where alpha is close to 1, 1 - alpha is computed in its place.
    """

    base: Schedule

    def _stretch(self) -> tuple[Array, Array, Array]:
        """(last, c, d): alpha' = c (alpha - last), 1 - alpha' = c (1 - alpha) - d."""
        first, last = (
            self.base.level(jnp.float32(1 / self.steps if self.steps else 0.0)),
            self.base.alpha(jnp.float32(1)),
        )
        c = first.alpha / (first.alpha - last)
        return last, c, last / (first.alpha - last) * first.sigma**2 / (1.0 + first.alpha)

    def level(self, t: Array) -> Level:  # noqa: D102
        last, c, d = self._stretch()
        alpha, sigma = self.base.level(t)
        missing = jnp.maximum(c * sigma**2 / (1.0 + alpha) - d, 0.0)  # 1 - alpha'
        near = missing < 0.5
        alpha = jnp.where(near, 1.0 - missing, c * jnp.maximum(alpha - last, 0.0))
        return Level(alpha, safe_sqrt(jnp.where(near, missing * (2.0 - missing), 1.0 - alpha**2)))

    def logsnr(self, t: Array) -> Array:  # noqa: D102
        alpha, sigma = self.level(t)
        return 2 * (safe_log(alpha) - safe_log(sigma))

    def time(self, logsnr: Array) -> Array:  # noqa: D102
        last, c, d = self._stretch()
        alpha = jnp.exp(0.5 * jax.nn.log_sigmoid(logsnr))
        missing = (jax.nn.sigmoid(-logsnr) / (1.0 + alpha) + d) / c  # 1 - alpha of the base
        alpha = jnp.where(missing < 0.5, 1.0 - missing, alpha / c + last)
        log_sigma2 = jnp.log(jnp.maximum(missing * (2.0 - missing), MIN_VARIANCE))
        return self.base.time(2 * safe_log(alpha) - log_sigma2)


def shift(scale: float = 0.25) -> Modifier:
    """logsnr(t) + 2 log(scale): as much noise at d x d pixels as the base has at 64 x 64, for scale = 64 / d.

    Section 3.1 of simple diffusion (arXiv:2301.11093). A scale below 1 gives more noise. Raises UserError for a
    schedule that does not preserve variance, and unless scale is in [0.001, 1000].
    """
    _check("shift", scale)

    def modify(schedule: Schedule) -> Schedule:
        if not schedule.variance_preserving:
            raise UserError(
                "modifier 'shift' needs a variance-preserving schedule; use 'time_shift' on rectified_flow and "
                "'input_scale' on the others"
            )
        return Shifted(schedule, scale)

    return modify


def time_shift(scale: float = 3.0) -> Modifier:
    """t' = scale t / (1 + (scale - 1) t): eq. 23 of Stable Diffusion 3 (arXiv:2403.03206), where scale is sqrt(m / n).

    A scale above 1 gives more noise. On rectified flow it is logsnr(t) - 2 log(scale). Raises UserError unless scale is
    in [0.001, 1000].
    """
    _check("time_shift", scale)
    return lambda schedule: Retimed(schedule, scale)


def zero_snr() -> Modifier:
    """alpha' = (alpha - alpha(1)) alpha(1 / T) / (alpha(1 / T) - alpha(1)); algorithm 1 of arXiv:2305.08891.

    The last step then has no signal, so a network has to predict v, x0, edm or flow: there eps does not determine x0.
    Raises UserError for a schedule that does not preserve variance, and for a chain of 1 step.
    """

    def modify(schedule: Schedule) -> Schedule:
        if not schedule.variance_preserving:
            raise UserError("modifier 'zero_snr' needs a variance-preserving schedule; this one is not")
        if schedule.steps == 1:
            raise UserError("modifier 'zero_snr' keeps a chain's first step and moves its last; this chain has only 1")
        return ZeroTerminal(schedule)

    return modify


def input_scale(scale: float = 0.5, renormalize: bool = True) -> Modifier:
    """x_t = alpha scale x_0 + sigma eps: Chen's input scaling (arXiv:2301.10972), for enough noise in large images.

    With renormalize, x_t is divided by its standard deviation for data of unit variance, which is `shift`, so that the
    schedule preserves variance. Without it, x_t is divided by scale, so that x_0 is the image and sigma / scale the
    noise level. Raises UserError unless scale is in [0.001, 1000].
    """
    if renormalize:
        return shift(scale)
    _check("input_scale", scale)
    return lambda schedule: Rescaled(schedule, scale)


def _check(name: str, scale: float) -> None:
    if not 1e-3 <= scale <= 1e3:
        raise UserError(f"modifier {name!r} takes scale in [0.001, 1000]; got {scale}")


MODIFIERS: dict[str, Callable[..., Modifier]] = {
    "shift": shift,
    "time_shift": time_shift,
    "zero_snr": zero_snr,
    "input_scale": input_scale,
}
