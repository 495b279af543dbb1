"""The mathematics of diffusion as pure functions of arrays: no flax, no config, no files.

Everywhere t is in [0, 1], where 0 is data and 1 is noise, and x_t = alpha(t) x_0 + sigma(t) eps with eps ~ N(0, I).
Arrays are [B, *S, C], and images lie in [-1, 1]. `docs/library.md` shows how the parts fit together.
"""

from diffusion_jax.core import (
    editing,
    grids,
    likelihood,
    losses,
    objectives,
    predictions,
    samplers,
    schedules,
    times,
    weightings,
)
from diffusion_jax.core.bound import variational_bound
from diffusion_jax.core.denoisers import (
    Condition,
    Denoiser,
    autoguidance,
    classifier_free,
    classifier_guidance,
    condition,
    dynamic_threshold,
    from_network,
    interval,
    static_threshold,
    std_rescale,
)
from diffusion_jax.core.grids import GRIDS
from diffusion_jax.core.likelihood import log_likelihood
from diffusion_jax.core.losses import DISTANCES, denoising_loss, simple_loss, vlb_loss
from diffusion_jax.core.objectives import OBJECTIVES, Objective, Setting
from diffusion_jax.core.predictions import PREDICTIONS, Parameterization, Prediction
from diffusion_jax.core.process import diffuse, posterior, transition
from diffusion_jax.core.samplers import SAMPLERS, Sampler, integrate, sample
from diffusion_jax.core.schedules import MODIFIERS, SCHEDULES, Level, Schedule
from diffusion_jax.core.times import TIMES
from diffusion_jax.core.vdm_bound import continuous_bound
from diffusion_jax.core.weightings import WEIGHTINGS

__all__ = [
    "DISTANCES",
    "GRIDS",
    "MODIFIERS",
    "OBJECTIVES",
    "PREDICTIONS",
    "SAMPLERS",
    "SCHEDULES",
    "TIMES",
    "WEIGHTINGS",
    "Condition",
    "Denoiser",
    "Level",
    "Objective",
    "Parameterization",
    "Prediction",
    "Sampler",
    "Schedule",
    "Setting",
    "autoguidance",
    "classifier_free",
    "classifier_guidance",
    "condition",
    "continuous_bound",
    "denoising_loss",
    "diffuse",
    "dynamic_threshold",
    "editing",
    "from_network",
    "grids",
    "integrate",
    "interval",
    "likelihood",
    "log_likelihood",
    "losses",
    "objectives",
    "posterior",
    "predictions",
    "sample",
    "samplers",
    "schedules",
    "simple_loss",
    "static_threshold",
    "std_rescale",
    "times",
    "transition",
    "variational_bound",
    "vlb_loss",
    "weightings",
]
