"""What is known in closed form: continuous schedules in any precision, optimal denoisers, exact probability flows."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.core.predictions import Prediction
from diffusion_jax.core.samplers.loop import Sampler, integrate, one_evaluation_a_step
from diffusion_jax.core.schedules import Level, Schedule

# Compiles three times as fast, which is what these tests spend their time on.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@dataclasses.dataclass(frozen=True)
class VP(Schedule):
    """log alpha^2 = -(b0 t + (b1 - b0) t^2 / 2), eq. 33 of arXiv:2011.13456; alpha^2 + sigma^2 = 1."""

    b0: float = 0.1
    b1: float = 20.0

    def _integral(self, t):
        return self.b0 * t + 0.5 * (self.b1 - self.b0) * t**2

    def level(self, t):
        return Level(jnp.exp(-0.5 * self._integral(t)), jnp.sqrt(-jnp.expm1(-self._integral(t))))

    def logsnr(self, t):
        return -jnp.log(jnp.expm1(jnp.maximum(self._integral(t), 1e-12)))

    def time(self, logsnr):
        integral = jax.nn.softplus(-logsnr)
        root = jnp.sqrt(self.b0**2 + 2 * (self.b1 - self.b0) * integral)
        return jnp.clip(2 * integral / (self.b0 + root), 0.0, 1.0)


@dataclasses.dataclass(frozen=True)
class VE(Schedule):
    """alpha = 1, sigma^(1/3) linear in t from 0 to 20^(1/3)."""

    top: float = 20.0

    @property
    def prior_std(self):
        return self.top

    def level(self, t):
        t = jnp.asarray(t)
        return Level(jnp.ones_like(t), self.top * t**3)

    def logsnr(self, t):
        return -2 * jnp.log(jnp.maximum(self.top * t**3, 1e-6))

    def time(self, logsnr):
        return jnp.clip(jnp.exp(-logsnr / 6) / self.top ** (1 / 3), 0.0, 1.0)


@dataclasses.dataclass(frozen=True)
class Flow(Schedule):
    """alpha = 1 - t, sigma = t: rectified flow, whose signal is 0 at t = 1."""

    def level(self, t):
        return Level(1 - jnp.asarray(t), jnp.asarray(t))

    def logsnr(self, t):
        return 2 * jnp.log(jnp.maximum(1 - t, 1e-6) / jnp.maximum(t, 1e-6))

    def time(self, logsnr):
        return jax.nn.sigmoid(-0.5 * logsnr)


CONTINUOUS = {"vp": VP(), "ve": VE(), "flow": Flow()}


@dataclasses.dataclass(frozen=True)
class Gaussian:
    """Data N(mean, std^2 I): the optimal denoiser and everything that follows."""

    mean: float = 0.3
    std: float = 0.5

    @property
    def variance(self) -> float:
        return self.std**2

    def denoiser(self, schedule: Schedule):
        def denoise(x, t):
            alpha, sigma = schedule.level(t).like(x)
            score = -(x - alpha * self.mean) / (alpha**2 * self.std**2 + sigma**2)
            return Prediction(self.mean - alpha * self.std**2 * score, -sigma * score)

        return denoise

    def flow(self, schedule: Schedule, t, s, x):
        """The probability-flow map from time t to s: the mean moves, the deviation scales with the marginal's std."""
        (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule.level(jnp.asarray(t)), schedule.level(jnp.asarray(s))
        scale = jnp.sqrt((alpha_s**2 * self.std**2 + sigma_s**2) / (alpha_t**2 * self.std**2 + sigma_t**2))
        return alpha_s * self.mean + scale * (x - alpha_t * self.mean)


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Data sum_k w_k N(mean_k, std^2) in each coordinate."""

    weights: tuple[float, ...] = (0.3, 0.7)
    means: tuple[float, ...] = (-0.8, 0.6)
    std: float = 0.25

    def denoiser(self, schedule: Schedule):
        w, m = jnp.asarray(self.weights), jnp.asarray(self.means)

        def denoise(x, t):
            alpha, sigma = schedule.level(t).like(x)
            alpha, sigma, x = alpha[..., None], sigma[..., None], x[..., None]
            variance = alpha**2 * self.std**2 + sigma**2
            offset = x - alpha * m
            responsibility = jax.nn.softmax(jnp.log(w) - offset**2 / (2 * variance), axis=-1)
            x0 = m + alpha * self.std**2 / variance * offset
            return Prediction(jnp.sum(responsibility * x0, -1), jnp.sum(responsibility * sigma / variance * offset, -1))

        return denoise

    @property
    def mean(self) -> float:
        return float(np.dot(self.weights, self.means))

    @property
    def variance(self) -> float:
        return float(np.dot(self.weights, np.square(self.means)) + self.std**2 - self.mean**2)

    def upper_mass(self) -> float:
        """The probability of x > 0."""
        normal = [0.5 * math.erfc(-m / self.std / math.sqrt(2)) for m in self.means]
        return float(np.dot(self.weights, normal))


@dataclasses.dataclass(frozen=True)
class Rotated:
    """Data in the plane, the last axis of x: independent coordinates `parts`, turned by an angle."""

    parts: tuple[Gaussian | Mixture, Gaussian | Mixture] = (Mixture(), Gaussian(mean=0.3, std=0.4))
    angle: float = 0.5

    @property
    def rotation(self) -> np.ndarray:
        cos, sin = math.cos(self.angle), math.sin(self.angle)
        return np.array([[cos, sin], [-sin, cos]], np.float32)  # x = u @ rotation

    def denoiser(self, schedule: Schedule):
        def denoise(x, t):
            u = x @ self.rotation.T
            first, second = (p.denoiser(schedule)(u[..., i], t) for i, p in enumerate(self.parts))
            return Prediction(
                *(jnp.stack([a, b], -1) @ self.rotation for a, b in zip(first[:2], second[:2], strict=True))
            )

        return denoise

    @property
    def mean(self) -> np.ndarray:
        return np.array([p.mean for p in self.parts]) @ self.rotation

    @property
    def covariance(self) -> np.ndarray:
        return self.rotation.T @ np.diag([p.variance for p in self.parts]) @ self.rotation


def solve(denoise, sampler, schedule, times, x, keys_=None, **options) -> np.ndarray:
    """`integrate`, compiled."""
    keys_ = keys(len(x)) if keys_ is None else keys_
    run = jit(lambda x, keys: integrate(denoise, sampler, schedule, times, x, keys, **options))
    return np.asarray(run(x, keys_))


def keys(n: int, seed: int = 0):
    return jax.random.split(jax.random.key(seed), n)


def noises(keys_, steps: int, shape, draw: int = 0) -> np.ndarray:
    """The noise that `integrate` hands a sampler at each step: [N, B, *shape]."""
    spy = Sampler(lambda schedule, times: one_evaluation_a_step(times, ()), lambda denoise, x, t, c, noise: noise(draw))
    times = np.linspace(1, 0, steps + 1)
    return solve(None, spy, VP(), times, jnp.zeros((len(keys_), *shape)), keys_, trajectory=True)[1:]
