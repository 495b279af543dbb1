"""Noise schedules: x_t = alpha(t) x_0 + sigma(t) eps, for t in [0, 1].

`SCHEDULES` lists schedules by name, and `MODIFIERS` the functions that turn a schedule into another. A learned schedule
has parameters and therefore no name: `learned.Learned(params)`.
"""

from collections.abc import Callable

from diffusion_jax.core.schedules.base import Level, Schedule
from diffusion_jax.core.schedules.continuous import continuous_cosine, edm, rectified_flow, sigmoid, sub_vp, ve, vp
from diffusion_jax.core.schedules.discrete import DiscreteVP, cosine, linear, scaled_linear
from diffusion_jax.core.schedules.learned import Learned
from diffusion_jax.core.schedules.modifiers import MODIFIERS, Modifier, input_scale, shift, time_shift, zero_snr

SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "linear": linear,
    "scaled_linear": scaled_linear,
    "cosine": cosine,
    "sigmoid": sigmoid,
    "vp": vp,
    "sub_vp": sub_vp,
    "continuous_cosine": continuous_cosine,
    "ve": ve,
    "edm": edm,
    "rectified_flow": rectified_flow,
}

__all__ = [
    "MODIFIERS",
    "SCHEDULES",
    "DiscreteVP",
    "Learned",
    "Level",
    "Modifier",
    "Schedule",
    "continuous_cosine",
    "cosine",
    "edm",
    "input_scale",
    "linear",
    "rectified_flow",
    "scaled_linear",
    "shift",
    "sigmoid",
    "sub_vp",
    "time_shift",
    "ve",
    "vp",
    "zero_snr",
]
