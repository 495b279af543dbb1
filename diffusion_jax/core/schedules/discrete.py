"""Schedules of a chain of T steps, given by the betas of the steps."""

import dataclasses
import itertools
import math

import jax.numpy as jnp
import numpy as np
from jax import Array

from diffusion_jax.core.schedules.base import LogAlpha, Schedule
from diffusion_jax.errors import UserError


@dataclasses.dataclass(frozen=True, eq=False)
class DiscreteVP(LogAlpha):
    """The variance-preserving chain q(x_i | x_{i-1}) = N(sqrt(1 - beta_i) x_{i-1}, beta_i I).

    Eq. 2 of DDPM (arXiv:2006.11239). log alpha^2 is a table at t = 0, 1/T, ..., 1, with alpha(0) = 1, and linear in
    between. So alpha_bar_i = prod(1 - beta_j) is exact at the chain's own times. Raises UserError for betas that are
    not in (0, 1).
    """

    betas: np.ndarray  # [T] float64, in (0, 1)

    def __post_init__(self):
        betas = np.asarray(self.betas, np.float64)
        if betas.ndim != 1 or not betas.size or not ((betas > 0) & (betas < 1)).all():
            raise UserError("a discrete schedule needs a list of betas, each in (0, 1)")
        object.__setattr__(self, "betas", betas)

    @property
    def steps(self) -> int:  # type: ignore[override]
        """The length T of the chain."""
        return len(self.betas)

    @property
    def _table(self) -> np.ndarray:  # [T + 1]
        return np.concatenate([[0.0], np.cumsum(np.log1p(-self.betas))])

    def log_alpha2(self, t: Array) -> Array:  # noqa: D102
        table = jnp.asarray(self._table, jnp.float32)
        position = jnp.asarray(t, jnp.float32) * self.steps
        i = jnp.clip(jnp.floor(position), 0, self.steps - 1).astype(jnp.int32)
        return table[i] + (position - i) * (table[i + 1] - table[i])

    def time_of(self, log_alpha2: Array) -> Array:  # noqa: D102
        table = self._table
        return jnp.interp(-log_alpha2, jnp.asarray(-table, jnp.float32), np.linspace(0, 1, len(table)))


def linear(steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> Schedule:
    """Betas rise linearly from beta_start to beta_end: section 4 of DDPM (arXiv:2006.11239)."""
    _check_steps(steps)
    return DiscreteVP(np.linspace(beta_start, beta_end, steps))


def scaled_linear(steps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012) -> Schedule:
    """sqrt(beta) rises linearly: the schedule of latent diffusion (arXiv:2112.10752) and of Stable Diffusion.

    The defaults are Stable Diffusion's. Most models of the paper have beta_start 0.0015 and beta_end 0.0195. Raises
    UserError unless 0 < beta_start <= beta_end < 1.
    """
    _check_steps(steps)
    _check_betas(beta_start, beta_end)
    return DiscreteVP(np.linspace(beta_start**0.5, beta_end**0.5, steps) ** 2)


def cosine(steps: int = 1000, s: float = 0.008, max_beta: float = 0.999) -> Schedule:
    """alpha_bar(t) = f(t) / f(0), f(t) = cos^2((t + s) / (1 + s) pi / 2), betas at most max_beta.

    Eq. 17 of improved DDPM (arXiv:2102.09672).
    """
    _check_steps(steps)
    f = [math.cos((i / steps + s) / (1 + s) * math.pi / 2) ** 2 for i in range(steps + 1)]
    return DiscreteVP(np.minimum([1 - b / a for a, b in itertools.pairwise(f)], max_beta))


def _check_steps(steps: int) -> None:
    if steps < 1:
        raise UserError(f"a discrete schedule has at least 1 step; got {steps}")


def _check_betas(beta_start: float, beta_end: float) -> None:
    if not 0 < beta_start <= beta_end < 1:
        raise UserError(f"a schedule needs 0 < beta_start <= beta_end < 1; got {beta_start} and {beta_end}")
