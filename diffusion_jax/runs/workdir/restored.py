"""A trained model from a workdir, with the networks that guide it, for every command that samples."""

import contextlib
import dataclasses
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from diffusion_jax import experiment
from diffusion_jax.data.classes import Classes, known
from diffusion_jax.data.tokens import Tokenizer
from diffusion_jax.errors import UserError
from diffusion_jax.runs.workdir import classes, snapshots
from diffusion_jax.runs.workdir import pretrained as found
from diffusion_jax.runs.workdir.paths import Workdir
from diffusion_jax.train import sharding
from diffusion_jax.train.arrays import replicated_like
from diffusion_jax.train.checkpoint import Checkpoints
from diffusion_jax.train.state import Params


@dataclasses.dataclass(frozen=True)
class GuideRequest:
    """The workdirs of networks that guide a model, as the flags of a command give them."""

    classifier: Path | None = None
    classifier_scale: float = 1.0
    weak: Path | None = None  # of a weaker model, from which guidance leads away
    weak_step: int | None = None  # its step; None: the newest


NO_GUIDES = GuideRequest()


@dataclasses.dataclass(frozen=True)
class Trained:
    """A model with the parameters of a checkpoint, on all devices of this machine."""

    model: experiment.Model
    how: experiment.Sampling
    mesh: Mesh
    params: Params
    pretrained: dict[str, Params]
    step: int
    weights: str  # `weights_name`
    tokenizer: Tokenizer | None
    guides: experiment.Guides
    config: ConfigDict  # of the run

    @property
    def share(self) -> int:
        """The number of which the size of a batch of samples must be a multiple."""
        return self.mesh.shape["data"] * self.mesh.shape["fsdp"]

    @property
    def num_classes(self) -> int:
        """The number of classes that a sample can have: those of the model or, if it has none, of the classifier."""
        classifier = self.guides.classifier
        return self.model.num_classes or (classifier.num_classes if classifier else 0)

    @property
    def classes(self) -> Classes | None:
        """The classes that a sample can have; None for none."""
        classifier = self.guides.classifier
        return self.model.classes if self.model.num_classes else classifier.classes if classifier else None

    def label_names(self, labels: np.ndarray) -> list[str]:
        """The name of each of labels [N], or its number where names are not known."""
        of = self.classes or known(None, self.num_classes)
        return [of.name(int(label)) for label in labels]


def restore(
    root: Path,
    *,
    step: int | None,
    average: bool | float,
    overrides: Mapping[str, object],
    guided_by: GuideRequest = NO_GUIDES,
) -> Trained:
    """The model of the workdir root at a step (None: the newest), with the networks that guide it.

    average is False for the parameters as they are, True for their average, or the length sigma_rel of an average.
    overrides replace fields of the config's `Sampling` where they are not None. Raises UserError where there is no such
    workdir or checkpoint and, before arrays are read, for a sampling that does not fit the model.
    """
    workdir = Workdir(root)
    config = workdir.read_config()
    if config.task != "diffusion":
        raise UserError(f"{root} has a run of task {config.task}; samples are drawn from one of task diffusion")
    mesh = sharding.mesh()
    model = dataclasses.replace(found.model(config, workdir), classes=classes.of_workdir(config, workdir))
    chosen = {name: value for name, value in overrides.items() if value is not None}
    how = experiment.sampling(config, chosen)
    tokenizer = None if model.text is None else found.read_tokenizer(workdir)
    classifier, weak = None, None
    if guided_by.classifier is not None:
        classifier = found.read_classifier(guided_by.classifier, config.schedule, guided_by.classifier_scale)
        classifier = _with_classes(classifier, guided_by.classifier, model)
    if guided_by.weak is not None:
        weak = _weak(guided_by.weak, guided_by.weak_step, config, model, average=bool(average))
        check_same_encoders(f"--weak={guided_by.weak}", weak, model, tokenizer)
    guides = experiment.Guides(classifier, weak.model if weak else None)
    experiment.sample_program(model, how, mesh, guides)  # raises where the sampling does not fit
    with contextlib.closing(Checkpoints(workdir.checkpoints, read_only=True)) as checkpoints:
        step = choose_step(checkpoints, step)
        params = restore_weights(checkpoints, config, model.abstract, mesh, average, step)
    pretrained = model.pretrained | ({"classifier": classifier.params} if classifier else {})
    pretrained = jax.device_put(pretrained, sharding.replicated(mesh)) | ({"weak": weak.params} if weak else {})
    weights = weights_name(average)
    return Trained(model.bind(params), how, mesh, params, pretrained, step, weights, tokenizer, guides, config)


def _with_classes(classifier: experiment.Classifier, root: Path, model: experiment.Model) -> experiment.Classifier:
    """The classifier of the workdir root with its classes, and its numbers of the model's classes."""
    workdir = Workdir(root)
    own = classes.of_workdir(workdir.read_config(), workdir)
    try:
        numbers = classes.same_order(model.classes, own)
    except UserError as error:
        raise UserError(f"--classifier={root} knows other classes than the model: {error}; train one of its") from None
    return dataclasses.replace(classifier, classes=own, numbers=numbers)


def weights_name(average: bool | float) -> str:
    """The name of an average, as --ema gives it: ema, params, or ema(sigma_rel=LENGTH)."""
    return ("ema" if average else "params") if isinstance(average, bool) else f"ema(sigma_rel={average:g})"


def restore_weights(
    checkpoints: Checkpoints, config: ConfigDict, abstract: Params, mesh: Mesh, average: bool | float, step: int
) -> Params:
    """The parameters at a step on every device: as they are, their average, or the average of a length sigma_rel.

    abstract has their shapes, and average is as in `restore`.
    """
    name = "ema" if average else "params"
    if isinstance(average, bool):
        return checkpoints.restore_tree(name, replicated_like(abstract, mesh), step)
    return snapshots.reconstruct(checkpoints.directory.parent, config, abstract, mesh, average, step)


def _weak(root: Path, step: int | None, config: ConfigDict, model: experiment.Model, *, average: bool) -> Trained:
    """The weaker model of autoguidance. Raises UserError unless it has the conditions and the data of the model."""
    other = Workdir(root).read_config()
    same = ("schedule", "text", "spatial")
    differ = [name for name in same if other[name] != config[name]]
    differ += ["data.shape"] if other.data.shape != config.data.shape else []
    differ += ["model.num_classes"] if other.model.num_classes != config.model.num_classes else []
    if differ:
        raise UserError(f"--weak={root} is told or draws other things than the model; its {', '.join(differ)} differs")
    try:
        reordered = classes.same_order(model.classes, classes.of_workdir(other, Workdir(root)))
    except UserError as error:
        raise UserError(f"--weak={root} was trained on other classes than the model: {error}") from None
    if reordered is not None:
        raise UserError(f"--weak={root} numbers its classes in another order than the model; train one anew")
    alone = {"guidance": 1.0, "guidance_rescale": 0.0, "guidance_interval": ()}
    return restore(root, step=step, average=average, overrides=alone)


def check_same_encoders(key: str, other: Trained, model: experiment.Model, tokenizer: Tokenizer | None) -> None:
    """Raises UserError where the other model has another tokenizer, text encoder or autoencoder than model.

    Both get the same tokens, features and latents. key is what a user gave to name the other: "--weak=WORKDIR".
    """
    first, second = ("" if each is None else each.to_json() for each in (tokenizer, other.tokenizer))
    texts = [m.pretrained.get("text") for m in (model, other.model)]
    differ = {
        "tokenizer": first != second,
        "text encoder": None not in texts and experiment.digest(texts[0]) != experiment.digest(texts[1]),
        "autoencoder": not found.same_autoencoder(model.autoencoder, other.model.autoencoder),
    }
    if wrong := [name for name, is_so in differ.items() if is_so]:
        raise UserError(
            f"{key} has another {' and '.join(wrong)} than the model; give the workdir of a run with the same"
        )


def seeds_from(seed: int, num: int) -> np.ndarray:
    """The seeds seed, seed + 1, ..., int32 [num]. Raises UserError for less than 1, and beyond 2^31."""
    if num < 1:
        raise UserError(f"--num is at least 1; got {num}")
    if not 0 <= seed <= 2**31 - num:
        raise UserError(f"--seed is at least 0 and --seed + --num at most 2^31; got {seed}")
    return np.arange(seed, seed + num, dtype=np.int32)


def choose_step(checkpoints: Checkpoints, step: int | None) -> int:
    """The step, or the newest step for None. Raises UserError where there is no such checkpoint."""
    steps = checkpoints.steps()
    if not steps:
        raise UserError(f"no checkpoint in {checkpoints.directory}; train first, or check --workdir")
    if step is not None and step not in steps:
        raise UserError(
            f"no checkpoint of step {step} in {checkpoints.directory}; there are {', '.join(map(str, steps))}"
        )
    return steps[-1] if step is None else step
