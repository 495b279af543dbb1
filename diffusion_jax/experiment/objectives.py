"""The objective of a config, and how it draws its times."""

from collections.abc import Callable

from ml_collections import ConfigDict

from diffusion_jax.core import losses
from diffusion_jax.core.objectives import OBJECTIVES, Objective, Setting
from diffusion_jax.core.predictions import Parameterization
from diffusion_jax.core.schedules import Schedule
from diffusion_jax.core.times import ADAPTIVE_TIMES, TIMES, AdaptiveTimes, TimeSampler
from diffusion_jax.core.weightings import WEIGHTINGS
from diffusion_jax.spec import from_spec


def time_sampling(text: str) -> TimeSampler | AdaptiveTimes:
    """The times of training by a spec such as "uniform". An `AdaptiveTimes` has a history in the training state."""
    table: dict[str, Callable[..., TimeSampler | AdaptiveTimes]] = {**TIMES, **ADAPTIVE_TIMES}
    return from_spec(text, table, "time sampling")


def objective(config: ConfigDict, schedule: Schedule, parameterization: Parameterization) -> Objective:
    """The objective of config, for a model with this schedule and prediction."""
    setting = Setting(
        schedule,
        parameterization,
        time_sampling(config.times),
        from_spec(config.weighting, WEIGHTINGS, "weighting"),
        from_spec(config.distance, losses.DISTANCES, "distance"),
        config.vlb_weight,
    )
    return from_spec(config.objective, OBJECTIVES, "objective")(setting)
