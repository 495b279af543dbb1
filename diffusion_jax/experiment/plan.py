"""The programs of a config, traced with shapes alone: no array is read, allocated or computed."""

import math
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, ShapeDtypeStruct
from jax.sharding import Mesh
from jax.stages import Traced
from ml_collections import ConfigDict

from diffusion_jax.core.schedules.learned import Learned
from diffusion_jax.errors import UserError
from diffusion_jax.experiment import autoencoder, classifier, data, training
from diffusion_jax.experiment.data import conditions
from diffusion_jax.experiment.diffusion_model import model as training_model
from diffusion_jax.experiment.sampling_options import sampling
from diffusion_jax.experiment.training import Trainee
from diffusion_jax.models.conditions import BatchEntry
from diffusion_jax.models.latent import Autoencoder
from diffusion_jax.models.model import Model
from diffusion_jax.models.sampling import sample_program
from diffusion_jax.nets import attention, conv, own_gradient
from diffusion_jax.nets.families import family
from diffusion_jax.train import sharding
from diffusion_jax.train.state import Params
from diffusion_jax.train.step import AVERAGE, OPTIMIZER

UNEXPANDED = {own_gradient.TANGENT.name: own_gradient.tangent}
"""What primitives of our own compute, which no jaxpr shows before it is lowered: {name: function of operands and,
by name, parameters}."""

ATTENTION, INPUT_GRADIENT, KERNEL_GRADIENT = attention.SCOPE, conv.INPUT_GRADIENT, conv.KERNEL_GRADIENT
UPDATES = (OPTIMIZER, AVERAGE)
"""The scopes, in the paths of a program's instructions, by which their kind is known."""


def mesh(config: ConfigDict, devices: Sequence[jax.Device]) -> Mesh:
    """The mesh of config over these devices; raises UserError unless it divides the batch."""
    built = sharding.mesh(
        **{axis: config.mesh[axis] for axis in sharding.AXES}, devices=devices, slices=config.mesh.slices
    )
    sharding.check_batch(built, config.train.batch_size, config.train.accumulate)
    return built


def model(config: ConfigDict, autoencoder_config: ConfigDict) -> Model:
    """The model of a config with `latent`, with the shapes of an autoencoder of autoencoder_config.

    So it can be planned before the autoencoder is trained. Raises UserError where autoencoder_config is of another
    task, and where config works in pixels.
    """
    if not config.latent:
        raise UserError("--autoencoder is for a config with `latent`; this one works in pixels")
    if autoencoder_config.task != "autoencoder":
        raise UserError(f"--autoencoder is a config of task autoencoder; got one of task {autoencoder_config.task}")
    state = training.abstract_state(autoencoder_config, autoencoder.trainee(autoencoder_config))
    params = state.ema["autoencoder"]
    unit = 1.0  # the scale of the latents, which is measured in training; it changes nothing of a plan
    return training_model(config, Autoencoder(autoencoder.network(autoencoder_config), params, unit))


def trainee(config: ConfigDict, model: Model | None) -> Trainee:
    """The training of config, of any task; model is of task diffusion."""
    if model is not None:
        return training.of_model(config, model)
    return {"autoencoder": autoencoder, "classifier": classifier}[config.task].trainee(config)


def batch_entries(config: ConfigDict, model: Model | None, *, precomputed: bool = True) -> dict[str, BatchEntry]:
    """The entries of a batch that the step reads. With precomputed, they are config's latents and features, if any."""
    shape = data.shape(config)
    precomputed = precomputed and bool(config.data.precomputed)
    found = {"x": BatchEntry(shape, jnp.float32, *data.modality(config).bounds)}
    if precomputed and model is not None and model.autoencoder is not None:
        found = {name: BatchEntry(model.x_shape, jnp.float32) for name in ("mean", "logvar")}
    for condition in conditions(config, model):
        found |= (condition.features if precomputed else {}) or condition.batch(shape)
    return found


def abstract_batch(config: ConfigDict, model: Model | None, *, precomputed: bool = True) -> dict[str, ShapeDtypeStruct]:
    """The shapes of one batch of `batch_entries`."""
    n = config.train.batch_size
    entries = batch_entries(config, model, precomputed=precomputed)
    return {name: ShapeDtypeStruct((n, *entry.shape), entry.dtype) for name, entry in entries.items()}


def saved_bytes(model: Model) -> int:
    """Bytes per example that the network keeps from its forward pass for its gradients, before compilation.

    A compiler keeps less where it recomputes cheap parts, but hardly less than half.
    """

    def kept(n: int) -> int:
        x, t = ShapeDtypeStruct((n, *model.x_shape), jnp.float32), ShapeDtypeStruct((n,), jnp.float32)
        entries = jax.eval_shape(model.network_entries)
        cond = {name: ShapeDtypeStruct((n, *a.shape[1:]), a.dtype) for name, a in entries.items()}
        params = jax.eval_shape(model.init, jax.random.key(0))
        pull = jax.eval_shape(lambda p, *rest: jax.vjp(lambda p: model.apply(p, *rest), p)[1], params, x, t, cond)
        return sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(pull))

    return kept(2) - kept(1)  # without the parameters, which are kept once


def traced_step(config: ConfigDict, model: Model | None, mesh: Mesh) -> Traced:
    """The training step of any task, traced and not yet compiled."""
    trained = trainee(config, model)
    step = training.compiled_step(config, trained, mesh)
    pretrained: Mapping[str, Params] = model.pretrained if model is not None else {}
    if config.task == "autoencoder":
        pretrained = autoencoder.pretrained(config)
    batch, several = abstract_batch(config, model), config.train.steps_per_dispatch
    if several > 1:
        batch = {name: ShapeDtypeStruct((several, *a.shape), a.dtype) for name, a in batch.items()}
    seed = jax.eval_shape(lambda: jax.random.key(0))
    return step.trace(training.abstract_state(config, trained), batch, seed, jax.tree.map(_shape, pretrained))


def traced_sampler(config: ConfigDict, model: Model, mesh: Mesh) -> tuple[Traced, int]:
    """(the traced program that draws samples by config.sample, the number of samples in a batch)."""
    if isinstance(model.schedule, Learned):
        model = model.bind(jax.jit(lambda: {"schedule": model.init(jax.random.key(0))["schedule"]})())
    everywhere = sharding.replicated(mesh)
    share = mesh.shape["data"] * mesh.shape["fsdp"]
    n = -(-config.sample.num // share) * share

    def held(a: Array | np.ndarray | ShapeDtypeStruct) -> ShapeDtypeStruct:
        return ShapeDtypeStruct(a.shape, a.dtype, sharding=everywhere)

    params = jax.tree.map(held, training.abstract_state(config, trainee(config, model)).ema)
    read = abstract_batch(config, model, precomputed=False)
    batch = {name: ShapeDtypeStruct((n, *a.shape[1:]), a.dtype) for name, a in read.items()}
    told = jax.eval_shape(model.entries, batch)
    program = sample_program(model, sampling(config), mesh)
    return program.trace(params, jax.tree.map(held, model.pretrained), ShapeDtypeStruct((n,), jnp.int32), told), n


def without_recomputation(config: ConfigDict) -> ConfigDict | None:
    """The config without recomputation for the gradient, by rematerialization or by a flash kernel of attention.

    None where config itself has none.
    """
    if config.task != "diffusion":
        return None
    flash = config.model.get("attention_kernel", "xla") != "xla" and (
        config.model.attention_kernel == "flash" or math.prod(data.shape(config)[:-1]) >= attention.FLASH_FROM
    )
    least = rematerializations(config)[0]
    if config.model.get("remat") == least and not flash:
        return None
    plain = config.copy_and_resolve_references()
    with plain.unlocked():
        if "remat" in plain.model:
            plain.model.remat = least
        if "attention_kernel" in plain.model:
            plain.model.attention_kernel = "xla"
    return plain


def rematerializations(config: ConfigDict) -> tuple[str | bool | None, ...]:
    """The values of model.remat, from the most memory to the least; (None,) where the network has no such option.

    "offload" is left out, since the roofline has no bandwidth of the host's memory.
    """
    if config.task != "diffusion" or "remat" not in config.model:
        return (None,)
    if isinstance(config.model.remat, bool):
        return (False, True)
    choices = family(config.model.name).rematerializations
    return tuple(choice for choice in choices if choice != "offload") or (config.model.remat,)


def laid_out(config: ConfigDict, *, fsdp: int, tensor: int, remat: str | bool | None, accumulate: int) -> ConfigDict:
    """config in another layout, which does not change the result of training."""
    changed = config.copy_and_resolve_references()
    with changed.unlocked():
        changed.mesh.update(data=-1, fsdp=fsdp, tensor=tensor)
        changed.train.accumulate = accumulate
        if remat is not None:
            changed.model.remat = remat
    return changed


def accumulations(config: ConfigDict, share: int) -> list[int]:
    """Powers of 2, ascending: the numbers of micro-batches of config's batch that `share` devices can divide."""
    options = [2**i for i in range(config.train.batch_size.bit_length())]
    return [n for n in options if config.train.batch_size % (share * n) == 0]


def check_task(config: ConfigDict, *, sample: bool) -> None:
    """Raises UserError for an unknown task, and with sample for a task without samples."""
    if config.task not in ("diffusion", "autoencoder", "classifier"):
        raise UserError(f"unknown task {config.task!r}; choose from diffusion, autoencoder, classifier")
    if sample and config.task != "diffusion":
        raise UserError(f"a run of task {config.task} draws no samples; leave --sample out")


def _shape(a: Array | np.ndarray | ShapeDtypeStruct) -> ShapeDtypeStruct:
    return ShapeDtypeStruct(a.shape, a.dtype)
