"""Distillation: what a trained model, the teacher, gives a model that takes fewer steps to learn."""

import jax.numpy as jnp
from jax import Array

from diffusion_jax.core.arguments import check_one_each
from diffusion_jax.core.denoisers import Denoiser
from diffusion_jax.core.schedules import Level, Schedule


def one_step_for_two(teacher: Denoiser, schedule: Schedule, x: Array, t: Array, s: Array) -> Array:
    """The x0 [B, ...] with which one DDIM step from t to s ends where two of the teacher do.

    It is the target of algorithm 2 of progressive distillation (arXiv:2202.00512). x [B, ...] is at the times t [B]; s
    [B] are earlier times, at least 0. The teacher steps by way of (t + s) / 2.
    """
    check_one_each(x, t=t, s=s)
    start, end = schedule.level(t).like(x), schedule.level(s).like(x)
    middle = (t + s) / 2
    between = _ddim(teacher, x, t, schedule.level(middle).like(x))
    reached = _ddim(teacher, between, middle, end)
    # One step reaches end.alpha x0 + end.sigma (x - start.alpha x0) / start.sigma, which is linear in x0.
    ratio = end.sigma / start.sigma
    return (reached - ratio * x) / (end.alpha - ratio * start.alpha)


def _ddim(denoise: Denoiser, x: Array, t: Array, end: Level) -> Array:
    """One deterministic step of DDIM from x at t to the level end."""
    prediction = denoise(x, jnp.asarray(t))
    return end.alpha * prediction.x0 + end.sigma * prediction.eps
