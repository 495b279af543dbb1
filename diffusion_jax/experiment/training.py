"""The training of a config: optimizer, mesh, step and state."""

import dataclasses
import functools
from collections.abc import Callable, Mapping

import jax
import optax
from jax import Array
from jax.sharding import Mesh
from jax.stages import Wrapped
from ml_collections import ConfigDict

from diffusion_jax.core.autoencoding import sample_posterior
from diffusion_jax.core.objectives import Examples, Objective, Trained
from diffusion_jax.errors import UserError
from diffusion_jax.experiment.objectives import objective
from diffusion_jax.models.model import Model
from diffusion_jax.train import optimizers, sharding
from diffusion_jax.train import step as steps
from diffusion_jax.train.ema import gamma_of
from diffusion_jax.train.state import Params, TrainState, create

NO_WEIGHTS: Mapping[str, Params] = {}
"""Of a model all of whose weights are trained."""


@dataclasses.dataclass(frozen=True)
class Trainee:
    """What one task trains: parameters, an objective, and how a batch becomes the objective's examples."""

    objective: Objective
    init: Callable[[Array], Params]
    """key -> random parameters, those that the objective keeps of its own among them."""
    examples: Callable[[Array, steps.Batch, Mapping[str, Params]], Examples]
    """(key, batch, weights that are not trained) -> examples."""
    trained: Callable[[Params, Mapping[str, Params], Array], Trained]
    """(parameters, weights that are not trained, dropout key) -> what the objective's loss sees."""
    tensor_rules: sharding.TensorRules = ()
    outer_layers: tuple[str, ...] = ()
    """Names in the paths of first and last layers, which Muon leaves to Adam."""
    stacked_layers: tuple[str, ...] = ()
    """Names in the paths of parameters whose first axis counts layers."""
    players: tuple[str, ...] = ()
    """Names of networks in params that have an optimizer each, which clips by its own gradients; (): one for all."""
    splits_tokens: bool = False
    """Whether the mesh axis `context` splits its work."""

    as_read: Callable[[Params], Params] = lambda params: params
    """parameters -> parameters, cast to the types in which the network reads them."""

    @functools.cached_property
    def abstract(self) -> Params:
        """The shapes of the parameters; nothing is allocated."""
        return jax.eval_shape(self.init, jax.random.key(0))


def of_model(config: ConfigDict, model: Model) -> Trainee:
    """The training of a diffusion model."""

    def trained(params: Params, pretrained: Mapping[str, Params], dropout: Array) -> Trained:
        apply = lambda x, t, cond: model.apply(params, x, t, cond, dropout)  # noqa: E731
        objective_params = params["objective"] if model.init_objective is not None else ()
        teacher = None if model.teacher is None else model.teacher.model.denoiser(pretrained["teacher"])
        return Trained(params, pretrained, apply, model.bind(params).schedule, objective_params, teacher)

    return Trainee(
        objective(config, model.schedule, model.parameterization),
        model.init,
        lambda key, batch, pretrained: examples(config, model, pretrained)(key, batch),
        trained,
        model.tensor_rules,
        model.outer_layers,
        model.stacked_layers,
        splits_tokens=model.splits_tokens,
        as_read=model.as_read,
    )


def optimizer(config: ConfigDict, trainee: Trainee) -> optax.GradientTransformation:
    """The optimizer with its learning rate."""
    if not trainee.players:
        return _one_optimizer(config, trainee.outer_layers, trainee.stacked_layers)
    each = {name: _one_optimizer(config, trainee.outer_layers, trainee.stacked_layers) for name in trainee.players}
    return optax.multi_transform(each, lambda params: jax.tree_util.tree_map_with_path(lambda p, _: p[0].key, params))


def check_optimizer(config: ConfigDict) -> None:
    """Raises UserError where the optimizer's name or options are invalid."""
    _one_optimizer(config)


def learning_rate(config: ConfigDict) -> Callable[[int], float]:
    """Steps before -> the learning rate of the next step, as if no step had been skipped."""
    keys = config.optimizer
    rate = optimizers.learning_rate(keys.learning_rate, warmup=keys.warmup, decay=keys.decay, steps=config.train.steps)
    return lambda step: float(rate(step))


def _one_optimizer(
    config: ConfigDict, outer: tuple[str, ...] = (), stacked: tuple[str, ...] = ()
) -> optax.GradientTransformation:
    keys = config.optimizer
    rate = optimizers.learning_rate(keys.learning_rate, warmup=keys.warmup, decay=keys.decay, steps=config.train.steps)
    options = optimizers.AdamOptions(rate, keys.b1, keys.b2, keys.eps, keys.weight_decay, keys.mean_dtype)
    return optimizers.optimizer(keys.name, options, clip=keys.clip, layers=optimizers.LayerNames(outer, stacked))


def mesh(config: ConfigDict) -> Mesh:
    """The device mesh; raises UserError unless it divides the batch."""
    built = sharding.mesh(**{axis: config.mesh[axis] for axis in sharding.AXES}, slices=config.mesh.slices)
    sharding.check_batch(built, config.train.batch_size, config.train.accumulate)
    return built


def layout(config: ConfigDict, trainee: Trainee, mesh: Mesh) -> TrainState:
    """The sharding of each array of the training state: a tree of NamedShardings."""
    return sharding.tree_sharding(abstract_state(config, trainee), mesh, trainee.tensor_rules, zero=config.mesh.zero)


def examples(
    config: ConfigDict, model: Model, pretrained: Mapping[str, Params] = NO_WEIGHTS
) -> Callable[[Array, steps.Batch], Examples]:
    """(key, batch) -> what a step trains on: images or their latents, and what the model is told of each.

    A batch holds "x", or "mean" and "logvar" of its latents, and what `batches` adds for the model's conditions;
    pretrained is the model's, on the devices.
    """

    def draw(key: Array, batch: steps.Batch) -> Examples:
        x0 = _x0(model, jax.random.fold_in(key, 3), batch, pretrained)
        cond_key = jax.random.split(key, 3)[2]  # the objective draws with the others
        return Examples(x0, model.draw_cond(cond_key, batch, pretrained, config.condition_dropout))

    return draw


def train_step(
    config: ConfigDict, trainee: Trainee, mesh: Mesh, pretrained: Mapping[str, Params] = NO_WEIGHTS
) -> steps.Step:
    """The step of config, not yet compiled. Where config dispatches several steps at once, it makes all of them."""
    step = steps.train_step(
        trainee.objective,
        lambda key, batch: trainee.examples(key, batch, pretrained),
        lambda params, key: trainee.trained(
            sharding.gather(params, mesh, trainee.tensor_rules, trainee.as_read), pretrained, key
        ),
        optimizer(config, trainee),
        ema_decay=config.ema.decay,
        ema_warmup=config.ema.warmup,
        accumulate=config.train.accumulate,
        gammas=gammas(config),
    )
    return steps.several(step) if config.train.steps_per_dispatch > 1 else step


def gammas(config: ConfigDict) -> tuple[float, ...]:
    """The exponents gamma of the averages in config.ema.profiles; raises UserError for a length that no gamma has."""
    return tuple(gamma_of(sigma) for sigma in config.ema.profiles)


def _x0(model: Model, key: Array, batch: Mapping[str, Array], pretrained: Mapping[str, Params]) -> Array:
    """The images, or samples of their latents. Latents encoded here and precomputed ones give the same samples."""
    if model.autoencoder is None:
        return batch["x"]
    if "mean" in batch:
        mean, logvar = batch["mean"], batch["logvar"]
    else:
        mean, logvar = model.autoencoder.encode(pretrained["autoencoder"], batch["x"])
    return sample_posterior(mean, logvar, jax.random.normal(key, mean.shape))


def compiled_step(config: ConfigDict, trainee: Trainee, mesh: Mesh) -> Wrapped:
    """(state, batch, seed, pretrained) -> `train_step`, jitted over the mesh; the state that it is given is donated."""
    train_step(config, trainee, mesh)  # raises now what the first step would, with the workdir written
    if mesh.shape["context"] > 1 and not trainee.splits_tokens:
        raise UserError(
            f"mesh.context={mesh.shape['context']} splits tokens, and what is trained here has none; leave it at 1"
        )
    where = layout(config, trainee, mesh)
    everywhere = sharding.replicated(mesh)
    batch = sharding.batch_sharding(mesh, leading=int(config.train.steps_per_dispatch > 1))

    def step(
        state: TrainState, batch: steps.Batch, seed: Array, pretrained: Mapping[str, Params]
    ) -> tuple[TrainState, steps.Metrics]:
        return train_step(config, trainee, mesh, pretrained)(state, batch, seed)

    return jax.jit(
        sharding.on_mesh(mesh, step),
        in_shardings=(where, batch, everywhere, everywhere),
        out_shardings=(where, everywhere),
        donate_argnums=0,
    )


def abstract_state(config: ConfigDict, trainee: Trainee) -> TrainState:
    """The shapes of the training state; nothing is allocated."""
    return jax.eval_shape(lambda: random_state(config, trainee))


def initial_state(config: ConfigDict, trainee: Trainee, mesh: Mesh) -> TrainState:
    """The state before the first step, each array made on its devices."""
    return jax.jit(lambda: random_state(config, trainee), out_shardings=layout(config, trainee, mesh))()


def random_state(config: ConfigDict, trainee: Trainee) -> TrainState:
    """The state before the first step, drawn from config.seed."""
    key = jax.random.key(config.seed)
    memory = trainee.objective.init(key)
    return create(trainee.init(key), optimizer(config, trainee), memory.history, profiles=len(config.ema.profiles))
