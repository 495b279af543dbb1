"""What is trained: a diffusion model, an autoencoder or a classifier. `train` treats all alike."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from diffusion_jax import build
from diffusion_jax.data.pipeline import TrainBatches
from diffusion_jax.data.sources import Source
from diffusion_jax.errors import UserError
from diffusion_jax.runs import frozen, preview, training_evaluation
from diffusion_jax.runs.training_evaluation import Evaluation
from diffusion_jax.runs.workdir import Workdir
from diffusion_jax.train import sharding
from diffusion_jax.train.interruptible import compiled_first
from diffusion_jax.train.state import Params, TrainState

_JUDGED = 256  # images that measure a classifier


@dataclasses.dataclass(frozen=True)
class Task:
    """One training: its state, its step and its data, and what is to be seen of it."""

    source: Source
    batches: TrainBatches
    abstract: TrainState
    init: Callable[[], TrainState]
    step: Callable[[TrainState, Any, Any], Any]  # compiled; the state is donated
    draw: Callable[[Params], np.ndarray] | None  # averaged parameters -> a picture; None: nothing to see
    measure: Callable[[Params], dict[str, float]] = lambda params: {}  # of averaged parameters; kept with a checkpoint
    keep: Callable[[], None] = lambda: None  # brings into the workdir what the model needs beside its parameters
    evaluation: Evaluation | None = None
    model: build.Model | None = None  # of a diffusion model


def task(config: ConfigDict, workdir: Workdir, mesh: Mesh) -> Task:
    """The training that config asks for; raises UserError, before the workdir is touched, for what does not fit."""
    if config.task not in TASKS:
        raise UserError(f"unknown task {config.task!r}; choose from {', '.join(TASKS)}")
    return TASKS[config.task](config, workdir, mesh)


def diffusion(config: ConfigDict, workdir: Workdir, mesh: Mesh) -> Task:
    """A diffusion model."""
    model = frozen.model(config, workdir)
    source = build.source(config)
    kept = workdir.tokenizer.is_file() and model.text is not None
    tokenizer = frozen.read_tokenizer(workdir) if kept else build.tokenizer(model, source)
    weights = sharding.to_mesh(model.frozen, sharding.replicated(mesh))
    step = compiled_first(build.compiled_step(config, model, mesh))
    return Task(
        source,
        build.batches(config, source, model, tokenizer, precomputed=build.precomputed(config, model)),
        build.abstract_state(config, model),
        lambda: build.initial_state(config, model, mesh),
        lambda state, batch, seed: step(state, batch, seed, weights),
        preview.samples(config, model, mesh, source, tokenizer, weights),
        keep=lambda: frozen.keep(config, workdir, model, tokenizer),
        evaluation=training_evaluation.of_diffusion(config, workdir.root, mesh, model, tokenizer, weights),
        model=model,
    )


def autoencoder(config: ConfigDict, workdir: Workdir, mesh: Mesh) -> Task:
    """An autoencoder; its checkpoints hold the standard deviation of its latents, by which they are scaled."""
    source = build.source(config)
    weights: Mapping[str, Params] = build.autoencoder.frozen(config)
    weights = sharding.to_mesh(weights, sharding.replicated(mesh))
    step = compiled_first(build.autoencoder.compiled_step(config, mesh))
    program = build.autoencoder.reconstruct_program(config)
    draw, measure = preview.reconstructions(config, source, mesh, program)
    return Task(
        source,
        build.batches(config, source),
        build.autoencoder.abstract_state(config),
        lambda: build.autoencoder.initial_state(config, mesh),
        lambda state, batch, seed: step(state, batch, seed, weights),
        draw,
        measure,
        evaluation=training_evaluation.of_autoencoder(config, workdir.root, mesh, program),
    )


def classifier(config: ConfigDict, workdir: Workdir, mesh: Mesh) -> Task:
    """A classifier of noisy images; its measure is how many of some images it knows, by time."""
    source = build.source(config)
    step = compiled_first(build.classifier.compiled_step(config, mesh))
    program = build.classifier.accuracy_program(config)
    batch = preview.first_batch(config, source, None, None, _JUDGED)

    def measure(params: Params) -> dict[str, float]:
        return {f"accuracy/{t}": float(program(params, batch["image"], batch["label"], t)) for t in (0.0, 0.25, 0.5)}

    return Task(
        source,
        build.batches(config, source),
        build.classifier.abstract_state(config),
        lambda: build.classifier.initial_state(config, mesh),
        lambda state, batch, seed: step(state, batch, seed, {}),
        None,
        measure,
    )


TASKS: dict[str, Callable[[ConfigDict, Workdir, Mesh], Task]] = {
    "diffusion": diffusion,
    "autoencoder": autoencoder,
    "classifier": classifier,
}
