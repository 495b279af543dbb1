"""What a model needs beside its own parameters, found in its workdir or brought there: a run stands on its own."""

import contextlib
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from diffusion_jax import build
from diffusion_jax.data.tokens import Tokenizer
from diffusion_jax.errors import UserError
from diffusion_jax.report.atomic import replace_file
from diffusion_jax.runs.workdir import Workdir
from diffusion_jax.train import sharding
from diffusion_jax.train.checkpoint import Checkpoints, whole

_TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)


def model(config: ConfigDict, workdir: Workdir) -> build.Model:
    """The model of config, its autoencoder and published text encoder from the workdir or, before these are copied
    there by `keep`, from where config says.
    """
    autoencoder = None
    if config.latent:
        autoencoder = read_autoencoder(workdir.autoencoder if workdir.autoencoder.is_dir() else Path(config.latent))
    folder = str(workdir.text_encoder) if workdir.text_encoder.is_dir() else ""
    return build.model(config, autoencoder, folder)


def keep(config: ConfigDict, workdir: Workdir, model: build.Model, tokenizer: Tokenizer | None) -> None:
    """Copies into the workdir what the model needs and is not there: autoencoder, text encoder, tokenizer."""
    if config.latent and not workdir.autoencoder.is_dir():
        source = Workdir(Path(config.latent))
        step = _newest(source)
        checkpoint = source.checkpoints / str(step)
        _copy({source.config: "config.json", checkpoint: f"checkpoints/{step}"}, workdir.autoencoder)
    if model.text is not None and model.text.folder and not workdir.text_encoder.is_dir():
        weights, words = Path(model.text.folder), Path(model.text.tokenizer)
        files = [weights / "config.json", weights / "model.safetensors"]
        files += [words / name for name in _TOKENIZER_FILES if (words / name).is_file()]
        _copy({file: file.name for file in files}, workdir.text_encoder)
    if tokenizer is not None and not workdir.tokenizer.is_file():
        replace_file(workdir.tokenizer, tokenizer.to_json().encode())


def read_tokenizer(workdir: Workdir) -> Tokenizer:
    """The tokenizer that `keep` left there."""
    if not workdir.tokenizer.is_file():
        raise UserError(f"{workdir.root} has no {workdir.tokenizer.name}, which a model that is told captions needs")
    return Tokenizer.from_json(workdir.tokenizer.read_text())


def read_autoencoder(root: Path) -> build.Autoencoder:
    """The autoencoder of a workdir, its averaged parameters on the host, at its newest checkpoint."""
    workdir = Workdir(root)
    config = workdir.read_config()
    if config.task != "autoencoder":
        raise UserError(f"{root} has a run of task {config.task}; latent is the workdir of an autoencoder")
    step = _newest(workdir)
    mesh = sharding.mesh(devices=jax.local_devices()[:1])
    with contextlib.closing(Checkpoints(workdir.checkpoints, read_only=True)) as checkpoints:
        abstract = build.autoencoder.trainee(config).abstract
        average = checkpoints.restore_tree("ema", whole(abstract, mesh), step)
        std = checkpoints.meta(step)["measured"]["latent_std"]
    params = jax.tree.map(np.asarray, average["autoencoder"])
    return build.Autoencoder(build.autoencoder.network(config), params, 1 / std)


def read_classifier(root: Path, schedule: str, scale: float) -> build.Classifier:
    """The classifier of a workdir, to guide a model of this schedule; its averaged parameters on the host."""
    workdir = Workdir(root)
    config = workdir.read_config()
    if config.task != "classifier":
        raise UserError(f"{root} has a run of task {config.task}; --classifier is the workdir of a classifier")
    if config.schedule != schedule:
        raise UserError(
            f"the classifier in {root} knows noise of schedule {config.schedule!r}, the model draws with {schedule!r}; "
            "train one with the model's"
        )
    mesh = sharding.mesh(devices=jax.local_devices()[:1])
    step = _newest(workdir)
    with contextlib.closing(Checkpoints(workdir.checkpoints, read_only=True)) as checkpoints:
        average = checkpoints.restore_tree("ema", whole(build.classifier.trainee(config).abstract, mesh), step)
    return build.classifier.trained(config, jax.tree.map(np.asarray, average), scale)


def _newest(workdir: Workdir) -> int:
    with contextlib.closing(Checkpoints(workdir.checkpoints, read_only=True)) as checkpoints:
        step = checkpoints.latest()
    if step is None:
        raise UserError(f"no checkpoint in {workdir.checkpoints}; train the autoencoder first")
    return step


def _copy(files: Mapping[Path, str], folder: Path) -> None:
    """Copies files and folders to their names in a new folder, all of it or nothing."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        unfinished.chmod(0o755)  # mkdtemp makes it private
        for source, name in files.items():
            target = unfinished / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target)
            else:
                shutil.copy2(source, target)
        unfinished.rename(folder)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
