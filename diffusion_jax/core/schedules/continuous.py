"""Schedules given by a formula in continuous time."""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax import Array

from diffusion_jax.core.schedules.base import MAX_LOGSNR, Level, LogAlpha, Schedule, safe_log, safe_sqrt
from diffusion_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class LinearVP(LogAlpha):
    """The VP SDE dx = -beta(t) x / 2 dt + sqrt(beta(t)) dw with beta(t) = beta_min + t (beta_max - beta_min).

    log alpha^2 = -beta_min t - (beta_max - beta_min) t^2 / 2; eq. 33 of score-SDE (arXiv:2011.13456).
    """

    beta_min: float
    beta_max: float

    def log_alpha2(self, t: Array) -> Array:  # noqa: D102
        return -t * (self.beta_min + 0.5 * (self.beta_max - self.beta_min) * t)

    def time_of(self, log_alpha2: Array) -> Array:  # noqa: D102
        c = -log_alpha2
        return 2 * c / (self.beta_min + jnp.sqrt(self.beta_min**2 + 2 * (self.beta_max - self.beta_min) * c))


@dataclasses.dataclass(frozen=True)
class SubVP(Schedule):
    """alpha of a `LinearVP` and sigma = 1 - alpha^2, the square of its sigma."""

    base: LinearVP
    variance_preserving = False

    def level(self, t: Array) -> Level:  # noqa: D102
        log_alpha2 = self.base.log_alpha2(t)
        return Level(jnp.exp(0.5 * log_alpha2), -jnp.expm1(log_alpha2))

    def logsnr(self, t: Array) -> Array:  # noqa: D102
        return self.base.log_alpha2(t) - 2 * safe_log(self.sigma(t))

    def time(self, logsnr: Array) -> Array:
        """By the positive root of alpha^2 = SNR sigma^2 = SNR (1 - alpha^2)^2, sigma = 2 / (1 + sqrt(1 + 4 SNR))."""
        logsnr = jnp.clip(logsnr, -MAX_LOGSNR, MAX_LOGSNR)
        root = jnp.sqrt(1 + 4 * jnp.exp(logsnr))
        sigma = 2 / (1 + root)
        # alpha^2 = SNR sigma^2 where sigma is near 1; 1 - sigma where it is near 0.
        near_data = sigma < 0.5
        log_alpha2 = jnp.where(near_data, jnp.log1p(-jnp.where(near_data, sigma, 0.0)), logsnr + 2 * jnp.log(sigma))
        return jnp.clip(self.base.time_of(log_alpha2), 0.0, 1.0)


@dataclasses.dataclass(frozen=True)
class ContinuousCosine(Schedule):
    """alpha = cos(a), sigma = sin(a) for an angle a that rises linearly from 0 to where the log-SNR is logsnr_min."""

    logsnr_min: float

    @property
    def _last(self) -> tuple[float, float]:  # the angle at t = 1, and pi / 2 minus this angle
        return math.atan(math.exp(-0.5 * self.logsnr_min)), math.atan(math.exp(0.5 * self.logsnr_min))

    def level(self, t: Array) -> Level:  # noqa: D102
        last, rest = self._last
        return Level(jnp.sin(rest + last * (1.0 - t)), jnp.sin(last * t))

    def logsnr(self, t: Array) -> Array:  # noqa: D102
        alpha, sigma = self.level(t)
        return 2 * (safe_log(alpha) - safe_log(sigma))

    def time(self, logsnr: Array) -> Array:  # noqa: D102
        return jnp.clip(jnp.arctan(jnp.exp(-0.5 * logsnr)) / self._last[0], 0.0, 1.0)


@dataclasses.dataclass(frozen=True)
class Sigmoid(Schedule):
    """alpha^2 is linear in the logistic function of u, which goes from start / tau to end / tau.

    alpha and sigma are accurate at both ends because S(u) - S(w) = sinh((u - w) / 2) / (2 cosh(u / 2) cosh(w / 2)) for
    the logistic function S.
    """

    start: float
    end: float
    tau: float

    @property
    def _ends(self) -> tuple[float, float]:
        return self.start / self.tau, self.end / self.tau

    def level(self, t: Array) -> Level:  # noqa: D102
        first, last = self._ends
        half = 0.5 * (last - first)
        signal = jnp.sinh(half * (1.0 - t))
        noise = jnp.sinh(half * t) * (math.cosh(0.5 * last) / math.cosh(0.5 * first))
        return Level(safe_sqrt(signal / (signal + noise)), safe_sqrt(noise / (signal + noise)))

    def logsnr(self, t: Array) -> Array:  # noqa: D102
        alpha, sigma = self.level(t)
        return 2 * (safe_log(alpha) - safe_log(sigma))

    def time(self, logsnr: Array) -> Array:  # noqa: D102
        first, last = self._ends
        low, high = (1 / (1 + math.exp(-u)) for u in (first, last))
        p = low * jax.nn.sigmoid(logsnr) + high * jax.nn.sigmoid(-logsnr)  # the logistic function at u(t)
        return jnp.clip((jnp.log(p) - jnp.log1p(-p) - first) / (last - first), 0.0, 1.0)


@dataclasses.dataclass(frozen=True)
class VarianceExploding(Schedule):
    """alpha = 1 and sigma^2(t) = s(t)^2 - sigma_min^2, for s from sigma_min to sigma_max.

    s is geometric in t where rho is None; otherwise its rho-th root is linear in t. By the subtraction the SDE starts
    at the image itself. It makes no difference where s is well above sigma_min.
    """

    sigma_min: float
    sigma_max: float
    rho: float | None = None
    variance_preserving = False

    @property
    def _rate(self) -> float:
        ratio = math.log(self.sigma_max / self.sigma_min)
        return ratio if self.rho is None else math.expm1(ratio / self.rho)

    def _log_ratio(self, t: Array) -> Array:
        """log(s(t) / sigma_min)."""
        return self._rate * t if self.rho is None else self.rho * jnp.log1p(self._rate * t)

    @property
    def prior_std(self) -> float:  # type: ignore[override]
        """sigma_max."""
        return self.sigma_max

    @property
    def t_min(self) -> float:
        """Where sigma = sigma_min."""
        ratio = 0.5 * math.log(2)
        return (ratio if self.rho is None else math.expm1(ratio / self.rho)) / self._rate

    def level(self, t: Array) -> Level:  # noqa: D102
        sigma = self.sigma_min * safe_sqrt(jnp.expm1(2 * self._log_ratio(t)))
        return Level(jnp.ones_like(sigma), sigma)

    def logsnr(self, t: Array) -> Array:  # noqa: D102
        return -2 * safe_log(self.sigma(t))

    def time(self, logsnr: Array) -> Array:  # noqa: D102
        logsnr = jnp.clip(logsnr, -MAX_LOGSNR, MAX_LOGSNR)
        ratio = 0.5 * jnp.log1p(jnp.exp(-logsnr) / self.sigma_min**2)
        return jnp.clip((ratio if self.rho is None else jnp.expm1(ratio / self.rho)) / self._rate, 0.0, 1.0)

    def conditioning(self, t: Array) -> Array:
        """c_noise = ln(sigma) / 4, table 1 of EDM."""
        return -0.125 * self.logsnr(t)


@dataclasses.dataclass(frozen=True)
class RectifiedFlow(Schedule):
    """alpha = 1 - t, sigma = t: a straight line from image to noise."""

    variance_preserving = False

    def level(self, t: Array) -> Level:  # noqa: D102
        return Level(1.0 - t, 1.0 * t)

    def logsnr(self, t: Array) -> Array:  # noqa: D102
        return 2 * (safe_log(1.0 - t) - safe_log(t))

    def time(self, logsnr: Array) -> Array:  # noqa: D102
        return jax.nn.sigmoid(-0.5 * logsnr)


def vp(beta_min: float = 0.1, beta_max: float = 20.0) -> Schedule:
    """The VP SDE of score-SDE (arXiv:2011.13456, eq. 33 and appendix C), the limit of DDPM's linear betas."""
    if not 0 < beta_min <= beta_max:
        raise UserError(f"schedule 'vp' needs 0 < beta_min <= beta_max; got {beta_min} and {beta_max}")
    return LinearVP(beta_min, beta_max)


def sub_vp(beta_min: float = 0.1, beta_max: float = 20.0) -> Schedule:
    """The sub-VP SDE dx = -beta x / 2 dt + sqrt(beta (1 - exp(-2 int_0^t beta))) dw, with `vp`'s beta.

    alpha is that of `vp`, and sigma = 1 - alpha^2 is at most that of `vp`: section 3.4 and appendix B of score-SDE
    (arXiv:2011.13456), which uses it for better likelihoods. Raises UserError unless 0 < beta_min <= beta_max.
    """
    if not 0 < beta_min <= beta_max:
        raise UserError(f"schedule 'sub_vp' needs 0 < beta_min <= beta_max; got {beta_min} and {beta_max}")
    return SubVP(LinearVP(beta_min, beta_max))


def continuous_cosine(logsnr_min: float = -15.0) -> Schedule:
    """logsnr(t) = -2 log tan(a t), which ends at logsnr_min: the code of simple diffusion (arXiv:2301.11093).

    The paper also limits the log-SNR to 15 near the data; here the schedule starts at the image itself. Raises
    UserError unless logsnr_min is in (-27, 0).
    """
    if not -MAX_LOGSNR < logsnr_min < 0:
        raise UserError(f"schedule 'continuous_cosine' needs logsnr_min in (-27, 0); got {logsnr_min}")
    return ContinuousCosine(logsnr_min)


def sigmoid(start: float = -3.0, end: float = 3.0, tau: float = 1.0) -> Schedule:
    """alpha^2 = (S(end) - S(u)) / (S(end) - S(start)), u = start + t (end - start), S(u) = 1 / (1 + exp(-u / tau)).

    Jabri et al. (arXiv:2212.11972), written out in algorithm 1 of Chen (arXiv:2301.10972). Raises UserError unless
    start < end, tau > 0, and both ends are in [-40 tau, 40 tau].
    """
    if not (start < end and tau > 0 and max(abs(start), abs(end)) <= 40 * tau):
        raise UserError(
            f"schedule 'sigmoid' needs start < end, both in [-40 tau, 40 tau], and tau > 0; got {start}, {end}, {tau}"
        )
    return Sigmoid(start, end, tau)


def ve(sigma_min: float = 0.01, sigma_max: float = 50.0) -> Schedule:
    """The VE SDE, sigma geometric in t: eq. 31 of score-SDE (arXiv:2011.13456), started at the image itself."""
    _check_sigmas("ve", sigma_min, sigma_max)
    return VarianceExploding(sigma_min, sigma_max)


def edm(sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Schedule:
    """EDM's noise levels: sigma^(1 / rho) linear in t, eq. 5 of Karras et al. (arXiv:2206.00364)."""
    _check_sigmas("edm", sigma_min, sigma_max)
    if rho <= 0:
        raise UserError(f"schedule 'edm' needs rho > 0; got {rho}")
    return VarianceExploding(sigma_min, sigma_max, rho)


def rectified_flow() -> Schedule:
    """x_t = (1 - t) x_0 + t eps: rectified flow (arXiv:2209.03003), flow matching's optimal-transport path, SD3."""
    return RectifiedFlow()


def _check_sigmas(name: str, sigma_min: float, sigma_max: float) -> None:
    if not 1e-5 <= sigma_min < sigma_max <= 1e5:
        raise UserError(f"schedule {name!r} needs 1e-5 <= sigma_min < sigma_max <= 1e5; got {sigma_min}, {sigma_max}")
