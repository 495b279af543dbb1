"""From a config to objects; the only reader of a config. Everything below takes plain arguments."""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax import Array
from jax.sharding import Mesh
from ml_collections import ConfigDict

from diffusion_jax.core import denoisers, editing, losses
from diffusion_jax.core.denoisers import Condition, ConditionalDenoiser, Denoiser
from diffusion_jax.core.grids import GRIDS
from diffusion_jax.core.predictions import PREDICTIONS, Parameterization
from diffusion_jax.core.samplers import SAMPLERS, AdaptiveSampler, sample
from diffusion_jax.core.schedules import MODIFIERS, SCHEDULES, Schedule
from diffusion_jax.core.times import ADAPTIVE_TIMES, TIMES, AdaptiveTimes, TimeSampler
from diffusion_jax.core.weightings import WEIGHTINGS
from diffusion_jax.data import pipeline, sources
from diffusion_jax.errors import UserError
from diffusion_jax.nets.unet import UNet
from diffusion_jax.spec import from_spec
from diffusion_jax.train import optimizer as optimizers
from diffusion_jax.train import sharding
from diffusion_jax.train import step as steps
from diffusion_jax.train.state import Params, TrainState, create

NETWORKS: dict[str, type[nn.Module]] = {"unet": UNet}

THRESHOLDS: dict[str, Callable[..., Callable[[Denoiser, Schedule], Denoiser]]] = {
    "none": lambda: lambda denoise, schedule: denoise,
    "static": lambda low=-1.0, high=1.0: partial(denoisers.static_threshold, low=low, high=high),
    "dynamic": lambda percentile=0.995: partial(denoisers.dynamic_threshold, percentile=percentile),
}

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


@dataclasses.dataclass(frozen=True)
class Model:
    """A network together with what gives its output a meaning: schedule, prediction, image shape and classes."""

    network: nn.Module
    schedule: Schedule
    parameterization: Parameterization
    shape: tuple[int, int, int]  # H W C of one image
    num_classes: int  # 0: unconditional

    def init(self, key: Array) -> Params:
        """Random parameters."""
        x = jnp.zeros((1, *self.shape))
        return self.network.init(key, x, jnp.zeros(1), self.null(1))["params"]

    def apply(self, params: Params, x: Array, t: Array, cond: Condition, dropout: Array | None = None) -> Array:
        """The network's output for x [B, H, W, C] and conditioning t [B]; with a dropout key, as in training."""
        rngs = None if dropout is None else {"dropout": dropout}
        return self.network.apply({"params": params}, x, t, cond, train=dropout is not None, rngs=rngs)  # type: ignore[return-value]

    def denoiser(self, params: Params) -> ConditionalDenoiser:
        """What a sampler sees of these parameters."""
        apply = lambda x, t, cond: self.apply(params, x, t, cond)  # noqa: E731
        return denoisers.from_network(apply, self.schedule, self.parameterization)

    def null(self, batch: int) -> Condition:
        """The condition that says nothing: the null class, or none at all."""
        return {"label": jnp.full(batch, self.num_classes, jnp.int32)} if self.num_classes else {}


def schedule(text: str) -> Schedule:
    """The schedule of a text such as "cosine" or "linear | zero_snr | shift(scale=0.5)": modifiers apply in turn."""
    name, *modifiers = text.split("|")
    built = from_spec(name, SCHEDULES, "schedule")
    for modifier in modifiers:
        built = from_spec(modifier, MODIFIERS, "schedule modifier")(built)
    return built


def time_sampling(text: str) -> TimeSampler | AdaptiveTimes:
    """How training draws its times; an `AdaptiveTimes` keeps a history in the state."""
    table: dict[str, Callable[..., Any]] = {**TIMES, **ADAPTIVE_TIMES}
    return from_spec(text, table, "time sampling")


def model(config: ConfigDict) -> Model:
    """The network, schedule and prediction of config; raises UserError where sizes do not fit together."""
    options = config.model.to_dict()
    name, dtype, num_classes = options.pop("name"), options.pop("dtype"), options.pop("num_classes")
    if name not in NETWORKS:
        raise UserError(f"unknown model.name {name!r}; choose from {', '.join(NETWORKS)}")
    if dtype not in DTYPES:
        raise UserError(f"unknown model.dtype {dtype!r}; choose from {', '.join(DTYPES)}")
    parameterization = from_spec(config.prediction, PREDICTIONS, "prediction")
    network = NETWORKS[name](
        out_channels=config.data.channels * (2 if parameterization.learned_variance else 1),
        num_classes=num_classes or None,
        dtype=DTYPES[dtype],
        **options,
    )
    built = Model(
        network,
        schedule(config.schedule),
        parameterization,
        (config.data.height, config.data.width, config.data.channels),
        num_classes,
    )
    if float(built.schedule.alpha(jnp.float32(1.0))) == 0 and config.prediction.partition("(")[0] in ("eps", "score"):
        raise UserError(
            f"prediction {config.prediction!r} says nothing of the image where schedule {config.schedule!r} "
            "ends without signal; choose v, x0, edm or flow"
        )
    jax.eval_shape(built.init, jax.random.key(0))  # the network checks its sizes when traced
    return built


def source(config: ConfigDict) -> sources.Source:
    """The data set that data.source names; raises UserError where its labels do not fit the model."""
    built = sources.open_source(config.data.source, split=config.data.split, data_dir=config.data.data_dir or None)
    wanted = config.model.num_classes
    if wanted and built.num_classes is None:
        raise UserError(f"model.num_classes={wanted}, but data.source={config.data.source} has no labels")
    if wanted and built.num_classes != wanted:
        raise UserError(
            f"model.num_classes={wanted}, but data.source={config.data.source} has {built.num_classes} classes"
        )
    return built


def batches(config: ConfigDict, data: sources.Source) -> pipeline.TrainBatches:
    """Endless training batches, this process's slice of each."""
    return pipeline.train_batches(
        data,
        image_size=(config.data.height, config.data.width),
        channels=config.data.channels,
        batch_size=config.train.batch_size,
        seed=config.seed,
        flip=config.data.flip,
        cache=config.data.cache,
        threads=config.data.threads,
        workers=config.data.workers,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """The optimizer with its learning rate."""
    options = config.optimizer.to_dict()
    rate = optimizers.learning_rate(
        options.pop("learning_rate"),
        warmup=options.pop("warmup"),
        decay=options.pop("decay"),
        steps=config.train.steps,
    )
    return optimizers.optimizer(options.pop("name"), rate, **options)


def mesh(config: ConfigDict) -> Mesh:
    """The device mesh; raises UserError unless it divides the batch."""
    built = sharding.mesh(**config.mesh.to_dict())
    sharding.check_batch(built, config.train.batch_size, config.train.accumulate)
    return built


def train_step(config: ConfigDict, model: Model, mesh: Mesh) -> steps.Step:
    """The step of config, not yet compiled: its loss at its times, labels dropped for classifier-free guidance."""
    sampling = time_sampling(config.times)
    objective = _objective(config, model)

    def draw(key: Array, batch: Mapping[str, Array], history: Any) -> steps.Examples:
        t_key, eps_key, label_key = jax.random.split(key, 3)
        x0 = batch["image"]
        n = x0.shape[0]
        cond = model.null(n)
        if model.num_classes:
            dropped = jax.random.bernoulli(label_key, config.label_dropout, (n,))
            cond = {"label": jnp.where(dropped, cond["label"], batch["label"])}
        if isinstance(sampling, AdaptiveTimes):
            t, weight = sampling.draw(t_key, n, model.schedule, history)
        else:
            t, weight = sampling(t_key, n, model.schedule), jnp.ones(n)
        return steps.Examples(x0, cond, t, jax.random.normal(eps_key, x0.shape), weight)

    def loss(params: Params, examples: steps.Examples, dropout: Array) -> Array:
        apply = lambda x, t, cond: model.apply(sharding.gather(params, mesh), x, t, cond, dropout)  # noqa: E731
        x0, cond, t, eps, _ = examples
        return objective(apply, model.schedule, model.parameterization, x0, cond, t, eps)

    adaptive = {"learn_times": sampling.update} if isinstance(sampling, AdaptiveTimes) else {}
    step = steps.train_step(
        draw,
        loss,
        optimizer(config),
        ema_decay=config.ema.decay,
        ema_warmup=config.ema.warmup,
        accumulate=config.train.accumulate,
        **adaptive,
    )
    return steps.several(step) if config.train.steps_per_dispatch > 1 else step


def _objective(config: ConfigDict, model: Model) -> Callable[..., Array]:
    if config.objective == "simple":
        return partial(
            losses.denoising_loss,
            weighting=from_spec(config.weighting, WEIGHTINGS, "weighting"),
            distance=from_spec(config.distance, losses.DISTANCES, "distance"),
            vlb_weight=config.vlb_weight,
        )
    if config.objective == "vlb":
        return partial(losses.vlb_loss, variance="learned" if model.parameterization.learned_variance else "small")
    raise UserError(f"unknown objective {config.objective!r}; choose from simple, vlb")


def compiled_step(config: ConfigDict, model: Model, mesh: Mesh) -> steps.Step:
    """`train_step` jitted over the mesh; the state that it is given is donated."""
    layout = sharding.tree_sharding(abstract_state(config, model), mesh)
    everywhere = sharding.replicated(mesh)
    batch = sharding.batch_sharding(mesh, leading=int(config.train.steps_per_dispatch > 1))
    return jax.jit(
        train_step(config, model, mesh),
        in_shardings=(layout, batch, everywhere),
        out_shardings=(layout, everywhere),
        donate_argnums=0,
    )


def abstract_state(config: ConfigDict, model: Model) -> TrainState:
    """The shapes of the training state; nothing is allocated."""
    return jax.eval_shape(lambda: _state(config, model))


def initial_state(config: ConfigDict, model: Model, mesh: Mesh) -> TrainState:
    """The state before the first step, each array born where it will live."""
    layout = sharding.tree_sharding(abstract_state(config, model), mesh)
    return jax.jit(lambda: _state(config, model), out_shardings=layout)()


def _state(config: ConfigDict, model: Model) -> TrainState:
    sampling = time_sampling(config.times)
    history = sampling.init(model.schedule) if isinstance(sampling, AdaptiveTimes) else ()
    return create(model.init(jax.random.key(config.seed)), optimizer(config), history)


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


@dataclasses.dataclass(frozen=True)
class Edit:
    """What is done to a given image: diffused up to `strength` and drawn again, all of it or where it is unknown."""

    strength: float  # in (0, 1]; 1 starts from noise alone
    inpaint: bool  # whether a part of the image is kept
    resample: int  # turns of each step, where a part is kept
    canvas: tuple[int, int]  # H W of the image; larger than the model's is drawn in windows of the model's


def edit_program(model: Model, how: Sampling, mesh: Mesh, edit: Edit) -> Any:
    """(params, seeds [B], labels [B], image [H, W, C], unknown bool [H, W, 1]) -> edited images [B, H, W, C].

    With edit.inpaint the pixels that are not unknown come back as they are. Otherwise as `sample_program`.
    """
    sampler = from_spec(how.sampler, SAMPLERS, "sampler")
    if isinstance(sampler, AdaptiveSampler):
        raise UserError(f"sampler {how.sampler!r} takes steps of its own, which an edit cannot follow; choose ddim")
    times = editing.from_strength(from_spec(how.grid, GRIDS, "time grid")(model.schedule, how.steps), edit.strength)
    guide = guidance(model, how)
    window = model.shape[:2]
    strides = tuple(max(n // 2, 1) for n in window)
    count = int(np.prod([len(editing.windows(*n)) for n in zip(edit.canvas, window, strides, strict=True)]))

    def program(params: Params, seeds: Array, labels: Array, image: Array, unknown: Array) -> Array:
        if count == 1:
            denoise = guide(model.denoiser(params), labels)
        else:
            denoise = editing.in_windows(guide(model.denoiser(params), jnp.repeat(labels, count)), window, strides)
        method = editing.repaint(sampler, image, unknown, edit.resample) if edit.inpaint else sampler
        x0 = jnp.broadcast_to(image, (len(seeds), *image.shape))
        return editing.sample_from(denoise, method, model.schedule, jnp.asarray(times), seeds, x0)

    if edit.inpaint:  # a sampler that cannot keep a part raises here
        editing.repaint(sampler, jnp.zeros(1), jnp.ones(1, bool), edit.resample).plan(
            model.schedule, jnp.asarray(times)
        )
    split = sharding.batch_sharding(mesh)
    return jax.jit(program, in_shardings=(None, split, split, None, None), out_shardings=split)


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
