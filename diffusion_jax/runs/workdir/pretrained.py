"""What a model needs beside its parameters: a tokenizer, an autoencoder and a published text encoder.

A workdir has copies of them, so that it needs no other folder. They come from the workdir from which the parameters
come: a run that goes on uses its own copies, and a run that starts with the parameters of another (`init_from`) uses
those of the other. A new run uses its data and its config. Copies of a run that never saved a checkpoint are replaced.
"""

import contextlib
import filecmp
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from diffusion_jax import experiment
from diffusion_jax.data.sources import Source
from diffusion_jax.data.tokens import Tokenizer
from diffusion_jax.errors import UserError
from diffusion_jax.interop.huggingface_text_pair import FIRST, SECOND, TOKENIZERS
from diffusion_jax.models.text import Text, published_folder, text_encoder
from diffusion_jax.report.atomic import replace_file
from diffusion_jax.runs.workdir.paths import Workdir
from diffusion_jax.train import sharding
from diffusion_jax.train.arrays import replicated_like
from diffusion_jax.train.checkpoint import Checkpoints, holds_checkpoint

TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)


def origin(config: ConfigDict, workdir: Workdir) -> Workdir | None:
    """The workdir from which the first parameters of a run in workdir come; None where they are random.

    Raises UserError where init_from names no workdir, where it names another one than the run started with, and for an
    imported workdir, which cannot be trained itself.
    """
    if workdir.imported.is_file():
        raise UserError(
            f"{workdir.root} was imported and has no optimizer to go on with; train with "
            f"--config.init_from={workdir.root} in a new --workdir"
        )
    if holds_checkpoint(workdir.checkpoints):
        before = workdir.read_config(quiet=True).init_from
        if config.init_from != before:
            raise UserError(
                f"init_from={config.init_from!r} was {before!r} when the run in {workdir.root} started, which now goes "
                f"on from its own checkpoint; leave it as it was, or give a new --workdir"
            )
        return workdir
    if not config.init_from:
        return None
    other = Workdir(Path(config.init_from))
    if not other.config.is_file():
        raise UserError(f"init_from={config.init_from} is not a workdir: it has no {other.config.name}; check the path")
    return other


def model(config: ConfigDict, origin: Workdir | None) -> experiment.Model:
    """The model of config, with the autoencoder and published text encoder of the workdir origin.

    Where origin is None they are those that config names. Raises UserError where config names an autoencoder or a text
    encoder that is not equal to the one in origin.
    """
    if origin is None:
        return experiment.model(config, read_autoencoder(Path(config.latent)) if config.latent else None)
    before = origin.read_config(quiet=True)
    autoencoder = _autoencoder_of(origin, before.latent, config.latent)
    old, new = published_folder(before.text), published_folder(config.text)
    if new:
        _check_copied(origin, origin.text_encoder)
    if new and new != old:
        family = before.text.partition("(")[0]
        instead = f"text=\"{family}(folder='{_given(old, origin.text_encoder)}')\""
        _check_same(origin, f"text={config.text}", lambda: _holds_same(origin.text_encoder, config.text), instead)
    return experiment.model(config, autoencoder, str(origin.text_encoder) if new else "")


def tokenizer(model: experiment.Model, source: Source, origin: Workdir | None) -> Tokenizer | None:
    """The tokenizer of the workdir origin; None for a model without text.

    Where origin is None it is the published tokenizer, or one learned from the captions of the source.
    """
    if model.text is None or origin is None:
        return experiment.tokenizer(model, source)
    return read_tokenizer(origin)


def keep(
    config: ConfigDict, workdir: Workdir, origin: Workdir | None, model: experiment.Model, tokenizer: Tokenizer | None
) -> None:
    """Copies what the model needs into the workdir of a run that starts, and replaces what was there.

    A run that goes on, whose origin is the workdir itself, has its copies already.
    """
    if origin is not None and origin.root == workdir.root:
        return
    for folder in (workdir.autoencoder, workdir.text_encoder):
        delete(folder)
    workdir.tokenizer.unlink(missing_ok=True)
    if config.latent:
        source = Workdir(Path(config.latent)) if origin is None else Workdir(origin.autoencoder)
        step = newest(source)
        checkpoint = source.checkpoints / str(step)
        copy({source.config: "config.json", checkpoint: f"checkpoints/{step}"}, workdir.autoencoder)
    if model.text is not None and model.text.folder:
        copy(_published_files(model.text), workdir.text_encoder)
    if tokenizer is not None:
        replace_file(workdir.tokenizer, tokenizer.to_json().encode())


def read_tokenizer(workdir: Workdir) -> Tokenizer:
    """The tokenizer in a workdir. Raises UserError where it has none."""
    if not workdir.tokenizer.is_file():
        raise UserError(f"{workdir.root} has no {workdir.tokenizer.name}, which a model that is told captions needs")
    return Tokenizer.from_json(workdir.tokenizer.read_text(encoding="utf-8"))


def read_autoencoder(root: Path) -> experiment.Autoencoder:
    """The autoencoder of a workdir at its newest checkpoint, with averaged parameters on the host.

    Raises UserError for a run of another task, and where there is no checkpoint.
    """
    workdir = Workdir(root)
    config = workdir.read_config()
    if config.task != "autoencoder":
        raise UserError(f"{root} has a run of task {config.task}; latent is the workdir of an autoencoder")
    step = newest(workdir)
    mesh = sharding.mesh(devices=jax.local_devices()[:1])
    with contextlib.closing(Checkpoints(workdir.checkpoints, read_only=True)) as checkpoints:
        abstract = experiment.autoencoder.trainee(config).abstract
        average = checkpoints.restore_tree("ema", replicated_like(abstract, mesh), step)
        std = checkpoints.meta(step)["measured"]["latent_std"]
    params = jax.tree.map(np.asarray, average["autoencoder"])
    return experiment.Autoencoder(experiment.autoencoder.network(config), params, 1 / std)


def same_autoencoder(a: experiment.Autoencoder | None, b: experiment.Autoencoder | None) -> bool:
    """Whether both give the same latents."""
    if a is None or b is None:
        return a is b
    return (a.network, a.scale) == (b.network, b.scale) and experiment.digest(a.params) == experiment.digest(b.params)


def read_classifier(root: Path, schedule: str, scale: float) -> experiment.Classifier:
    """The classifier of a workdir, to guide a model of this schedule, with averaged parameters on the host.

    Raises UserError for a run of another task, and for one of another schedule.
    """
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
    step = newest(workdir)
    with contextlib.closing(Checkpoints(workdir.checkpoints, read_only=True)) as checkpoints:
        average = checkpoints.restore_tree(
            "ema", replicated_like(experiment.classifier.trainee(config).abstract, mesh), step
        )
    return experiment.classifier.trained(config, jax.tree.map(np.asarray, average), scale)


def _autoencoder_of(origin: Workdir, old: str, new: str) -> experiment.Autoencoder | None:
    """The autoencoder in the workdir origin. old is `latent` of its config, new that of the config of the run."""
    if not new and not old:
        return None
    if not new or not old:
        kind = "in latents" if old else "in pixels"
        raise UserError(f"the model in {origin.root} works {kind}; give latent={old!r}, or train a new model")
    _check_copied(origin, origin.autoencoder)
    copy = read_autoencoder(origin.autoencoder)
    if new != old:
        same = lambda: same_autoencoder(copy, read_autoencoder(Path(new)))  # noqa: E731
        _check_same(origin, f"latent={new}", same, f"latent={_given(old, origin.autoencoder)}")
    return copy


def _given(old: str, copy: Path) -> Path | str:
    """The path to write in a config: the old one where it still exists, otherwise the copy in the workdir."""
    return old if Path(old).is_dir() else copy


def _check_copied(origin: Workdir, copy: Path) -> None:
    """Raises UserError unless the workdir has the folder copy."""
    if not copy.is_dir():
        raise UserError(
            f"{origin.root} has no {copy.name}, which its model needs beside its parameters; restore the workdir"
        )


def _check_same(origin: Workdir, key: str, same: Callable[[], bool], instead: str) -> None:
    """Raises UserError unless same() is true: the key of a config names what equals the copy in the workdir origin."""
    try:
        if same():
            return
        why = "it is another"
    except UserError as error:
        why = str(error)
    raise UserError(
        f"{key} does not name what the model in {origin.root} was trained with: {why}; give {instead}, or train a new "
        "model"
    )


def _holds_same(copy: Path, spec: str) -> bool:
    """Whether the folder copy has the files of the published text encoder of a spec."""
    text = text_encoder(spec)
    assert text is not None
    files = _published_files(text)
    if sorted(files.values()) != sorted(str(file.relative_to(copy)) for file in copy.rglob("*") if file.is_file()):
        return False
    return all(filecmp.cmp(file, copy / name, shallow=False) for file, name in files.items())


def _published_files(text: Text) -> dict[Path, str]:
    """{file: name in a copy} of a published text encoder. Of two in one, the folders are those of a pipeline."""
    folder = Path(text.folder)
    parts = [(folder, "", text.tokenizer, "")]
    if text.second_tokenizer:
        words = {FIRST: text.tokenizer, SECOND: text.second_tokenizer}
        parts = [(folder / name, f"{name}/", words[name], f"{TOKENIZERS[name]}/") for name in words]
    files: dict[Path, str] = {}
    for weights, name, tokenizer, words_name in parts:
        files |= {weights / file: f"{name}{file}" for file in ("config.json", "model.safetensors")}
        found = [file for file in TOKENIZER_FILES if (Path(tokenizer) / file).is_file()]
        files |= {Path(tokenizer) / file: f"{words_name}{file}" for file in found}
    return files


def newest(workdir: Workdir) -> int:
    """The newest step of the checkpoints. Raises UserError where there is none."""
    with contextlib.closing(Checkpoints(workdir.checkpoints, read_only=True)) as checkpoints:
        step = checkpoints.latest()
    if step is None:
        raise UserError(f"no checkpoint in {workdir.checkpoints}; train it first")
    return step


def delete(folder: Path) -> None:
    """Deletes the copies in a folder of a run that starts again."""
    shutil.rmtree(folder, ignore_errors=True)


def copy(files: Mapping[Path, str], folder: Path) -> None:
    """Copies {file or folder: its name} into a new folder, which appears whole."""
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
