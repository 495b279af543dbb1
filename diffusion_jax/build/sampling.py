"""Drawing from a model: one compiled program for all of it."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from ml_collections import ConfigDict

from diffusion_jax.build.model import Model
from diffusion_jax.core import denoisers
from diffusion_jax.core.denoisers import ConditionalDenoiser, Denoiser
from diffusion_jax.core.grids import GRIDS
from diffusion_jax.core.samplers import SAMPLERS, sample
from diffusion_jax.core.schedules import Schedule
from diffusion_jax.errors import UserError
from diffusion_jax.spec import from_spec
from diffusion_jax.train import sharding
from diffusion_jax.train.state import Params

THRESHOLDS: dict[str, Callable[..., Callable[[Denoiser, Schedule], Denoiser]]] = {
    "none": lambda: lambda denoise, schedule: denoise,
    "static": lambda low=-1.0, high=1.0: partial(denoisers.static_threshold, low=low, high=high),
    "dynamic": lambda percentile=0.995: partial(denoisers.dynamic_threshold, percentile=percentile),
}


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How to draw samples: the keys of config.sample, all but how many and when."""

    sampler: str
    grid: str
    steps: int
    guidance: float
    guidance_rescale: float
    guidance_interval: tuple[float, ...]
    threshold: str


def sampling(config: ConfigDict) -> Sampling:
    """The sampling that config asks for in training; the default of the sample command."""
    return Sampling(**{field.name: config.sample[field.name] for field in dataclasses.fields(Sampling)})


def sample_program(model: Model, how: Sampling, mesh: Mesh) -> Any:
    """(params, seeds [B], labels [B]) -> images [B, H, W, C] in about [-1, 1], one compiled program for all of it.

    A label of num_classes is the null class; labels of an unconditional model are ignored. B is a multiple of the
    mesh's data x fsdp. Raises UserError, before anything is traced, for what the model cannot do.
    """
    sampler = from_spec(how.sampler, SAMPLERS, "sampler")
    times = from_spec(how.grid, GRIDS, "time grid")(model.schedule, how.steps)
    guide = guidance(model, how)

    def program(params: Params, seeds: Array, labels: Array) -> Array:
        denoise = guide(model.denoiser(params), labels)
        return sample(denoise, sampler, model.schedule, jnp.asarray(times), seeds, model.shape)

    split = sharding.batch_sharding(mesh)
    return jax.jit(program, in_shardings=(None, split, split), out_shardings=split)


def trajectory_program(model: Model, how: Sampling, mesh: Mesh, *, columns: int) -> tuple[Any, np.ndarray]:
    """((params, seeds [B], labels [B]) -> (x, x0), times [K]): `sample_program`'s trajectory in one program.

    x [K, B, H, W, C] is the sampler's state at K of its times, evenly spaced in steps, from noise to the samples; x0
    is the denoiser's prediction there, guided and thresholded as the sampler sees it, and at t = 0 the sample. All
    N + 1 states are held in the device's memory.
    """
    sampler = from_spec(how.sampler, SAMPLERS, "sampler")
    grid = from_spec(how.grid, GRIDS, "time grid")(model.schedule, how.steps)
    guide = guidance(model, how)
    shown = np.linspace(0, len(grid) - 1, min(columns, len(grid))).round().astype(int)
    times = grid[shown]

    def program(params: Params, seeds: Array, labels: Array) -> tuple[Array, Array]:
        denoise = guide(model.denoiser(params), labels)
        path = sample(denoise, sampler, model.schedule, jnp.asarray(grid), seeds, model.shape, trajectory=True)
        x = path[shown]

        def predict(inputs: tuple[Array, Array]) -> Array:
            x, t = inputs
            return denoise(x, jnp.full(len(seeds), t)).x0

        x0 = jax.lax.map(predict, (x[:-1], jnp.asarray(times[:-1], x.dtype)))
        return x, jnp.concatenate([x0, x[-1:]])

    split = sharding.batch_sharding(mesh)
    return jax.jit(program, in_shardings=(None, split, split)), times


def guidance(model: Model, how: Sampling) -> Callable[[ConditionalDenoiser, Array], Denoiser]:
    """(denoiser, labels [B]) -> the denoiser with its labels, guidance and threshold, in the order `core` documents."""
    if how.guidance != 1 and not model.num_classes:
        raise UserError(f"guidance {how.guidance} needs a class-conditional model; this one has no classes")
    if (how.guidance_rescale or how.guidance_interval) and how.guidance == 1:
        raise UserError("guidance_rescale and guidance_interval need a guidance other than 1")
    if len(how.guidance_interval) not in (0, 2):
        raise UserError(f"guidance_interval is (low, high) of sigma / alpha, or (); got {how.guidance_interval}")
    scale: denoisers.Scale = how.guidance
    if how.guidance_interval:
        scale = denoisers.interval(how.guidance, model.schedule, *how.guidance_interval)
    rescale = denoisers.std_rescale(how.guidance_rescale, model.schedule) if how.guidance_rescale else None
    threshold = from_spec(how.threshold, THRESHOLDS, "threshold")

    def guide(denoise: ConditionalDenoiser, labels: Array) -> Denoiser:
        cond = {"label": labels} if model.num_classes else {}
        guided = denoisers.classifier_free(denoise, cond, model.null(len(labels)), scale, rescale)
        return threshold(guided, model.schedule)

    guide(lambda x, t, cond: denoisers.Prediction(x, x), jnp.zeros(1, jnp.int32))  # bad options raise here
    return guide
