"""Sampling from a model, in one compiled program."""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from jax.stages import Wrapped

from diffusion_jax.core import denoisers
from diffusion_jax.core.denoisers import Condition, Denoiser
from diffusion_jax.core.grids import GRIDS
from diffusion_jax.core.samplers import SAMPLERS, sample
from diffusion_jax.core.schedules import Schedule
from diffusion_jax.errors import UserError
from diffusion_jax.models.classifier import Classifier
from diffusion_jax.models.conditions.condition import NEGATIVE
from diffusion_jax.models.model import Model
from diffusion_jax.spec import from_spec
from diffusion_jax.train import sharding
from diffusion_jax.train.state import Params

THRESHOLDS: dict[str, Callable[..., Callable[[Denoiser, Schedule], Denoiser]]] = {
    "none": lambda: lambda denoise, schedule: denoise,  # x0 as predicted: for latents
    # x0 clipped to [low, high]
    "static": lambda low=-1.0, high=1.0: partial(denoisers.static_threshold, low=low, high=high),
    # x0 clipped to a percentile of its absolute values and divided by it, for strong guidance (Imagen)
    "dynamic": lambda percentile=0.995: partial(denoisers.dynamic_threshold, percentile=percentile),
}


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How samples are drawn. The fields are keys of config.sample."""

    sampler: str
    grid: str
    steps: int
    guidance: float
    guidance_rescale: float
    guidance_interval: tuple[float, ...]
    threshold: str
    decode_tile: int


Guided = Callable[[Params, Mapping[str, Params], Condition], Denoiser]
"""(params, pretrained, cond) -> the denoiser with its conditions, guidance and threshold."""


class Guides(NamedTuple):
    """Networks beside the model that guide its samples."""

    classifier: Classifier | None = None
    weak: Model | None = None  # with the same conditions; autoguidance leads away from it


ALONE = Guides()

START = "start"
"""Name of the entry of cond that holds the noise which sampling starts from."""


Drawing = Callable[[Params, Mapping[str, Params], Array, Condition], Array]
"""(params, pretrained, seeds [B], cond) -> images [B, H, W, C] in about [-1, 1]."""


def sample_program(model: Model, sampling: Sampling, mesh: Mesh, guides: Guides = ALONE) -> Wrapped:
    """The compiled program of `drawing`, split over the mesh; B is a multiple of the mesh's data x fsdp."""
    split = sharding.batch_sharding(mesh)
    program = sharding.on_mesh(mesh, drawing(model, sampling, guides))
    return jax.jit(program, in_shardings=(None, None, split, split), out_shardings=split)


def drawing(model: Model, sampling: Sampling, guides: Guides = ALONE) -> Drawing:
    """The function that draws samples from seeds and conditions, which is traced.

    cond has the entries of the model's conditions, as `Condition.entries` and `Condition.request` give them: "label"
    [B], in which num_classes is the null class, "tokens" [B, N], images at their own size. An entry "negative_tokens"
    replaces the condition's `null` as what guidance leads away from. An entry `START` [B, *S, C] of standard normal
    noise replaces the noise that the seeds give. pretrained has the model's weights that are not trained, and those of
    the guides as "classifier" and "weak".

    Raises UserError, before anything is traced, for a sampling that does not fit the model.
    """
    sampler = from_spec(sampling.sampler, SAMPLERS, "sampler")
    times = from_spec(sampling.grid, GRIDS, "time grid")(model.schedule, sampling.steps)
    guide = guided(model, sampling, guides)

    def draw(params: Params, pretrained: Mapping[str, Params], seeds: Array, cond: Condition) -> Array:
        conditions = {name: value for name, value in cond.items() if name != START}
        denoise, start = guide(params, pretrained, conditions), cond.get(START)
        schedule = model.bind(params).schedule
        x = sample(denoise, sampler, schedule, times, seeds, model.x_shape, start=start)
        return model.decode(pretrained, x, sampling.decode_tile)

    return draw


def trajectory_program(model: Model, sampling: Sampling, mesh: Mesh, *, columns: int) -> tuple[Wrapped, np.ndarray]:
    """The compiled program (params, pretrained, seeds [B], cond) -> (x, x0), and its times [K], K at most `columns`.

    x [K, B, *x_shape] is the sampler's state at K of its times, evenly spaced in steps, from noise to the samples. x0
    is the guided and thresholded prediction at these times, and at t = 0 the sample itself. Both are latents where the
    model has an autoencoder. The device's memory holds all N + 1 states.
    """
    sampler = from_spec(sampling.sampler, SAMPLERS, "sampler")
    grid = from_spec(sampling.grid, GRIDS, "time grid")(model.schedule, sampling.steps)
    guide = guided(model, sampling)
    shown = np.linspace(0, len(grid) - 1, min(columns, len(grid))).round().astype(int)
    times = grid[shown]

    def program(params: Params, pretrained: Mapping[str, Params], seeds: Array, cond: Condition) -> tuple[Array, Array]:
        denoise = guide(params, pretrained, cond)
        schedule = model.bind(params).schedule
        path = sample(denoise, sampler, schedule, grid, seeds, model.x_shape, trajectory=True)
        x = path[shown]

        def predict(inputs: tuple[Array, Array]) -> Array:
            x, t = inputs
            return denoise(x, jnp.full(len(seeds), t)).x0

        x0 = jax.lax.map(predict, (x[:-1], jnp.asarray(times[:-1], x.dtype)))
        return x, jnp.concatenate([x0, x[-1:]])

    split = sharding.batch_sharding(mesh)
    return jax.jit(sharding.on_mesh(mesh, program), in_shardings=(None, None, split, split)), times


def guided(model: Model, sampling: Sampling, guides: Guides = ALONE) -> Guided:
    """The function that makes the denoiser, with conditions, guidance and threshold in the order of `core.denoisers`.

    Raises UserError for a sampling, or guides, that do not fit the model.
    """
    classifier, weak = guides
    if sampling.guidance != 1 and weak is None and not model.conditions:
        raise UserError(f"guidance {sampling.guidance} needs a conditional model; this one has no conditions")
    if weak is not None and sampling.guidance == 1:
        raise UserError("a weaker model is what guidance leads away from; give a guidance other than 1")
    if (sampling.guidance_rescale or sampling.guidance_interval) and sampling.guidance == 1:
        raise UserError("guidance_rescale and guidance_interval need a guidance other than 1")
    if len(sampling.guidance_interval) not in (0, 2):
        raise UserError(f"guidance_interval is (low, high) of sigma / alpha, or (); got {sampling.guidance_interval}")
    if sampling.decode_tile and (model.autoencoder is None or sampling.decode_tile < 2):
        raise UserError(f"decode_tile is of a model of latents, 2 or more of them, or 0; got {sampling.decode_tile}")
    if model.autoencoder is not None and sampling.threshold == "static":
        raise UserError("threshold static clips to [-1, 1], which latents exceed; choose none")
    if classifier is not None:
        classifier.check(model.num_classes, model.shape)
    threshold = from_spec(sampling.threshold, THRESHOLDS, "threshold")

    def wrappers(schedule: Schedule) -> tuple[denoisers.Scale, denoisers.Rescale | None]:
        scale: denoisers.Scale = sampling.guidance
        if sampling.guidance_interval:
            scale = denoisers.interval(sampling.guidance, schedule, *sampling.guidance_interval)
        if not sampling.guidance_rescale:
            return scale, None
        return scale, denoisers.std_rescale(sampling.guidance_rescale, schedule, model.parameterization)

    wrappers(model.schedule)  # bad options raise here
    threshold(lambda x, t: denoisers.Prediction(x, x), model.schedule)

    def guide(params: Params, pretrained: Mapping[str, Params], cond: Condition) -> Denoiser:
        schedule = model.bind(params).schedule
        scale, rescale = wrappers(schedule)
        cond = dict(cond)
        negative = {name.removeprefix(NEGATIVE): cond.pop(name) for name in list(cond) if name.startswith(NEGATIVE)}
        label = cond.get("label") if model.num_classes else cond.pop("label", None)
        cond = dict(model.encode_images(pretrained, cond))
        if weak is None:
            null = {**model.null(cond), **negative}
            towards, away_from = (model.encode(params, pretrained, each) for each in (cond, null))
            denoise = denoisers.classifier_free(model.denoiser(params), towards, away_from, scale, rescale)
        else:
            both = [
                denoisers.condition(m.denoiser(p), m.encode(p, pretrained, cond))
                for m, p in ((model, params), (weak, pretrained["weak"]))
            ]
            denoise = denoisers.autoguidance(both[0], both[1], scale, rescale)
        if classifier is not None and label is not None:
            log_prob = classifier.log_prob(pretrained["classifier"], label, schedule)
            denoise = denoisers.classifier_guidance(denoise, log_prob, schedule, classifier.scale)
        return threshold(denoise, schedule)

    return guide
