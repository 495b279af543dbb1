"""What an evaluation measures: the samples of a diffusion model, or what an autoencoder makes of images."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from diffusion_jax import experiment
from diffusion_jax.models.likelihood import own_conditions
from diffusion_jax.runs.evaluate.measured_samples import SampleBatch, SampleSource
from diffusion_jax.runs.evaluate.real_images import RealImages
from diffusion_jax.runs.sample.conditions import SampleRequest, conditions, record
from diffusion_jax.runs.workdir.paths import Workdir
from diffusion_jax.runs.workdir.restored import Trained, choose_step, restore_weights
from diffusion_jax.train import sharding
from diffusion_jax.train.checkpoint import Checkpoints
from diffusion_jax.train.state import Params


def of_samples(
    trained: Trained,
    program: Callable[..., jax.Array],
    sample_request: SampleRequest,
    seeds: np.ndarray,
    size: int,
    own: RealImages,
    captions: bool = False,
) -> SampleSource:
    """Samples of a model, by its `sample_program`: told what sample_request says or, where the model needs a
    request and there is none, sample i what image i of own is. captions: they are handed over as text too.
    """
    model = trained.model
    as_images = any(condition.needs_request for condition in model.conditions) and not sample_request.anything
    captions = captions and model.text is not None
    restores = as_images and any(condition.restores for condition in model.conditions)
    cond = {} if as_images else conditions(sample_request, trained, seeds)

    def told(first: int) -> Iterator[SampleBatch]:
        if as_images:
            for i, (_, examples) in enumerate(own.batches()):
                if i >= first:
                    said = [own.source[int(k)]["caption"] for k in examples["index"]] if captions else []
                    yield SampleBatch(own_conditions(model, examples), examples["x"] if restores else None, said)
            return
        for start in range(first * size, len(seeds), size):
            take = np.arange(start, start + size).clip(max=len(seeds) - 1)
            said = [sample_request.prompts[k % len(sample_request.prompts)] for k in take] if captions else []
            yield SampleBatch({name: a[take] for name, a in cond.items()}, captions=said)

    return SampleSource(
        trained.mesh,
        own.kind,
        model.shape,
        lambda seeds, cond: program(trained.params, trained.pretrained, seeds, dict(cond)),
        told,
        "what the real images are told" if as_images else _told(sample_request, trained, cond),
        restores,
        captioned=model.text is not None,
    )


def of_reconstructions(program: Callable[..., Any], params: Params, mesh: Any, own: RealImages) -> SampleSource:
    """The images of own through an autoencoder, by its `reconstruct_program`: of the latents' means."""

    def told(first: int) -> Iterator[SampleBatch]:
        for i, (_, examples) in enumerate(own.batches()):
            if i >= first:
                yield SampleBatch({"x": examples["x"]}, examples["x"])

    shape = experiment.shape(own.config)
    draw = lambda seeds, cond: program(params, cond["x"]).images  # noqa: E731
    return SampleSource(mesh, own.kind, shape, draw, told, "the real images", restores=True, reconstructs=True)


def restore_autoencoder(config: ConfigDict, root: Path, step: int | None, average: bool | float) -> tuple[Params, int]:
    """(the parameters of an autoencoder's workdir, on every device, their step)."""
    with contextlib.closing(Checkpoints(Workdir(root).checkpoints, read_only=True)) as checkpoints:
        step = choose_step(checkpoints, step)
        abstract = experiment.autoencoder.trainee(config).abstract
        return restore_weights(checkpoints, config, abstract, sharding.mesh(), average, step), step


def _told(sample_request: SampleRequest, trained: Trained, cond: Mapping[str, np.ndarray]) -> Mapping[str, Any]:
    """What samples are told as JSON takes it, classes by name."""
    labels = (
        {"labels": trained.label_names(cond["label"][: len(sample_request.labels)])} if sample_request.labels else {}
    )
    return {**record(sample_request), **labels}
