"""The images that an evaluation measures: samples of a diffusion model, or reconstructions of an autoencoder."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from diffusion_jax import experiment
from diffusion_jax.experiment.autoencoder import Reconstruction
from diffusion_jax.models.likelihood import own_conditions
from diffusion_jax.runs.evaluate.measured_samples import SampleBatch, SampleSource
from diffusion_jax.runs.evaluate.real_images import RealImages
from diffusion_jax.runs.sample.conditioning import SampleRequest, conditions, record
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
    batch_size: int,
    data_images: RealImages,
    captions: bool = False,
) -> SampleSource:
    """Samples of a model for seeds [N], drawn by its `sample_program`.

    Their conditions are those of sample_request. Where the model needs a request and sample_request is empty, sample i
    has the conditions of image i of data_images. captions: whether batches have their captions as text too.
    """
    model = trained.model
    as_images = any(condition.needs_request for condition in model.conditions) and not sample_request.anything
    captions = captions and model.text is not None
    restores = as_images and any(condition.restores for condition in model.conditions)
    cond = {} if as_images else conditions(sample_request, trained, seeds)

    def batches(first: int) -> Iterator[SampleBatch]:
        if as_images:
            for i, (_, examples) in enumerate(data_images.batches()):
                if i >= first:
                    texts = [data_images.source[int(k)]["caption"] for k in examples["index"]] if captions else []
                    yield SampleBatch(own_conditions(model, examples), examples["x"] if restores else None, texts)
            return
        for start in range(first * batch_size, len(seeds), batch_size):
            take = np.arange(start, start + batch_size).clip(max=len(seeds) - 1)
            texts = [sample_request.prompts[k % len(sample_request.prompts)] for k in take] if captions else []
            yield SampleBatch({name: a[take] for name, a in cond.items()}, captions=texts)

    return SampleSource(
        mesh=trained.mesh,
        kind=data_images.kind,
        shape=model.shape,
        seeds=seeds,
        batch_size=batch_size,
        draw=lambda seeds, cond: program(trained.params, trained.pretrained, seeds, dict(cond)),
        batches=batches,
        conditions="what the real images are told" if as_images else _record(sample_request, trained, cond),
        restores=restores,
        captioned=model.text is not None,
    )


def of_reconstructions(
    program: Callable[..., Reconstruction], params: Params, mesh: Mesh, seeds: np.ndarray, data_images: RealImages
) -> SampleSource:
    """The data's images as an autoencoder decodes the means of their latents; program is its `reconstruct_program`."""

    def batches(first: int) -> Iterator[SampleBatch]:
        for i, (_, examples) in enumerate(data_images.batches()):
            if i >= first:
                yield SampleBatch({"x": examples["x"]}, examples["x"])

    return SampleSource(
        mesh=mesh,
        kind=data_images.kind,
        shape=experiment.shape(data_images.config),
        seeds=seeds,
        batch_size=data_images.size,
        draw=lambda seeds, cond: program(params, cond["x"]).images,
        batches=batches,
        conditions="the real images",
        restores=True,
        reconstructs=True,
    )


def restore_autoencoder(config: ConfigDict, root: Path, step: int | None, average: bool | float) -> tuple[Params, int]:
    """(the parameters of an autoencoder's workdir on every device, their step). Raises UserError as `choose_step`."""
    with contextlib.closing(Checkpoints(Workdir(root).checkpoints, read_only=True)) as checkpoints:
        step = choose_step(checkpoints, step)
        abstract = experiment.autoencoder.trainee(config).abstract
        return restore_weights(checkpoints, config, abstract, sharding.mesh(), average, step), step


def _record(sample_request: SampleRequest, trained: Trained, cond: Mapping[str, np.ndarray]) -> Mapping[str, object]:
    """The conditions of samples as JSON, classes by name."""
    labels = (
        {"labels": trained.label_names(cond["label"][: len(sample_request.labels)])} if sample_request.labels else {}
    )
    return {**record(sample_request), **labels}
