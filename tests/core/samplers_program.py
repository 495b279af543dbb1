"""Any sampler over any schedule and grid in one compilation a sampler: what the conformance of samplers runs on."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from samplers_exact import Gaussian, Mixture, jit
from scipy.stats import norm

from diffusion_jax.core.predictions import Prediction
from diffusion_jax.core.samplers import SAMPLERS, AdaptiveSampler, integrate
from diffusion_jax.core.samplers.loop import standard_normal
from diffusion_jax.core.schedules import SCHEDULES, Level, Schedule, zero_snr

EXAMPLES, COORDINATES = 32, 128  # independent coordinates: a corrector's step size needs the norm of many
MOST_EVALUATIONS = 120

SCHEDULE_CASES = {name: make() for name, make in SCHEDULES.items()}
SCHEDULE_CASES |= {f"{n} | zero_snr": zero_snr()(s) for n, s in SCHEDULE_CASES.items() if s.variance_preserving}


class Problem(NamedTuple):
    """A mixture of two Gaussians in each coordinate, and what is wrong with the network that has learned it."""

    weights: tuple[float, float]
    means: tuple[float, float]
    std: float
    error: float = 0.0
    """eps is off by up to this, everywhere."""
    bound: float = 1e6
    """x0 is clipped to [-bound, bound], as a threshold does."""

    def denoise(self, x: jax.Array, level: Level) -> Prediction:
        """The optimal prediction, its eps made wrong and its x0 clipped; levels are scalars or [B]."""
        alpha, sigma = level.like(x)
        variance = alpha**2 * self.std**2 + sigma**2
        offsets = [x - alpha * mean for mean in self.means]
        logits = [jnp.log(w) - o**2 / (2 * variance) for w, o in zip(self.weights, offsets, strict=True)]
        means = [mean + alpha * self.std**2 / variance * o for mean, o in zip(self.means, offsets, strict=True)]
        second = jax.nn.sigmoid(logits[1] - logits[0])
        x0 = (1 - second) * means[0] + second * means[1]
        # An error of eps is one of -sigma / alpha times it in x0.
        wrong = self.error * jnp.sin(7.0 * x + 40.0 * alpha) * sigma
        x0 = jnp.clip(x0 - wrong / jnp.maximum(alpha, 1e-9), -self.bound, self.bound)
        return Prediction(x0, (x - alpha * x0) / sigma)

    @property
    def exact(self) -> Mixture:
        return Mixture(self.weights, self.means, self.std)


PROBLEMS = {
    "mixture": Problem(Mixture.weights, Mixture.means, Mixture.std),
    "gaussian": Problem((0.5, 0.5), (Gaussian.mean, Gaussian.mean), Gaussian.std),
    "network": Problem(Mixture.weights, Mixture.means, Mixture.std, error=0.05, bound=1.5),
}


@functools.cache
def made(name: str):
    """The sampler of that name with its defaults."""
    return SAMPLERS[name]()


@functools.cache
def _compiled(name: str):
    """(problem, x, coefficients, levels, t, steps, evaluations, keys) -> x, for plans padded to MOST_EVALUATIONS."""
    sampler = made(name)

    def run(problem, x, coefficients, levels, t, step, count, keys):
        def evaluation(i, carry):
            at = functools.partial(jax.tree.map, lambda a: a[i])
            noise = lambda draw=0: standard_normal(keys, step[i], draw, x)  # noqa: E731
            denoise = lambda x, t: problem.denoise(x, at(levels))  # noqa: E731
            return sampler.update(denoise, carry, jnp.full(x.shape[0], t[i]), at(coefficients), noise)

        return sampler.finish(jax.lax.fori_loop(0, count, evaluation, sampler.init(x)))

    return jit(run)


def padded_plan(name: str, schedule: Schedule, times: np.ndarray):
    """(coefficients, levels, t, steps, number of evaluations) of a sampler's plan, as numpy arrays."""
    plan = made(name).plan(schedule, jnp.asarray(times, jnp.float32))
    count = len(plan.step)

    def pad(a):
        a = np.asarray(a)
        return np.concatenate([a, np.zeros((MOST_EVALUATIONS - count, *a.shape[1:]), a.dtype)])

    return *jax.tree.map(pad, (plan.coefficients, schedule.level(plan.t), plan.t, plan.step)), count


def draw(name: str, problem: Problem, schedule: Schedule, times: np.ndarray) -> np.ndarray:
    """What `integrate` makes of x at times[0], which has the data's distribution there; in float64."""
    x, keys = start(problem, schedule, times[0]), jax.random.split(jax.random.key(1), EXAMPLES)
    if isinstance(made(name), AdaptiveSampler):
        denoise = lambda x, t: problem.denoise(x, schedule.level(t))  # noqa: E731
        run = jit(lambda x: integrate(denoise, made(name), schedule, times, x, keys))
        return np.asarray(run(x), np.float64)
    return np.asarray(_compiled(name)(problem, x, *padded_plan(name, schedule, times), keys), np.float64)


@functools.cache
def _normals() -> tuple[np.ndarray, ...]:
    """A uniform and two normal numbers a coordinate, each a permutation of equal steps of its distribution."""
    n = EXAMPLES * COORDINATES
    rng = np.random.default_rng(0)
    u = (np.arange(n) + 0.5) / n
    return rng.permutation(u), rng.permutation(norm.ppf(u)), rng.permutation(norm.ppf(u))


def start(problem: Problem, schedule: Schedule, t: float) -> np.ndarray:
    """x_t of the problem's data, exactly distributed at every t: [EXAMPLES, COORDINATES]."""
    u, within, noise = _normals()
    x0 = np.where(u < problem.weights[0], *problem.means) + problem.std * within
    alpha, sigma = (float(a) for a in schedule.level(jnp.float32(t)))
    return (alpha * x0 + sigma * noise).reshape(EXAMPLES, COORDINATES).astype(np.float32)


def errors(x: np.ndarray, problem: Problem) -> np.ndarray:
    """|mean - exact|, |deviation / exact - 1| and |mass above 0 - exact|."""
    data = problem.exact
    return np.abs([x.mean() - data.mean, x.std() / np.sqrt(data.variance) - 1, (x > 0).mean() - data.upper_mass()])
