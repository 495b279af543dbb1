"""The checkpoint of a workdir that is exported."""

import contextlib
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import NotRequired, TypedDict

import jax
from ml_collections import ConfigDict

from diffusion_jax import experiment
from diffusion_jax.errors import UserError
from diffusion_jax.modalities import Image
from diffusion_jax.runs.workdir.paths import Workdir
from diffusion_jax.runs.workdir.restored import Trained, choose_step, restore, restore_weights, weights_name
from diffusion_jax.train import sharding
from diffusion_jax.train.checkpoint import Checkpoints
from diffusion_jax.train.state import Params


@dataclasses.dataclass(frozen=True)
class ExportedRun:
    """The config and parameters of a workdir at one checkpoint."""

    workdir: Workdir
    config: ConfigDict
    step: int
    weights: str  # `weights_name`
    params: Params
    trained: Trained | None  # of task diffusion
    scale: float | None  # of an autoencoder: the factor of its latents


class ExportRecord(TypedDict):
    """The origin of an export, as export.json has it."""

    workdir: str
    checkpoint_step: int
    weights: str
    format: str
    model: str  # the pipeline, the model that is alone, or the run's task
    dtype: str
    sampling: dict[str, object] | None  # the fields of `Sampling`; None: the run does not sample
    call: Mapping[str, float] | None  # arguments of the pipeline's call
    notes: list[str]  # a sentence for each difference between diffusers and this package
    versions: dict[str, str]
    program: NotRequired["ProgramRecord"]  # of --format=stablehlo
    check: NotRequired[str]  # the result of --check


class ProgramRecord(TypedDict):
    """What a record says of an exported program; B is any number of samples."""

    platforms: list[str]
    inputs: dict[str, list[object]]  # {name: [type, size ...]}
    output: list[object]
    calling_convention: int  # of jax.export


def read(root: Path, *, step: int | None, average: bool | float, sampling: Mapping[str, object]) -> ExportedRun:
    """The run in root at step (None: the newest). Values of sampling that are not None replace keys of config.sample.

    Raises UserError where there is no such checkpoint, or sampling is given for a run that does not sample.
    """
    workdir = Workdir(root)
    config = workdir.read_config()
    if config.task == "diffusion":
        trained = restore(root, step=step, average=average, overrides=sampling)
        return ExportedRun(workdir, config, trained.step, trained.weights, trained.params, trained, None)
    if given := [name for name, value in sampling.items() if value is not None]:
        raise UserError(f"--{given[0]} is of a diffusion model; {root} has a run of task {config.task}")
    of_task = experiment.autoencoder if config.task == "autoencoder" else experiment.classifier
    mesh = sharding.mesh(devices=jax.local_devices()[:1])
    with contextlib.closing(Checkpoints(workdir.checkpoints, read_only=True)) as checkpoints:
        step = choose_step(checkpoints, step)
        abstract = of_task.trainee(config).abstract
        params = restore_weights(checkpoints, config, abstract, mesh, average, step)
        measured = checkpoints.meta(step)["measured"]
    scale = 1 / measured["latent_std"] if config.task == "autoencoder" else None
    return ExportedRun(workdir, config, step, weights_name(average), params, None, scale)


def image_shape(config: ConfigDict) -> tuple[int, int, int]:
    """(H, W, C) of the images of a run's data; raises UserError for data that are not images."""
    if not isinstance(kind := experiment.modality(config), Image):
        raise UserError(
            f"diffusers' models here are of images, and this run is of {kind.noun}; give --format=safetensors"
        )
    height, width, channels = experiment.shape(config)
    return height, width, channels
