"""The variational bound L_vlb on -log p(x_0) of a chain of Gaussian steps, term by term.

It is in bits per dimension, of 8-bit images whose values 2 i / 255 - 1, i = 0 ... 255, lie in [-1, 1].
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import log_ndtr

from diffusion_jax.core.arguments import check_one_each
from diffusion_jax.core.denoisers import Denoiser
from diffusion_jax.core.predictions import Prediction
from diffusion_jax.core.process import diffuse, log_variances, posterior
from diffusion_jax.core.schedules import Level, Schedule
from diffusion_jax.errors import UserError

VARIANCES = ("small", "large", "learned")


class Bound(NamedTuple):
    """L_vlb = L_T + sum of L_{t-1} + L_0, eq. 5 of DDPM (arXiv:2006.11239), in bits per dimension."""

    prior: Array  # [B]: L_T = KL(q(x_1 | x_0) || N(0, prior_std^2))
    steps: Array  # [N - 1, B]: KL(q(x_s | x_t, x_0) || p(x_s | x_t)), from the noisy end on
    decoder: Array  # [B]: -log p(x_0 | x at the beginning of the last step)

    @property
    def total(self) -> Array:
        """The sum of all terms [B], an upper bound on -log2 p(x_0) per dimension."""
        return self.prior + jnp.sum(self.steps, axis=0) + self.decoder


def variational_bound(
    denoise: Denoiser,
    schedule: Schedule,
    x0: Array,
    keys: Array,
    *,
    variance: str = "small",
    times: np.ndarray | None = None,
) -> Bound:
    """An unbiased draw of L_vlb for each of x0 [B, ...], with one denoiser call a step.

    times [N + 1] is a time grid that falls from 1 to 0; by default it is the whole chain of a discrete schedule.
    variance "small" and "large" are DDPM's beta tilde and beta, and "learned" interpolates between them by
    `Prediction.fraction`. keys [B] are random keys: the noise of example i depends on keys[i] and the step alone.

    Raises UserError for another variance, for times that do not fall from 1 to 0 in at least 2 steps, for a continuous
    schedule without times, and for a learned schedule, which has `continuous_bound`.

    With variance "small" the bound of a perfect model of smooth data does not tend to the entropy as T grows. Near the
    data, x_t is all that is known of x0, and the variance of the reverse step is beta, not beta tilde. If r is the
    ratio of sigma^2 at the ends of a step, the gap is (r - 1 - log r) / 2 nats a step. For r = k / (k - 1), the limit
    of every schedule with equal betas near the data, the gaps sum to gamma / 2 with Euler's gamma = 0.577, which is
    gamma / (2 ln 2) = 0.416 bits per dimension. DDPM's linear betas have a gap of 0.65 at T = 1000 and of 0.50 at
    4000; with "large" it is 0.003 and 0.001. The gap of the decoder is added to it.
    """
    check_variance(variance)
    check_one_each(x0, keys=keys)
    grid = _grid(schedule) if times is None else np.asarray(times, np.float32)
    if (np.diff(grid) >= 0).any():
        raise UserError("the bound's times fall at every step, in float32 too; give fewer or others")
    if not schedule.t_min or len(grid) < 3 or grid[0] != 1 or grid[-1] != 0:
        raise UserError(
            "L_vlb needs at least 2 steps from t = 1 to t = 0 and a schedule that starts at the image itself; "
            "a learned schedule has the continuous-time bound"
        )
    levels = schedule.level(jnp.asarray(grid))
    small, large = log_variances(levels)
    t, s = (jax.tree.map(lambda a, part=part: a[part], levels) for part in (slice(None, -1), slice(1, None)))

    def step(_, inputs):
        n, time, t, s, small, large = inputs
        noise = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, n), x0.shape[1:], x0.dtype))(keys)
        x = diffuse(x0, noise, t)
        prediction = denoise(x, jnp.full(x0.shape[0], time))
        return None, term(x0, x, prediction, s, t, small, large, variance)

    inputs = (jnp.arange(len(grid) - 1), jnp.asarray(grid[:-1]), t, s, small, large)
    terms = jax.lax.scan(step, None, inputs)[1]
    return Bound(prior_term(x0, schedule), terms[:-1], terms[-1])


def _grid(schedule: Schedule) -> np.ndarray:
    if schedule.steps is None:
        raise UserError("L_vlb of a continuous schedule needs times; or use the continuous-time bound")
    return np.linspace(1.0, 0.0, schedule.steps + 1, dtype=np.float32)


def term(
    x0: Array,
    x: Array,
    prediction: Prediction,
    s: Level,
    t: Level,
    log_small: Array,
    log_large: Array,
    variance: str,
) -> Array:
    """One term of L_vlb for x = x_t [B, ...], in bits per dimension, [B].

    It is KL(q(x_s | x_t, x_0) || p(x_s | x_t)) where sigma(s) > 0, and -log p(x_0 | x_t) of the discretized decoder on
    the step that ends at the data. The levels s and t and the log-variances of `log_variances` are scalars or [B].
    Raises UserError for an unknown variance, and for "learned" with a prediction that has no fraction.
    """
    a, b, _ = (_like(c, x) for c in posterior(s, t))
    last = _like(s.sigma, x) <= 0
    small, large = _like(log_small, x), _like(log_large, x)
    log_variance = _log_variance(variance, prediction, small, large, last)
    mean = a * x + b * prediction.x0
    kl = normal_kl(a * x + b * x0, small, mean, log_variance)
    decoder = -discretized_log_likelihood(x0, mean, 0.5 * log_variance)
    return bits_per_dim(jnp.where(last, decoder, kl))


def _log_variance(variance: str, prediction: Prediction, small: Array, large: Array, last: Array) -> Array:
    check_variance(variance)
    if variance == "small":
        return small
    if variance == "large":  # DDPM's code gives the decoder beta tilde here too, for a better likelihood
        return jnp.where(last, small, large)
    if prediction.fraction is None:
        raise UserError("variance 'learned' needs a prediction that learns it, as eps(learned_variance=True) does")
    return learned_log_variance(prediction.fraction, small, large)


def prior_term(x0: Array, schedule: Schedule) -> Array:
    """L_T = KL(q(x_1 | x_0) || N(0, prior_std^2 I)) of x0 [B, ...] in bits per dimension, [B]."""
    alpha, sigma = schedule.level(jnp.float32(1.0))
    return bits_per_dim(normal_kl(alpha * x0, 2 * jnp.log(sigma), 0.0, 2 * math.log(schedule.prior_std)))


def learned_log_variance(fraction: Array, log_small: Array, log_large: Array) -> Array:
    """fraction log beta + (1 - fraction) log beta tilde, elementwise: eq. 15 of improved DDPM (arXiv:2102.09672)."""
    return fraction * log_large + (1.0 - fraction) * log_small


def normal_kl(mean1: Array, log_variance1: Array, mean2: Array | float, log_variance2: Array | float) -> Array:
    """KL(N(mean1, variance1) || N(mean2, variance2)) in nats, elementwise."""
    gap = log_variance1 - log_variance2
    return 0.5 * (jnp.expm1(gap) - gap + (mean1 - mean2) ** 2 * jnp.exp(-log_variance2))


def discretized_log_likelihood(x0: Array, mean: Array, log_std: Array) -> Array:
    """The logarithm in nats of the mass of N(mean, std^2) on the bin of x0, elementwise: eq. 13 of DDPM.

    The bins are 2 / 255 wide, around 2 i / 255 - 1. The first and the last bin have no outer end.
    """
    rate = jnp.exp(-log_std)
    low = jnp.where(x0 < -0.999, -jnp.inf, (x0 - 1 / 255 - mean) * rate)
    high = jnp.where(x0 > 0.999, jnp.inf, (x0 + 1 / 255 - mean) * rate)
    return log_mass(low, high)


def log_mass(low: Array, high: Array) -> Array:
    """log(Phi(high) - Phi(low)) for low < high, elementwise. Accurate in both tails; either end may be infinite."""
    # Phi rounds to 1 in the upper tail, so an interval there is reflected into the lower tail.
    upper = low > 0
    low, high = jnp.where(upper, -high, low), jnp.where(upper, -low, high)
    # log_ndtr has a NaN gradient at infinity, so it gets finite numbers there.
    open_low, open_high = jnp.isneginf(low), jnp.isposinf(high)
    log_high = jnp.where(open_high, 0.0, log_ndtr(jnp.where(open_high, 0.0, high)))
    gap = log_high - log_ndtr(jnp.where(open_low, -1.0, low))
    return jnp.where(open_low, log_high, log_high + _log1mexp(jnp.where(open_low, 1.0, gap)))


def _log1mexp(x: Array) -> Array:
    """log(1 - exp(-x)) for x > 0, finite where rounding makes x 0."""
    return jnp.log(-jnp.expm1(-jnp.maximum(x, 1e-30)))


def bits_per_dim(nats: Array) -> Array:
    """The mean over all axes but the first, in bits: [B, ...] -> [B], in float32."""
    return jnp.mean(nats.astype(jnp.float32), axis=tuple(range(1, nats.ndim))) / math.log(2)


def check_variance(variance: str) -> None:
    """Raises UserError unless variance is one of `VARIANCES`."""
    if variance not in VARIANCES:
        raise UserError(f"variance is one of {', '.join(map(repr, VARIANCES))}; got {variance!r}")


def _like(a: Array, x: Array) -> Array:
    return jnp.reshape(a, jnp.shape(a) + (1,) * (x.ndim - jnp.ndim(a)))
