"""`diffusion-jax import`: published weights as a workdir. The workdir appears whole or not at all."""

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from diffusion_jax import config as configs
from diffusion_jax import experiment
from diffusion_jax.data import classes as names
from diffusion_jax.errors import UserError
from diffusion_jax.interop import (
    diffusers_autoencoder,
    diffusers_dit,
    diffusers_dit_options,
    diffusers_pipeline,
    diffusers_unet,
    original_file,
    original_xl,
)
from diffusion_jax.interop.diffusers_options import AutoencoderOptions, UNetOptions
from diffusion_jax.interop.diffusers_pipeline import Pipeline
from diffusion_jax.models.conditions import spatial
from diffusion_jax.runs.interchange import hub
from diffusion_jax.runs.interchange.digests import sha256
from diffusion_jax.runs.interchange.imported_text import copy_text, text_spec
from diffusion_jax.runs.interchange.imported_weights import FileWeights, FolderWeights, ImportedWeights
from diffusion_jax.runs.workdir import classes
from diffusion_jax.runs.workdir.output_folder import OutputFolder, check_writable
from diffusion_jax.runs.workdir.paths import Workdir
from diffusion_jax.runs.workdir.pretrained import TOKENIZER_FILES
from diffusion_jax.train.checkpoint import Checkpoints
from diffusion_jax.train.provenance import versions
from diffusion_jax.train.state import Params, TrainState

PARTS = ("autoencoder",)

STEPS = {"ddpm": 1000, "other": 50}
"""Steps of a sample where none are given: num_inference_steps of diffusers' pipelines."""


@dataclasses.dataclass(frozen=True)
class ImportRequest:
    """The options of an import; fields are the command's flags."""

    variant: str = ""  # the middle of the files' names, such as fp16
    part: str = ""  # "autoencoder": a pipeline's alone
    tokenizer: Path | None = None  # of a file that has none
    prediction: str = ""  # eps or v, of a file that does not tell


def import_weights(origin: str | Path, root: Path, request: ImportRequest) -> None:
    """Writes the new workdir root from a folder that diffusers wrote, or a file in Stable Diffusion's original layout.

    origin is its path, or hf://OWNER/NAME[@REVISION] of the Hugging Face hub. Parameters are float32 whatever they are
    there. Raises UserError for what cannot be imported, and leaves nothing behind then.
    """
    if request.part and request.part not in PARTS:
        raise UserError(f"--part is {' or '.join(PARTS)}; got {request.part!r}")
    if os.path.lexists(root) and (not root.is_dir() or any(root.iterdir())):
        raise UserError(f"--workdir={root} exists already and is not overwritten; give a new folder")
    if jax.process_count() > 1:
        raise UserError("import runs in one process; start it on one host")
    check_writable(root)
    source = Path(origin)
    if hub.is_address(str(origin)):
        _check_of_folder(request, str(origin))
        source = hub.fetched(hub.address(str(origin)), request.variant, request.part)
    found, weights = _found(source, request)
    with OutputFolder(root).written() as new:
        if found.unet is None:
            count = _write_autoencoder(new, found.autoencoder, weights)
        else:
            count = _write_model(new, root, found, weights)
        if found.licence is not None:
            shutil.copyfile(found.licence, new / found.licence.name)
        _write_record(Workdir(new).imported, str(origin), found, weights)
    for note in found.notes:
        print(f"another here than in diffusers: {note}")
    if found.left_out:
        print(f"not imported: {', '.join(found.left_out)}")
    print(f"{count:,} parameters of {found.name} in {origin}: {root}")


def _found(source: Path, request: ImportRequest) -> tuple[Pipeline, ImportedWeights]:
    """(the models in the source, their arrays). Raises UserError where files are missing."""
    if source.is_file() and source.suffix == ".safetensors":
        if request.variant:
            raise UserError(f"--variant is of a folder's files; {source} is one file")
        layout = original_xl if original_xl.holds(source) else original_file
        file = layout.read(source, part=request.part, tokenizer=request.tokenizer, prediction=request.prediction)
        return file.pipeline, FileWeights(source, file.sources)
    found = diffusers_pipeline.read(source, request.part)
    _check_of_folder(request, str(source))
    return found, FolderWeights(found, request.variant)


def _check_of_folder(request: ImportRequest, source: str) -> None:
    """Raises UserError for an option that is of one file."""
    if request.tokenizer or request.prediction:
        name = "tokenizer" if request.tokenizer else "prediction"
        raise UserError(f"--{name} is of one file in the original layout; {source} is a folder that has its own")


def _write_autoencoder(root: Path, options: AutoencoderOptions | None, weights: ImportedWeights) -> int:
    """Writes the workdir of an autoencoder; returns its number of parameters."""
    assert options is not None
    config = _autoencoder_config(options)
    shapes = experiment.autoencoder.trainee(config).abstract["autoencoder"]
    with weights.opened("autoencoder") as state:
        params = diffusers_autoencoder.from_diffusers(state, shapes, _on_host)
    _save(Workdir(root), config, {"autoencoder": params}, {"latent_std": 1 / options.scaling_factor})
    return _count(params)


def _autoencoder_config(options: AutoencoderOptions) -> ConfigDict:
    config = configs.base()
    config.task = "autoencoder"
    config.autoencoder.update(options.options)
    _set_data(config, options.size, options.channels)
    return config


def _write_model(new: Path, root: Path, found: Pipeline, weights: ImportedWeights) -> int:
    """Writes the workdir of a diffusion model to new, which will be moved to root; returns its number of parameters."""
    assert found.unet is not None
    assert found.scheduler is not None
    workdir = Workdir(new)
    config = _config(root, found)
    autoencoder = None
    if found.autoencoder is not None:
        coder = _autoencoder_config(found.autoencoder)
        # Its sizes alone are needed here; the parameters go straight to its own workdir.
        network = experiment.autoencoder.network(coder)
        autoencoder = experiment.Autoencoder(network, {}, found.autoencoder.scaling_factor)
    _check_channels(found, config, autoencoder)
    if found.text_config is not None:
        copy_text(found, weights, workdir.text_encoder)
    model = experiment.model(config, autoencoder, str(workdir.text_encoder) if found.text_config else "")
    with weights.opened("unet") as state:
        params = _network_params(found.unet, state, model.abstract)
    _save(workdir, config, params, {})
    count = _count(params)
    del params
    if found.autoencoder is not None:
        count += _write_autoencoder(workdir.autoencoder, found.autoencoder, weights)
    if model.text is not None:
        workdir.tokenizer.write_text(model.text.learn_tokenizer([]).to_json(), encoding="utf-8")
        count += _count(model.text.params)
    if model.num_classes:
        classes.keep(workdir, names.known(found.labels or None, model.num_classes))
    return count


def _network_params(net: UNetOptions, state: Mapping[str, np.ndarray], like: Params) -> Params:
    """The network's parameters on the host, with the shapes of like."""
    if net.family == "unet":
        return diffusers_unet.from_diffusers(state, like, _on_host)
    return jax.tree.map(_on_host, diffusers_dit.from_diffusers(state, like, sinusoids=net.options["sinusoids"]))


def _config(root: Path, found: Pipeline) -> ConfigDict:
    """The config of a diffusion model whose workdir will be root."""
    net, twin, coder = found.unet, found.scheduler, found.autoencoder
    assert net is not None
    assert twin is not None
    config = configs.base(net.family)
    config.model.update(net.options)
    config.schedule = twin.schedule
    config.prediction = f"{twin.prediction}(learned_variance=True)" if twin.learned_variance else twin.prediction
    config.sample.update(sampler=twin.sampler, grid=twin.grid, threshold=twin.threshold)
    config.sample.steps = STEPS["ddpm" if twin.sampler.startswith("ddpm(") else "other"]
    if coder is None:
        _set_data(config, net.size, net.in_channels)
    else:
        factor = 2 ** (len(coder.options["multipliers"]) - 1)
        _set_data(config, (net.size[0] * factor, net.size[1] * factor), coder.channels)
        config.latent = str(root / "autoencoder")
    config.spatial = found.image_inputs.spatial
    if found.name == diffusers_dit_options.PIPELINE:
        config.sample.guidance = found.guidance
    if found.text_config is not None:
        config.text = text_spec(found, root / "text_encoder")
        config.spatial = found.image_inputs.spatial if found.second_text is None else ("size_and_crop",)
        config.sample.guidance = found.guidance
        config.sample.steps = found.image_inputs.steps
    return config


def _set_data(config: ConfigDict, size: tuple[int, int], channels: int) -> None:
    config.data.update(source="folder:IMAGES", shape=(*size, channels), modality="image")


def _check_channels(found: Pipeline, config: ConfigDict, autoencoder: experiment.Autoencoder | None) -> None:
    """Raises UserError where the U-Net's input or output channels differ from those of an image or its latent."""
    assert found.unet is not None
    assert found.scheduler is not None
    shape = experiment.shape(config)
    channels = (autoencoder.latent_shape(shape) if autoencoder else shape)[-1]
    beside = sum(sum(condition.channels(channels).values()) for condition in spatial(config.spatial))
    wanted = channels + beside, channels * (2 if found.scheduler.learned_variance else 1)
    if (found.unet.in_channels, found.unet.out_channels) != wanted:
        raise UserError(
            f"{found.file or f'{found.unet_folder}/config.json'}: in_channels={found.unet.in_channels} and "
            f"out_channels={found.unet.out_channels} have no twin here; they are {wanted[0]} and {wanted[1]}"
        )


def _save(workdir: Workdir, config: ConfigDict, params: Params, measured: Mapping[str, float]) -> None:
    """Writes the config and the checkpoint of step 0: parameters, and an equal average, without an optimizer."""
    workdir.write_config(configs.check(config))
    state = TrainState(_on_host(np.int32(0)), params, params, ())
    largest = max(leaf.nbytes for leaf in jax.tree.leaves(params))
    with contextlib.closing(Checkpoints(workdir.checkpoints, write_gb=1 + largest // 10**9)) as checkpoints:
        checkpoints.save(state, position={}, config=configs.to_json(config), measured=measured)


def _on_host(a: np.ndarray | np.int32) -> jax.Array:
    """The array where it stays until it is saved."""
    return jax.device_put(a, jax.local_devices(backend="cpu")[0])


def _write_record(file: Path, origin: str, found: Pipeline, weights: ImportedWeights) -> None:
    """Writes the origin of the workdir, with the SHA-256 of every file that was read."""
    read = {*weights.files(), *_described(found)}
    snapshot = found.root.resolve()
    record = {
        "source": origin,
        "format": "original" if found.file else "diffusers",
        "model": found.name,
        "written_by": f"diffusers {found.version}" if found.version else None,
        "revision": snapshot.name if snapshot.parent.name == "snapshots" else None,  # of a Hugging Face cache
        "variant": weights.variant or None,
        "tokenizer": str(found.tokenizer_folder) if found.tokenizer_folder else None,
        "scheduler": None if found.scheduler is None else dataclasses.asdict(found.scheduler),
        "left_out": list(found.left_out),
        "layout": {
            "unet": {} if found.unet is None else found.unet.layout,
            "autoencoder": {} if found.autoencoder is None else found.autoencoder.layout,
        },
        "licence": found.licence.name if found.licence else None,
        "files": {os.path.relpath(path, found.root): sha256(path) for path in sorted(read)},
        "versions": versions(),
    }
    file.write_text(json.dumps(record, indent=2), encoding="utf-8")


def _described(found: Pipeline) -> Iterable[Path]:
    """The files other than weights that are read."""
    folders = [found.unet_folder, found.autoencoder_folder, found.text_folder, found.tokenizer_folder]
    if found.second_text is not None:
        folders += [found.second_text.folder, found.second_text.tokenizer_folder]
    own = () if found.file else (found.root, found.root / "scheduler", found.root / "low_res_scheduler")
    for folder in {*own, *filter(None, folders)}:
        for name in ("model_index.json", "config.json", "scheduler_config.json", *TOKENIZER_FILES):
            if (folder / name).is_file():
                yield folder / name


def _count(params: Params) -> int:
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))
