"""The training of a config: optimizer, mesh, step and state."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import Mesh
from ml_collections import ConfigDict

from diffusion_jax.build.model import Model
from diffusion_jax.core import conditions, denoisers, losses
from diffusion_jax.core.autoencoding import sample_posterior
from diffusion_jax.core.continuous_bound import continuous_bound
from diffusion_jax.core.predictions import Parameterization
from diffusion_jax.core.schedules import Schedule
from diffusion_jax.core.times import ADAPTIVE_TIMES, TIMES, AdaptiveTimes, TimeSampler
from diffusion_jax.core.weightings import WEIGHTINGS
from diffusion_jax.errors import UserError
from diffusion_jax.spec import from_spec
from diffusion_jax.train import optimizer as optimizers
from diffusion_jax.train import sharding
from diffusion_jax.train import step as steps
from diffusion_jax.train.ema import gamma_of
from diffusion_jax.train.state import Params, TrainState, create

_EPS_START = "eps_start"  # the noise of VDM's reconstruction term, drawn with the other draws of a step

FROZEN: Mapping[str, Params] = {}
"""Of a model all of whose weights are trained."""


def time_sampling(text: str) -> TimeSampler | AdaptiveTimes:
    """How training draws its times; an `AdaptiveTimes` keeps a history in the state."""
    table: dict[str, Callable[..., Any]] = {**TIMES, **ADAPTIVE_TIMES}
    return from_spec(text, table, "time sampling")


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
    built = sharding.mesh(**{axis: config.mesh[axis] for axis in sharding.AXES})
    sharding.check_batch(built, config.train.batch_size, config.train.accumulate)
    return built


def layout(config: ConfigDict, abstract: TrainState, mesh: Mesh) -> Any:
    """Where each array of the training state lives: a tree of NamedShardings."""
    return sharding.tree_sharding(abstract, mesh, zero=config.mesh.zero)


def examples(
    config: ConfigDict, model: Model, frozen: Mapping[str, Params] = FROZEN
) -> Callable[[Array, steps.Batch, TrainState], steps.Examples]:
    """(key, batch, state) -> the noised examples of a step: x0, conditions, times and noise, as config draws them.

    A batch holds "image", or "mean" and "logvar" of its latents, and what `batches` adds for the model's conditions;
    frozen is the model's, on the devices.
    """
    sampling = time_sampling(config.times)

    def draw(key: Array, batch: Mapping[str, Array], state: TrainState) -> steps.Examples:
        t_key, eps_key, cond_key = jax.random.split(key, 3)
        x0 = _x0(model, jax.random.fold_in(key, 3), batch, frozen)
        n = x0.shape[0]
        cond = _conditions(model, cond_key, batch, frozen, dropout=config.condition_dropout)
        if isinstance(sampling, AdaptiveTimes):
            t, weight = sampling.draw(t_key, n, model.schedule, state.times)
        else:
            t, weight = sampling(t_key, n, model.schedule), jnp.ones(n)
        if config.objective == "vdm":
            cond = cond | {_EPS_START: jax.random.normal(jax.random.fold_in(key, 4), x0.shape)}
        return steps.Examples(x0, cond, t, jax.random.normal(eps_key, x0.shape), weight)

    return draw


def train_step(config: ConfigDict, model: Model, mesh: Mesh, frozen: Mapping[str, Params] = FROZEN) -> steps.Step:
    """The step of config, not yet compiled: its loss on `examples`."""
    sampling = time_sampling(config.times)
    objective = _objective(config, model)

    def loss(params: Params, examples: steps.Examples, dropout: Array) -> Array:
        apply = lambda x, t, cond: model.apply(sharding.gather(params, mesh), x, t, cond, dropout)  # noqa: E731
        x0, cond, t, eps, _ = examples
        return objective(apply, model.bind(params).schedule, model.parameterization, x0, cond, t, eps)

    adaptive = {"learn_times": sampling.update} if isinstance(sampling, AdaptiveTimes) else {}
    return descend(config, examples(config, model, frozen), loss, optimizer(config), **adaptive)


def descend(
    config: ConfigDict,
    draw: Callable[[Array, steps.Batch, TrainState], steps.Examples],
    loss: Callable[[Params, steps.Examples, Array], Array],
    optimizer: optax.GradientTransformation,
    **learn_times: Any,
) -> steps.Step:
    """`train.step.train_step` with the average, accumulation and steps a dispatch of config: what all tasks share."""
    step = steps.train_step(
        draw,
        loss,
        optimizer,
        ema_decay=config.ema.decay,
        ema_warmup=config.ema.warmup,
        accumulate=config.train.accumulate,
        gammas=gammas(config),
        **learn_times,
    )
    return steps.several(step) if config.train.steps_per_dispatch > 1 else step


def gammas(config: ConfigDict) -> tuple[float, ...]:
    """Of the profiles that config keeps; raises UserError for a length that none has."""
    return tuple(gamma_of(sigma) for sigma in config.ema.profiles)


def _x0(model: Model, key: Array, batch: Mapping[str, Array], frozen: Mapping[str, Params]) -> Array:
    """The images, or samples of their latents: the same whether these are encoded here or were precomputed."""
    if model.autoencoder is None:
        return batch["image"]
    if "mean" in batch:
        mean, logvar = batch["mean"], batch["logvar"]
    else:
        mean, logvar = model.autoencoder.encode(frozen["autoencoder"], batch["image"])
    return sample_posterior(mean, logvar, jax.random.normal(key, mean.shape))


FEATURES = ("text", "text_mask", "text_pooled")
"""What a batch holds in place of tokens where the captions' features were precomputed."""


def _conditions(
    model: Model, key: Array, batch: Mapping[str, Array], frozen: Mapping[str, Params], *, dropout: float
) -> dict[str, Array]:
    """What the network is told of each example, or not: class and caption are left out together."""
    cond: dict[str, Any] = {}
    if model.num_classes:
        cond["label"] = batch["label"]
    encoded = {name: batch[name] for name in FEATURES if name in batch}  # precomputed
    if model.text and not encoded:
        cond["tokens"] = batch["tokens"]
    if cond or encoded:
        out = jax.random.bernoulli(key, dropout, (len(next(iter((cond | encoded).values()))),))
        null = model.null(cond)
        if encoded and model.text:
            nothing = {"tokens": jnp.asarray(model.text.null)[None]}
            null, cond = {**null, **model.encode_text(frozen["text"], nothing)}, cond | encoded
        cond = {name: jnp.where(out.reshape(-1, *(1,) * (a.ndim - 1)), null[name], a) for name, a in cond.items()}
    if "tokens" in cond and model.text and not model.text.trained:
        cond = dict(model.encode_text(frozen["text"], cond))
    for i, condition in enumerate(model.spatial):
        augment_key, dropout_key = jax.random.split(jax.random.fold_in(key, i))
        parts = dict(model.encode_images(frozen, condition.parts(batch)))
        cond |= conditions.dropped(dropout_key, condition.augment(augment_key, parts), condition.dropout)
    return cond


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
    if config.objective == "vdm":
        if model.parameterization.learned_variance:
            raise UserError("objective='vdm' has no variances to learn; give a prediction without learned_variance")
        return _vdm_loss
    raise UserError(f"unknown objective {config.objective!r}; choose from simple, vlb, vdm")


def _vdm_loss(
    apply: Callable[..., Array],
    schedule: Schedule,
    parameterization: Parameterization,
    x0: Array,
    cond: Mapping[str, Array],
    t: Array,
    eps: Array,
) -> Array:
    """One draw of VDM's bound for each example, bits/dim [B]: also what a learned schedule learns by."""
    told = {name: a for name, a in cond.items() if name != _EPS_START}
    denoise = denoisers.condition(denoisers.from_network(apply, schedule, parameterization), told)
    return continuous_bound(denoise, schedule, x0, t, eps, cond[_EPS_START]).total


def compiled_step(config: ConfigDict, model: Model, mesh: Mesh) -> Any:
    """`train_step` jitted over the mesh, with frozen as its fourth argument; the state that it is given is donated."""
    return compile_step(
        config, mesh, abstract_state(config, model), lambda frozen: train_step(config, model, mesh, frozen)
    )


def compile_step(
    config: ConfigDict, mesh: Mesh, abstract: TrainState, make: Callable[[Mapping[str, Params]], steps.Step]
) -> Any:
    """(state, batch, seed, frozen) -> make(frozen)(state, batch, seed), jitted over the mesh; the state is donated."""
    make(FROZEN)  # raises now what the first step would, with the workdir written
    where = layout(config, abstract, mesh)
    everywhere = sharding.replicated(mesh)
    batch = sharding.batch_sharding(mesh, leading=int(config.train.steps_per_dispatch > 1))
    return jax.jit(
        lambda state, batch, seed, frozen: make(frozen)(state, batch, seed),
        in_shardings=(where, batch, everywhere, everywhere),
        out_shardings=(where, everywhere),
        donate_argnums=0,
    )


def abstract_state(config: ConfigDict, model: Model) -> TrainState:
    """The shapes of the training state; nothing is allocated."""
    return jax.eval_shape(lambda: random_state(config, model))


def initial_state(config: ConfigDict, model: Model, mesh: Mesh) -> TrainState:
    """The state before the first step, each array born where it will live."""
    where = layout(config, abstract_state(config, model), mesh)
    return jax.jit(lambda: random_state(config, model), out_shardings=where)()


def random_state(config: ConfigDict, model: Model) -> TrainState:
    """The state before the first step, drawn from config.seed."""
    sampling = time_sampling(config.times)
    history = sampling.init(model.schedule) if isinstance(sampling, AdaptiveTimes) else ()
    params = model.init(jax.random.key(config.seed))
    return create(params, optimizer(config), history, profiles=len(config.ema.profiles))
