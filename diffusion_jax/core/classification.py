"""The objective of a classifier of noisy images, which guides a model."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from diffusion_jax.core.objectives import Drawn, Examples, Objective, Trained, Tree
from diffusion_jax.core.process import diffuse
from diffusion_jax.core.schedules import Schedule
from diffusion_jax.core.times import TimeSampler


class Labelled(NamedTuple):
    """Noised images with their classes."""

    x0: Array  # [B, *S, C]
    label: Array  # [B] int32
    t: Array  # [B]
    eps: Array  # as x0


def cross_entropy(times: TimeSampler, schedule: Schedule) -> Objective:
    """-log p(label | x_t) in nats, for a classifier of noisy images: section 4 of ADM (arXiv:2105.05233).

    `Trained.apply` gives logits [B, classes], and cond["label"] [B] has the classes.
    """

    def draw(key: Array, examples: Examples, history: Tree, step: Array) -> Drawn:
        t_key, eps_key = jax.random.split(key)
        x0, n = examples.x0, len(examples.x0)
        t = times(t_key, n, schedule)
        values = Labelled(x0, examples.cond["label"], t, jax.random.normal(eps_key, x0.shape))
        return Drawn(values, jnp.ones(n), t)

    def loss(trained: Trained, values: Labelled) -> Array:
        x = diffuse(values.x0, values.eps, trained.schedule.level(values.t))
        logits = trained.apply(x, trained.schedule.conditioning(values.t), {})  # [B, classes]
        chosen = jnp.take_along_axis(logits, values.label[:, None], axis=-1)[:, 0]
        return jax.nn.logsumexp(logits, axis=-1) - chosen

    return Objective(draw, loss)
