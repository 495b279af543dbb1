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
from diffusion_jax.core import losses
from diffusion_jax.core.times import ADAPTIVE_TIMES, TIMES, AdaptiveTimes, TimeSampler
from diffusion_jax.core.weightings import WEIGHTINGS
from diffusion_jax.errors import UserError
from diffusion_jax.spec import from_spec
from diffusion_jax.train import optimizer as optimizers
from diffusion_jax.train import sharding
from diffusion_jax.train import step as steps
from diffusion_jax.train.state import Params, TrainState, create


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
