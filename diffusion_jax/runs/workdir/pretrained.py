"""What a model needs beside its own parameters comes from where these come from: a run stands on its own.

That is the tokenizer, a copy of the autoencoder and one of a published text encoder. Of a run that goes on they are its
workdir's; of one that starts with another's parameters (`init_from`), the other's; of a new run, the data's and the
config's. What a run that never saved a checkpoint left in a workdir is not used, and is replaced.
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
from diffusion_jax.interop import huggingface_text
from diffusion_jax.models.text import published_folder
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
    """The workdir that the first parameters of a run in workdir come from; None where they are drawn at random.

    Raises UserError where init_from names no workdir, or another one than this run started with.
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
    """The model of config, its autoencoder and published text encoder of the workdir that its parameters come from or,
    where they come from none, of where config says.

    Raises UserError where config says another autoencoder or text encoder than that workdir's.
    """
    if origin is None:
        return experiment.model(config, read_autoencoder(Path(config.latent)) if config.latent else None)
    before = origin.read_config(quiet=True)
    autoencoder = _autoencoder_of(origin, before.latent, config.latent)
    old, new = published_folder(before.text), published_folder(config.text)
    if new:
        _check_kept(origin, origin.text_encoder)
    if new and new != old:
        instead = f"text=\"huggingface(folder='{_given(old, origin.text_encoder)}')\""
        _check_same(origin, f"text={config.text}", lambda: _holds_same(origin.text_encoder, Path(new)), instead)
    return experiment.model(config, autoencoder, str(origin.text_encoder) if new else "")


def tokenizer(model: experiment.Model, source: Source, origin: Workdir | None) -> Tokenizer | None:
    """The tokenizer of the workdir that the model's parameters come from or, where they come from none, the published
    one or one learned from the captions; None for a model without text.
    """
    if model.text is None or origin is None:
        return experiment.tokenizer(model, source)
    return read_tokenizer(origin)


def keep(
    config: ConfigDict, workdir: Workdir, origin: Workdir | None, model: experiment.Model, tokenizer: Tokenizer | None
) -> None:
    """Copies into the workdir of a run that starts what its model needs, in place of what was there.

    A run that goes on, whose origin is the workdir, has its copies.
    """
    if origin is not None and origin.root == workdir.root:
        return
    for folder in (workdir.autoencoder, workdir.text_encoder):
        shutil.rmtree(folder, ignore_errors=True)
    workdir.tokenizer.unlink(missing_ok=True)
    if config.latent:
        source = Workdir(Path(config.latent)) if origin is None else Workdir(origin.autoencoder)
        step = _newest(source)
        checkpoint = source.checkpoints / str(step)
        _copy({source.config: "config.json", checkpoint: f"checkpoints/{step}"}, workdir.autoencoder)
    if model.text is not None and model.text.folder:
        _copy(_published_files(Path(model.text.folder), Path(model.text.tokenizer)), workdir.text_encoder)
    if tokenizer is not None:
        replace_file(workdir.tokenizer, tokenizer.to_json().encode())


def read_tokenizer(workdir: Workdir) -> Tokenizer:
    """The tokenizer that `keep` left there."""
    if not workdir.tokenizer.is_file():
        raise UserError(f"{workdir.root} has no {workdir.tokenizer.name}, which a model that is told captions needs")
    return Tokenizer.from_json(workdir.tokenizer.read_text(encoding="utf-8"))


def read_autoencoder(root: Path) -> experiment.Autoencoder:
    """The autoencoder of a workdir, its averaged parameters on the host, at its newest checkpoint."""
    workdir = Workdir(root)
    config = workdir.read_config()
    if config.task != "autoencoder":
        raise UserError(f"{root} has a run of task {config.task}; latent is the workdir of an autoencoder")
    step = _newest(workdir)
    mesh = sharding.mesh(devices=jax.local_devices()[:1])
    with contextlib.closing(Checkpoints(workdir.checkpoints, read_only=True)) as checkpoints:
        abstract = experiment.autoencoder.trainee(config).abstract
        average = checkpoints.restore_tree("ema", replicated_like(abstract, mesh), step)
        std = checkpoints.meta(step)["measured"]["latent_std"]
    params = jax.tree.map(np.asarray, average["autoencoder"])
    return experiment.Autoencoder(experiment.autoencoder.network(config), params, 1 / std)


def same_autoencoder(a: experiment.Autoencoder | None, b: experiment.Autoencoder | None) -> bool:
    """Whether the latents of both are the same."""
    if a is None or b is None:
        return a is b
    return (a.network, a.scale) == (b.network, b.scale) and experiment.digest(a.params) == experiment.digest(b.params)


def read_classifier(root: Path, schedule: str, scale: float) -> experiment.Classifier:
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
        average = checkpoints.restore_tree(
            "ema", replicated_like(experiment.classifier.trainee(config).abstract, mesh), step
        )
    return experiment.classifier.trained(config, jax.tree.map(np.asarray, average), scale)


def _autoencoder_of(origin: Workdir, old: str, new: str) -> experiment.Autoencoder | None:
    """The autoencoder that a workdir keeps; old is the key `latent` of its config, new that of the config asked for."""
    if not new and not old:
        return None
    if not new or not old:
        kind = "in latents" if old else "in pixels"
        raise UserError(f"the model in {origin.root} works {kind}; give latent={old!r}, or train a new model")
    _check_kept(origin, origin.autoencoder)
    kept = read_autoencoder(origin.autoencoder)
    if new != old:
        same = lambda: same_autoencoder(kept, read_autoencoder(Path(new)))  # noqa: E731
        _check_same(origin, f"latent={new}", same, f"latent={_given(old, origin.autoencoder)}")
    return kept


def _given(old: str, copy: Path) -> Path | str:
    """What to write in a config for what a workdir keeps: as before where that is still there, else the copy."""
    return old if Path(old).is_dir() else copy


def _check_kept(origin: Workdir, copy: Path) -> None:
    if not copy.is_dir():
        raise UserError(
            f"{origin.root} has no {copy.name}, which its model needs beside its parameters; restore the workdir"
        )


def _check_same(origin: Workdir, key: str, same: Callable[[], bool], instead: str) -> None:
    """Raises UserError unless what a key of a config names is the same as the copy that a workdir keeps of it."""
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


def _holds_same(copy: Path, folder: Path) -> bool:
    """Whether a workdir's copy of a published text encoder is one of the encoder in folder."""
    files = _published_files(folder, Path(huggingface_text.load(str(folder)).tokenizer))
    if sorted(files.values()) != sorted(file.name for file in copy.iterdir()):
        return False
    return all(filecmp.cmp(file, copy / name, shallow=False) for file, name in files.items())


def _published_files(weights: Path, words: Path) -> dict[Path, str]:
    """{file of a published text encoder: its name in a copy}, of the folders of its weights and of its tokenizer."""
    files = [weights / "config.json", weights / "model.safetensors"]
    files += [words / name for name in TOKENIZER_FILES if (words / name).is_file()]
    return {file: file.name for file in files}


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
