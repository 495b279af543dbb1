"""The tasks of training, a diffusion model, an autoencoder or a classifier, behind one interface."""

import dataclasses
from collections.abc import Callable, Mapping

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from diffusion_jax import experiment
from diffusion_jax.data.pipeline import TrainBatches
from diffusion_jax.data.sources import Source
from diffusion_jax.errors import UserError
from diffusion_jax.runs.sample.examples import first_batch
from diffusion_jax.runs.train import long_captions, training_data, training_evaluation
from diffusion_jax.runs.train import preview_pictures as preview
from diffusion_jax.runs.train.training_evaluation import Evaluate
from diffusion_jax.runs.workdir import classes, pretrained, teacher
from diffusion_jax.runs.workdir.paths import Workdir
from diffusion_jax.train import sharding
from diffusion_jax.train.arrays import abstract_like
from diffusion_jax.train.interruptible import compiled_first
from diffusion_jax.train.state import Params, TrainState
from diffusion_jax.train.step import Batch, Metrics

_MEASURED = 256  # images on which the accuracy of a classifier is measured


@dataclasses.dataclass(frozen=True)
class Task:
    """One training: its data, state and step, and the functions that picture, measure and evaluate its parameters."""

    source: Source
    batches: TrainBatches
    abstract: TrainState  # shapes and shardings
    init: Callable[[], TrainState]
    step: Callable[[TrainState, Batch, jax.Array], tuple[TrainState, Metrics]]
    """The compiled step (state, batch, seed) -> (next state, metrics); the state is donated."""
    draw: preview.Draw | None  # averaged parameters -> a preview; None: there is none
    measure: Callable[[Params], dict[str, float]] = lambda params: {}  # of averaged parameters; saved with a checkpoint
    keep: Callable[[], None] = lambda: None  # copies into the workdir what the model needs beside its parameters
    evaluation: Evaluate | None = None
    model: experiment.Model | None = None  # of a diffusion model


def task(config: ConfigDict, workdir: Workdir, mesh: Mesh) -> Task:
    """The task of config.

    Raises UserError, before the workdir is touched, where config, data and pretrained networks do not fit.
    """
    if config.task not in TASKS:
        raise UserError(f"unknown task {config.task!r}; choose from {', '.join(TASKS)}")
    return TASKS[config.task](config, workdir, mesh, pretrained.origin(config, workdir))


def diffusion(config: ConfigDict, workdir: Workdir, mesh: Mesh, origin: Workdir | None) -> Task:
    """The training of a diffusion model; origin is the workdir of its pretrained weights (`pretrained.origin`)."""
    model = pretrained.model(config, origin)
    source, known = training_data.opened(config, workdir)
    model = dataclasses.replace(model, classes=known)
    tokenizer = pretrained.tokenizer(model, source, origin)
    precomputed = experiment.precomputed(config, model)
    model = teacher.with_teacher(config, workdir, origin, model, tokenizer)
    buckets = training_data.buckets(config, model, source)
    if model.text is not None and tokenizer is not None and "text" not in getattr(precomputed, "names", ()):
        long_captions.notice(model.text, tokenizer, source, config.sample.prompts)
    weights = sharding.to_mesh(model.pretrained, sharding.replicated(mesh))
    trainee = experiment.trainee(config, model)
    step = compiled_first(experiment.compiled_step(config, trainee, mesh))

    def keep() -> None:
        pretrained.keep(config, workdir, origin, model, tokenizer)
        teacher.keep(config, workdir, origin)
        classes.keep(workdir, known)

    return Task(
        source,
        experiment.batches(config, source, model, tokenizer, precomputed=precomputed, buckets=buckets),
        _abstract(config, trainee, mesh),
        lambda: experiment.initial_state(config, trainee, mesh),
        lambda state, batch, seed: step(state, batch, seed, weights),
        preview.samples(config, model, mesh, source, tokenizer, weights),
        keep=keep,
        evaluation=training_evaluation.of_diffusion(config, workdir.root, mesh, model, tokenizer, weights),
        model=model,
    )


def autoencoder(config: ConfigDict, workdir: Workdir, mesh: Mesh, origin: Workdir | None) -> Task:
    """The training of an autoencoder; its checkpoints hold the standard deviation that latents are divided by."""
    source, _ = training_data.opened(config, workdir)
    buckets = training_data.buckets(config, None, source)
    weights: Mapping[str, Params] = experiment.autoencoder.pretrained(config)
    weights = sharding.to_mesh(weights, sharding.replicated(mesh))
    trainee = experiment.autoencoder.trainee(config)
    step = compiled_first(experiment.compiled_step(config, trainee, mesh))
    program = experiment.autoencoder.reconstruct_program(config)
    draw, measure = preview.reconstructions(config, source, mesh, program)
    return Task(
        source,
        experiment.batches(config, source, buckets=buckets),
        _abstract(config, trainee, mesh),
        lambda: experiment.initial_state(config, trainee, mesh),
        lambda state, batch, seed: step(state, batch, seed, weights),
        draw,
        measure,
        evaluation=training_evaluation.of_autoencoder(config, workdir.root, mesh, program),
    )


def classifier(config: ConfigDict, workdir: Workdir, mesh: Mesh, origin: Workdir | None) -> Task:
    """The training of a classifier of noisy images; its measures are accuracies at three times."""
    experiment.training_sizes(config, None)  # raises where config asks for several
    source, known = training_data.opened(config, workdir)
    trainee = experiment.classifier.trainee(config)
    step = compiled_first(experiment.compiled_step(config, trainee, mesh))
    program = experiment.classifier.accuracy_program(config)
    batch = first_batch(config, source, None, None, _MEASURED)

    def measure(params: Params) -> dict[str, float]:
        return {f"accuracy/{t}": float(program(params, batch["x"], batch["label"], t)) for t in (0.0, 0.25, 0.5)}

    return Task(
        source,
        experiment.batches(config, source),
        _abstract(config, trainee, mesh),
        lambda: experiment.initial_state(config, trainee, mesh),
        lambda state, batch, seed: step(state, batch, seed, {}),
        None,
        measure,
        keep=lambda: classes.keep(workdir, known),
    )


def _abstract(config: ConfigDict, trainee: experiment.Trainee, mesh: Mesh) -> TrainState:
    return abstract_like(experiment.abstract_state(config, trainee), experiment.layout(config, trainee, mesh))


TASKS: dict[str, Callable[[ConfigDict, Workdir, Mesh, Workdir | None], Task]] = {
    "diffusion": diffusion,
    "autoencoder": autoencoder,
    "classifier": classifier,
}
