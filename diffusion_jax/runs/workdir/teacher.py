"""The trained model that an objective learns from. The run has a copy of its workdir, and needs no other.

A run that starts reads config.teacher, and a run that goes on its copy.
"""

import dataclasses
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from diffusion_jax import experiment
from diffusion_jax.data.tokens import Tokenizer
from diffusion_jax.errors import UserError
from diffusion_jax.runs.workdir import classes, pretrained
from diffusion_jax.runs.workdir.paths import Workdir
from diffusion_jax.runs.workdir.restored import Trained, check_same_encoders, restore


def with_teacher(
    config: ConfigDict,
    workdir: Workdir | None,
    origin: Workdir | None,
    model: experiment.Model,
    tokenizer: Tokenizer | None,
) -> experiment.Model:
    """model with the teacher that config names, at its newest checkpoint with averaged parameters.

    Where config names none, it is model itself. origin is that of the run in workdir (`pretrained.origin`); both are
    None in a plan. Raises UserError where the teacher has another schedule, shape, classes, conditions, tokenizer or
    encoders than the model, and where a run that goes on had another teacher.
    """
    if not config.teacher:
        return model
    root = Path(config.teacher)
    if workdir is not None and _goes_on(workdir, origin):
        before = workdir.read_config(quiet=True).teacher
        if config.teacher != before:
            raise UserError(
                f"teacher={config.teacher!r} was {before!r} when the run in {workdir.root} started; leave it as it "
                "was, or give a new --workdir"
            )
        root = workdir.teacher
    trained = restore(root, step=None, average=True, overrides={})
    teacher = experiment.Teacher(trained.model, jax.tree.map(np.asarray, trained.params))
    teacher.check_fits(model)
    _check_classes(config.teacher, trained, model)
    if workdir is not None:
        check_same_encoders(f"teacher={config.teacher}", trained, model, tokenizer)
    return dataclasses.replace(model, teacher=teacher)


def keep(config: ConfigDict, workdir: Workdir, origin: Workdir | None) -> None:
    """Copies what `with_teacher` reads of the teacher's workdir into that of a run that starts."""
    if _goes_on(workdir, origin):
        return
    pretrained.delete(workdir.teacher)
    if not config.teacher:
        return
    source = Workdir(Path(config.teacher))
    checkpoint = source.checkpoints / str(pretrained.newest(source))
    parts = (source.classes, source.tokenizer, source.autoencoder, source.text_encoder)
    files = {source.config: source.config.name, checkpoint: f"{source.checkpoints.name}/{checkpoint.name}"}
    pretrained.copy(files | {part: part.name for part in parts if part.exists()}, workdir.teacher)


def _goes_on(workdir: Workdir, origin: Workdir | None) -> bool:
    """Whether the run in workdir goes on from its own checkpoint."""
    return origin is not None and origin.root == workdir.root


def _check_classes(path: str, trained: Trained, model: experiment.Model) -> None:
    """Raises UserError unless the teacher numbers its classes as model does."""
    try:
        reordered = classes.same_order(model.classes, trained.model.classes)
    except UserError as error:
        raise UserError(f"teacher={path} was trained on other classes than the model gets: {error}") from None
    if reordered is not None:
        raise UserError(f"teacher={path} numbers its classes in another order than the data; give them in its order")
