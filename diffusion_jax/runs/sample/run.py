"""`diffusion-jax sample`: a workdir to a folder of samples."""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax import experiment
from diffusion_jax.errors import UserError
from diffusion_jax.modalities import Modality
from diffusion_jax.models.sampling import START
from diffusion_jax.report import pictures
from diffusion_jax.report.progress import progress
from diffusion_jax.runs.sample.conditions import SampleRequest, conditions, cut_prompts, record, told_pictures
from diffusion_jax.runs.sample.drawing import batch_size, check_memory, draw
from diffusion_jax.runs.sample.edit import EditRequest, PreparedEdit, prepare
from diffusion_jax.runs.sample.starting_noise import DRAWN, FILE, NoiseRequest, starting_noise
from diffusion_jax.runs.workdir.output_folder import OutputFolder
from diffusion_jax.runs.workdir.restored import NO_GUIDES, GuideRequest, Trained, restore, seeds_from
from diffusion_jax.train.provenance import versions

_MANIFEST = "manifest.json"

_COMPARED = 6  # samples beside the image that was given

_COLUMNS = 20  # classes beside each other

_GRID = 400  # samples in the picture of all; more could not be told apart


@dataclasses.dataclass(frozen=True)
class Request:
    """What is to be drawn from which checkpoint, and how; fields are as the command's flags."""

    root: Path  # the workdir
    num: int
    sample_request: SampleRequest
    seed: int = 0  # sample i has seed + i
    batch: int = 64  # samples drawn at once
    step: int | None = None  # of the checkpoint; None: the newest
    average: bool | float = True
    given: EditRequest | None = None  # an example to edit
    guided_by: GuideRequest = NO_GUIDES
    noise: NoiseRequest = DRAWN
    overrides: Mapping[str, object] = dataclasses.field(default_factory=dict)
    """They replace fields of the config's `Sampling` where not None."""


@dataclasses.dataclass(frozen=True)
class _Prepared:
    """A request with all that it takes to draw it, checked."""

    request: Request
    trained: Trained
    kind: Modality
    seeds: np.ndarray
    cond: dict[str, np.ndarray]
    size: int  # of a batch
    edit: PreparedEdit | None
    kept: Mapping[str, np.ndarray]  # the starting noise, where it is given or to be written


def sample(request: Request, out: Path, *, overwrite: bool = False) -> None:
    """Draws samples into the folder out, which appears whole or not at all.

    With an example given each sample is an edit of it, and edit.png shows them beside it. Sample i is of what
    sample_request says; without labels, its class is drawn from its seed. Raises UserError for what the model cannot
    do, and where out cannot be written.
    """
    if request.batch < 1:
        raise UserError(f"--batch is at least 1; got {request.batch}")
    folder = _checked_out(out, overwrite)
    prepared = _prepared(request, folder)
    program, kind = _program(prepared.trained, prepared.edit), prepared.kind
    with progress(request.num, description="sample", unit="samples") as bar:
        batches = draw(program, prepared.trained, prepared.seeds, prepared.cond, prepared.size, bar)
        samples = np.concatenate([kind.from_model(x) for x in batches])
    manifest = _manifest(prepared, samples.shape[1:])
    shown = _pictures(prepared, samples, manifest["labels"])
    manifest["pictures"] = {name: {"samples": count, "of": request.num} for name, (_, count) in shown.items()}
    _write(folder, prepared, samples, manifest, {name: picture for name, (picture, _) in shown.items()})
    part = [f"; {name} shows the first {count}" for name, (_, count) in shown.items() if count < request.num]
    print(f"{request.num} samples of step {prepared.trained.step}: {out / 'grid.png'}{''.join(part)}")


def _prepared(request: Request, folder: OutputFolder) -> _Prepared:
    """Restores and checks everything; raises UserError before anything is drawn."""
    seeds = seeds_from(request.seed, request.num)
    trained = restore(
        request.root,
        step=request.step,
        average=request.average,
        overrides=request.overrides,
        guided_by=request.guided_by,
    )
    kind = experiment.modality(trained.config)
    edit = None if request.given is None else prepare(request.given, trained.model.shape, kind)
    size = batch_size(trained, request.batch, request.num)
    sides = trained.model.shape[:-1] if edit is None else edit.edit.canvas
    folder.check_room(request.num * math.prod(sides) * trained.model.shape[-1] * kind.dtype.itemsize)
    check_memory(trained, size, sides)
    cond = conditions(request.sample_request, trained, seeds, painted=edit is not None and edit.edit.inpaint)
    kept = {}
    if request.noise != DRAWN:
        if edit is not None:
            raise UserError("an edit starts from its image; leave out --noise and --save_noise, or --init_image")
        kept[FILE] = cond[START] = starting_noise(request.noise, seeds, trained.model.x_shape)
    return _Prepared(request, trained, kind, seeds, cond, size, edit, kept if request.noise.keep else {})


def _manifest(prepared: _Prepared, shape: tuple[int, ...]) -> dict[str, Any]:
    """What says how the samples, each of this shape, were made, so that they can be made again."""
    request, trained, cond = prepared.request, prepared.trained, prepared.cond
    return {
        "workdir": str(request.root),
        "checkpoint_step": trained.step,
        "weights": trained.weights,
        "sampling": dataclasses.asdict(trained.how),
        "seeds": [int(request.seed), int(request.seed) + request.num - 1],
        "asked": record(request.sample_request),
        "labels": trained.label_names(cond["label"]) if "label" in cond else None,  # of each sample
        "cut": [cut._asdict() for cut in cut_prompts(request.sample_request, trained)],
        "guided_by": record(request.guided_by),
        "shape": list(shape),
        "modality": trained.config.data.modality,
        "edit": _edit_record(request.given, prepared.edit, trained),
        "noise": request.noise.file and str(request.noise.file),
        "device": jax.devices()[0].device_kind,
        "versions": versions(),
    }


def _pictures(prepared: _Prepared, samples: np.ndarray, labels: list[str] | None) -> dict[str, tuple[np.ndarray, int]]:
    """{name: (picture, how many of the samples it shows)}, of samples [N, *S, C] in the data's own units."""
    num, asked, kind = len(samples), len(prepared.request.sample_request.labels), prepared.kind
    tiles = kind.tiles(samples[:_GRID])
    found = {"grid.png": (pictures.grid(tiles), len(tiles))}
    few = min(num, _COMPARED)
    if prepared.edit is not None:
        found["edit.png"] = (_compare(prepared.edit, kind, tiles), few)
    first = {name: a[:_COMPARED] for name, a in prepared.cond.items()}
    if given := told_pictures(prepared.trained.model, kind, first):
        found["given.png"] = (_beside(given, tiles), few)
    if labels is not None and 1 < asked <= min(num, _COLUMNS):
        rows = min(num // asked, _COMPARED)
        found["classes.png"] = (_by_class(tiles, labels[:asked]), rows * asked)
    return found


def _program(trained: Trained, prepared: PreparedEdit | None) -> Callable[..., jax.Array]:
    """(params, pretrained, seeds, cond) -> images."""
    if prepared is None:
        return experiment.sample_program(trained.model, trained.how, trained.mesh, trained.guides)
    program = experiment.edit_program(trained.model, trained.how, trained.mesh, prepared.edit, trained.guides)
    return lambda params, pretrained, seeds, cond: program(
        params, pretrained, seeds, cond, prepared.image, prepared.unknown
    )


def _edit_record(given: EditRequest | None, prepared: PreparedEdit | None, trained: Trained) -> dict | None:
    """What is edited and how: with the time that the edit starts at, the noise there, and the steps from there on."""
    if given is None or prepared is None:
        return None
    times = experiment.edit_times(trained.model, trained.how, prepared.edit)
    sigma = float(trained.model.schedule.sigma(jnp.float32(times[0])))
    start = {"start": float(times[0]), "start_sigma": sigma, "steps": len(times) - 1}
    files = {"init_image": str(given.init_image), "mask": given.mask and str(given.mask), "expand": given.expand}
    return files | dataclasses.asdict(prepared.edit) | start


def _beside(given: list[np.ndarray], images: np.ndarray) -> np.ndarray:
    """Pictures of what the samples were told, beside the first of them."""
    rows, columns = len(given[0]), len(given) + 1
    shown = np.stack([*given, images[:rows]], axis=1).reshape(columns * rows, *images.shape[1:])
    return pictures.grid(shown, columns=columns)


def _by_class(images: np.ndarray, names: list[str]) -> np.ndarray:
    """The first samples, a column for each class of those that they take in turn."""
    rows = min(len(images) // len(names), _COMPARED)
    shown = images[: rows * len(names)]
    return pictures.labelled_grid(shown.reshape(rows, len(names), *shown.shape[1:]), columns=names)


def _compare(prepared: PreparedEdit, kind: Modality, tiles: np.ndarray) -> np.ndarray:
    """The example as given, what of it is kept (the rest 0, gray of images), and the first samples."""
    kept = np.where(prepared.unknown, 0.0, prepared.image)
    before = [prepared.image, kept] if prepared.edit.inpaint else [prepared.image]
    shown = np.concatenate([kind.tiles(kind.from_model(np.stack(before))), tiles[:_COMPARED]])
    titles = ["given", "kept"][: len(before)] + [f"edit {i}" for i in range(len(tiles[:_COMPARED]))]
    return pictures.labelled_grid(shown[None], columns=titles)


def _checked_out(out: Path, overwrite: bool) -> OutputFolder:
    """The folder of samples; raises UserError unless out is new or empty, or holds samples that may be replaced."""
    folder = OutputFolder(out, marker=_MANIFEST)
    folder.check()
    entries = folder.entries()
    if entries and not overwrite:
        raise UserError(f"--out={out} already has files; give another folder, or --overwrite to replace its samples")
    if entries and _MANIFEST not in entries:
        raise UserError(f"--out={out} has files but no {_MANIFEST}, so it is not a folder of samples; give another")
    return folder


def _write(
    out: OutputFolder,
    prepared: _Prepared,
    samples: np.ndarray,
    manifest: Mapping[str, Any],
    shown: Mapping[str, np.ndarray],
) -> None:
    """Writes a file of each sample, the pictures and .npz of all, and the manifest; all of it comes into place at once.

    samples [N, *S, C] are in the data's own units.
    """
    kind, labels = prepared.kind, prepared.cond.get("label", np.zeros(len(samples), np.int32))
    named = manifest["labels"] or prepared.request.sample_request.prompts or [""]
    names = [named[i % len(named)] for i in range(len(samples))]
    with out.written() as partial:
        for i, one in enumerate(samples):
            (partial / f"{i:06d}{kind.suffix}").write_bytes(kind.encode(one))
        for name, picture in shown.items():
            (partial / name).write_bytes(pictures.encode_png(picture))
        for name, content in kind.pages(samples, names).items():
            (partial / name).write_bytes(content)
        for name, array in prepared.kept.items():
            np.save(partial / name, array)
        np.savez_compressed(
            partial / "samples.npz", allow_pickle=False, labels=labels, seeds=prepared.seeds, **{kind.noun: samples}
        )
        (partial / _MANIFEST).write_text(json.dumps(manifest, indent=2))
