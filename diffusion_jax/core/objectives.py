"""Objectives: what training minimizes.

An objective is four functions of arrays: what it keeps in the training state, what it draws at random, its loss, and
how it updates what it keeps. It does not know the network's family, the optimizer or the devices. A new objective is
one function that returns an `Objective`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffusion_jax.core import denoisers, losses
from diffusion_jax.core.denoisers import Condition, ConditionalDenoiser
from diffusion_jax.core.distillation import one_step_for_two
from diffusion_jax.core.losses import Distance, Network
from diffusion_jax.core.predictions import Parameterization
from diffusion_jax.core.schedules import Schedule
from diffusion_jax.core.times import AdaptiveTimes, TimeSampler
from diffusion_jax.core.vdm_bound import continuous_bound
from diffusion_jax.core.weightings import Weighting
from diffusion_jax.errors import UserError

Tree = Any
"""A pytree of arrays."""


class Examples(NamedTuple):
    """A batch as the network gets it. Every array leads with B."""

    x0: Array  # [B, *S, C]: images, or latents
    cond: Condition  # after dropout and augmentation


class Drawn(NamedTuple):
    """The random choices of one step for the whole batch."""

    values: Tree  # of the objective's own type, which its loss gets; every array leads with B
    weight: Array  # [B]: the factor of each loss, which makes the mean unbiased where times are not drawn uniformly
    t: Array | None = None  # [B] in (0, 1]: the times by which losses are reported; None for no times


def _no_network(x: Array, t: Array, cond: Condition) -> Array:
    raise TypeError("this objective has no single network to apply; its loss applies those of `Trained.params`")


class Trained(NamedTuple):
    """The networks and weights that the loss of an objective gets."""

    params: Tree  # all trained parameters
    pretrained: Mapping[str, Tree]  # weights that are not trained, as of a teacher or a perceptual network
    apply: Network = _no_network  # (network input [B, ...], conditioning [B], cond) -> output, with dropout
    schedule: Schedule = None  # type: ignore[assignment]  # with the learned parameters; None without noise
    objective_params: Tree = ()  # the objective's own parameters, `Memory.params`
    teacher: ConditionalDenoiser | None = None  # of an objective that `learns_from_teacher`, without guidance


class Memory(NamedTuple):
    """What an objective keeps in the training state."""

    params: Tree = ()  # parameters of its own, which the optimizer trains with the network's
    history: Tree = ()  # what `update` changes after each step


def _remembers_nothing(key: Array) -> Memory:
    return Memory()


def _learns_nothing(history: Tree, drawn: Drawn, losses: Array) -> Tree:
    return history


@dataclasses.dataclass(frozen=True)
class Objective:
    """One training objective."""

    draw: Callable[[Array, Examples, Tree, Array], Drawn]
    """(key, examples, history, step as an int32 scalar) -> all random choices of the step except dropout."""
    loss: Callable[[Trained, Tree], Array]
    """(networks and weights, the values of any part of the batch) -> one number an example [b]."""
    init: Callable[[Array], Memory] = _remembers_nothing
    """key -> what it keeps, before the first step."""
    update: Callable[[Tree, Drawn, Array], Tree] = _learns_nothing
    """(history, drawn, unweighted losses [B]) -> history."""
    learns_schedule: bool = False
    """Whether its loss trains the parameters of a learned schedule."""
    learns_from_teacher: bool = False
    """Whether its loss reads `Trained.teacher`, a trained model that stays as it is."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """The model for which an objective is made, and the options of its loss."""

    schedule: Schedule  # a learned schedule with its first parameters
    parameterization: Parameterization
    times: TimeSampler | AdaptiveTimes
    weighting: Weighting
    distance: Distance
    vlb_weight: float | Array = 0.001  # of L_vlb in L_hybrid, where the network learns its variance

    def draw_times(self, key: Array, n: int, history: Tree) -> tuple[Array, Array]:
        """n times in (0, 1], and the weights of their losses, each [n]."""
        if isinstance(self.times, AdaptiveTimes):
            return self.times.draw(key, n, self.schedule, history)
        return self.times(key, n, self.schedule), jnp.ones(n)


MakeObjective = Callable[[Setting], Objective]
"""What the entries of `OBJECTIVES` return: a function that makes the objective for a model."""


class Noised(NamedTuple):
    """A batch with times and noise."""

    x0: Array  # [B, *S, C]
    cond: Condition
    t: Array  # [B]
    eps: Array  # as x0


def denoising(setting: Setting, loss: Callable[[Trained, Noised], Array]) -> Objective:
    """The objective with this loss of x_t = alpha x0 + sigma eps, at times that setting.times draws.

    Where these times depend on past losses, the objective keeps their history.
    """

    def draw(key: Array, examples: Examples, history: Tree, step: Array) -> Drawn:
        t_key, eps_key, _ = jax.random.split(key, 3)
        x0, cond = examples
        t, weight = setting.draw_times(t_key, len(x0), history)
        return Drawn(Noised(x0, cond, t, jax.random.normal(eps_key, x0.shape)), weight, t)

    if not isinstance(setting.times, AdaptiveTimes):
        return Objective(draw, loss)
    times = setting.times

    def update(history: Tree, drawn: Drawn, losses: Array) -> Tree:
        assert drawn.t is not None  # `draw` above gives it
        return times.update(history, drawn.t, losses)

    return Objective(draw, loss, init=lambda key: Memory(history=times.init(setting.schedule)), update=update)


def simple() -> MakeObjective:
    """The weighted distance to the prediction's target, eq. 14 of DDPM (arXiv:2006.11239).

    Where the network learns its variance it is L_hybrid, to which vlb_weight L_vlb is added (arXiv:2102.09672, eq. 16).
    """

    def make(setting: Setting) -> Objective:
        def loss(trained: Trained, values: Noised) -> Array:
            x0, cond, t, eps = values
            return losses.denoising_loss(
                trained.apply,
                trained.schedule,
                setting.parameterization,
                x0,
                cond,
                t,
                eps,
                weighting=setting.weighting,
                distance=setting.distance,
                vlb_weight=setting.vlb_weight,
            )

        return denoising(setting, loss)

    return make


def vlb() -> MakeObjective:
    """L_vlb of a chain in bits per dimension: section 3.3 of improved DDPM (arXiv:2102.09672)."""

    def make(setting: Setting) -> Objective:
        variance = "learned" if setting.parameterization.learned_variance else "small"

        def loss(trained: Trained, values: Noised) -> Array:
            x0, cond, t, eps = values
            return losses.vlb_loss(
                trained.apply, trained.schedule, setting.parameterization, x0, cond, t, eps, variance=variance
            )

        return denoising(setting, loss)

    return make


class BoundNoise(NamedTuple):
    """A noised batch, and the noise of the reconstruction term of VDM's bound."""

    noised: Noised
    eps_start: Array  # as x0


def vdm() -> MakeObjective:
    """VDM's continuous-time bound in bits per dimension (arXiv:2107.00630), which trains a learned schedule too."""

    def make(setting: Setting) -> Objective:
        if setting.parameterization.learned_variance:
            raise UserError("objective='vdm' has no variances to learn; give a prediction without learned_variance")

        def loss(trained: Trained, values: BoundNoise) -> Array:
            x0, cond, t, eps = values.noised
            denoise = denoisers.condition(
                denoisers.from_network(trained.apply, trained.schedule, setting.parameterization), cond
            )
            return continuous_bound(denoise, trained.schedule, x0, t, eps, values.eps_start).total

        base = denoising(setting, lambda trained, values: jnp.zeros(len(values.t)))

        def draw(key: Array, examples: Examples, history: Tree, step: Array) -> Drawn:
            drawn = base.draw(key, examples, history, step)
            eps_start = jax.random.normal(jax.random.fold_in(key, 4), examples.x0.shape)
            return drawn._replace(values=BoundNoise(drawn.values, eps_start))

        return dataclasses.replace(base, draw=draw, loss=loss, learns_schedule=True)

    return make


def uncertainty(channels: int = 128) -> MakeObjective:
    """`simple` with a learned weight for each noise level: exp(-u) L + u, where u is a function of the log-SNR.

    It is the weighting by uncertainty of EDM2 (arXiv:2312.02696, appendix B.2). At the minimum, exp(u) is the mean loss
    at each level, so that all levels have equal shares of the gradient. u is linear in `channels` random Fourier
    features of c_noise = ln(sigma / alpha) / 4, and starts at 0. Raises UserError unless channels >= 1.
    """
    if channels < 1:
        raise UserError(f"objective 'uncertainty' needs channels >= 1; got {channels}")
    rng = np.random.default_rng(0)  # the features are part of the objective's definition and equal in all runs
    frequencies = (2 * np.pi * rng.normal(size=channels)).astype(np.float32)
    phases = (2 * np.pi * rng.uniform(size=channels)).astype(np.float32)

    def features(logsnr: Array) -> Array:
        """The features [B, channels] of log-SNRs [B], of mean square 1."""
        c_noise = -logsnr / 8.0
        return jnp.sqrt(2.0) * jnp.cos(c_noise[:, None] * frequencies + phases)

    def make(setting: Setting) -> Objective:
        base = simple()(setting)

        def loss(trained: Trained, values: Noised) -> Array:
            weight = trained.objective_params["weight"]  # [channels]
            u = features(trained.schedule.logsnr(values.t)) @ weight / jnp.sqrt(float(channels))  # [B]
            return jnp.exp(-u) * base.loss(trained, values) + u

        def init(key: Array) -> Memory:
            return base.init(key)._replace(params={"weight": jnp.zeros(channels)})

        return dataclasses.replace(base, loss=loss, init=init)

    return make


def progressive(steps: int) -> MakeObjective:
    """Progressive distillation: one DDIM step does what two of a teacher do; algorithm 2 of arXiv:2202.00512.

    The model learns to sample in `steps` steps of DDIM on the grid "uniform", to which times are rounded up. The target
    of a step is the x0 with which it ends where two half steps of the teacher do (`one_step_for_two`); weighting and
    distance are as in `simple`. Raises UserError unless steps >= 1, and for learned variances.
    """
    if steps < 1:
        raise UserError(f"objective 'progressive' needs steps >= 1; got {steps}")

    def make(setting: Setting) -> Objective:
        if setting.parameterization.learned_variance:
            raise UserError("objective 'progressive' has no variances to learn; give a prediction without them")
        base = simple()(setting)

        def draw(key: Array, examples: Examples, history: Tree, step: Array) -> Drawn:
            drawn = base.draw(key, examples, history, step)
            assert drawn.t is not None  # `denoising` draws it
            t = jnp.ceil(drawn.t * steps) / steps
            return drawn._replace(values=drawn.values._replace(t=t), t=t)

        def loss(trained: Trained, values: Noised) -> Array:
            assert trained.teacher is not None  # `learns_from_teacher`
            x0, cond, t, eps = values
            level = trained.schedule.level(t).like(x0)
            x = level.alpha * x0 + level.sigma * eps
            teacher = denoisers.condition(trained.teacher, cond)
            target = jax.lax.stop_gradient(one_step_for_two(teacher, trained.schedule, x, t, t - 1 / steps))
            return base.loss(trained, Noised(target, cond, t, (x - level.alpha * target) / level.sigma))

        return dataclasses.replace(base, draw=draw, loss=loss, learns_from_teacher=True)

    return make


OBJECTIVES: dict[str, Callable[..., MakeObjective]] = {
    "simple": simple,
    "vlb": vlb,
    "vdm": vdm,
    "uncertainty": uncertainty,
    "progressive": progressive,
}
