"""`diffusion-jax sample`: a workdir to a folder of samples."""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax import experiment
from diffusion_jax.errors import UserError
from diffusion_jax.modalities import Modality
from diffusion_jax.models.editing import starts_from_noise
from diffusion_jax.models.sampling import START
from diffusion_jax.models.sizing import of_sides
from diffusion_jax.report import pictures
from diffusion_jax.report.progress import progress
from diffusion_jax.runs.sample.conditioning import SampleRequest, conditions, cut_prompts, record, told_pictures
from diffusion_jax.runs.sample.drawing import batch_size, check_memory, draw
from diffusion_jax.runs.sample.edit import EditRequest, PreparedEdit, prepare
from diffusion_jax.runs.sample.noise_request import DRAWN, FILE, NoiseRequest, starting_noise
from diffusion_jax.runs.sample.size import Size, of_size
from diffusion_jax.runs.workdir.output_folder import OutputFolder
from diffusion_jax.runs.workdir.restored import NO_GUIDES, GuideRequest, Trained, restore, seeds_from
from diffusion_jax.train.provenance import versions

_MANIFEST = "manifest.json"

_COMPARED = 6  # samples, at most, beside the image that is edited or conditions them

_CLASSES = 100  # rows, at most, in classes.png

_GRID = 400  # samples, at most, in grid.png; with more each is too small to see


@dataclasses.dataclass(frozen=True)
class Request:
    """Which samples are drawn from which checkpoint, and how; fields are as the command's flags."""

    root: Path  # the workdir
    num: int
    sample_request: SampleRequest
    seed: int = 0  # sample i has seed + i
    batch: int = 64  # samples drawn at once
    step: int | None = None  # of the checkpoint; None: the newest
    average: bool | float = True
    edit_request: EditRequest | None = None  # of an example to edit; None: samples are new
    guided_by: GuideRequest = NO_GUIDES
    noise: NoiseRequest = DRAWN
    size: Size | None = None  # of images; None: that of the model
    overrides: Mapping[str, object] = dataclasses.field(default_factory=dict)
    """They replace fields of the config's `Sampling` where not None."""


@dataclasses.dataclass(frozen=True)
class _Prepared:
    """A checked request, with the model and the arrays that it is drawn from."""

    request: Request
    trained: Trained
    kind: Modality
    seeds: np.ndarray
    cond: dict[str, np.ndarray]
    size: int  # of a batch
    edit: PreparedEdit | None
    written_noise: np.ndarray | None  # the starting noise [N, *S, C], where it is written beside the samples


def sample(request: Request, out: Path, *, overwrite: bool = False) -> None:
    """Draws samples into the folder out, which appears whole or not at all.

    Conditions are those of request.sample_request; without labels the class of sample i is drawn from its seed. With an
    edit_request each sample is an edit of its example, and edit.png shows some beside it. Raises UserError, before
    anything is drawn, where the request does not fit the model, and where out cannot be written.
    """
    if request.batch < 1:
        raise UserError(f"--batch is at least 1; got {request.batch}")
    folder = OutputFolder(out, marker=_MANIFEST)
    folder.check_replaceable("samples", overwrite=overwrite)
    prepared = _prepared(request, folder)
    program, kind = _program(prepared.trained, prepared.edit), prepared.kind
    with progress(request.num, description="sample", unit="samples") as bar:
        batches = draw(program, prepared.trained, prepared.seeds, prepared.cond, prepared.size, bar)
        samples = np.concatenate([kind.from_model(x) for x in batches])
    cond, trained = prepared.cond, prepared.trained
    labels = trained.label_names(cond["label"]) if "label" in cond else None  # of each sample
    manifest = _manifest(prepared, samples.shape[1:], labels)
    shown = _pictures(prepared, samples, labels)
    manifest["pictures"] = {name: {"samples": count, "of": request.num} for name, (_, count) in shown.items()}
    _write(folder, prepared, samples, manifest, labels, {name: picture for name, (picture, _) in shown.items()})
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
    trained = of_size(trained, request.size)
    kind = experiment.modality(trained.config)
    edit = None if request.edit_request is None else prepare(request.edit_request, trained.model.shape, kind)
    size = batch_size(trained, request.batch, request.num)
    sides = trained.model.shape[:-1] if edit is None else edit.edit.canvas
    folder.check_room(request.num * math.prod(sides) * trained.model.shape[-1] * kind.dtype.itemsize)
    check_memory(trained, size, sides)
    cond = conditions(request.sample_request, trained, seeds, painted=edit is not None and edit.edit.inpaint)
    noise = None
    if request.noise != DRAWN:
        if edit is not None and not starts_from_noise(trained.model, edit.edit):
            raise UserError("an edit starts from its image; leave out --noise and --save_noise, or --init_image")
        x_shape = of_sides(trained.model, sides).x_shape
        noise = cond[START] = starting_noise(request.noise, seeds, x_shape)
    return _Prepared(request, trained, kind, seeds, cond, size, edit, noise if request.noise.keep else None)


def _manifest(prepared: _Prepared, shape: tuple[int, ...], labels: list[str] | None) -> dict[str, object]:
    """Everything that is needed to draw the samples again; shape is that of each."""
    request, trained = prepared.request, prepared.trained
    return {
        "workdir": str(request.root),
        "checkpoint_step": trained.step,
        "weights": trained.weights,
        "sampling": dataclasses.asdict(trained.how),
        "seeds": [int(request.seed), int(request.seed) + request.num - 1],
        "asked": record(request.sample_request),
        "labels": labels,  # of each sample
        "cut": [cut._asdict() for cut in cut_prompts(request.sample_request, trained)],
        "guided_by": record(request.guided_by),
        "shape": list(shape),
        "size": request.size and "{}x{}".format(*request.size),
        "modality": trained.config.data.modality,
        "edit": _edit_record(request.edit_request, prepared.edit, trained),
        "noise": request.noise.file and str(request.noise.file),
        "device": jax.devices()[0].device_kind,
        "versions": versions(),
    }


def _pictures(prepared: _Prepared, samples: np.ndarray, labels: list[str] | None) -> dict[str, tuple[np.ndarray, int]]:
    """{file: (picture, number of samples in it)}, of samples [N, *S, C] in the data's units."""
    num, classes, kind = len(samples), len(prepared.request.sample_request.labels), prepared.kind
    tiles = kind.tiles(samples[:_GRID])
    found = {"grid.png": (pictures.grid(tiles), len(tiles))}
    few = min(num, _COMPARED)
    if prepared.edit is not None:
        found["edit.png"] = (_compare(prepared.edit, kind, tiles), few)
    first = {name: a[:_COMPARED] for name, a in prepared.cond.items()}
    if shown := told_pictures(prepared.trained.model, kind, first):
        found["given.png"] = (_beside(shown, tiles), few)
    if labels is not None and 1 < classes <= min(num, _CLASSES):
        each = min(len(tiles) // classes, _COMPARED)
        found["classes.png"] = (_by_class(tiles[: each * classes], labels[:classes]), each * classes)
    return found


def _program(trained: Trained, prepared: PreparedEdit | None) -> Callable[..., jax.Array]:
    """The compiled program (params, pretrained, seeds [B], cond) -> samples [B, *S, C] in the model's units."""
    if prepared is None:
        return experiment.sample_program(trained.model, trained.how, trained.mesh, trained.guides)
    program = experiment.edit_program(trained.model, trained.how, trained.mesh, prepared.edit, trained.guides)
    return lambda params, pretrained, seeds, cond: program(
        params, pretrained, seeds, cond, prepared.image, prepared.unknown
    )


def _edit_record(
    request: EditRequest | None, prepared: PreparedEdit | None, trained: Trained
) -> dict[str, object] | None:
    """Files and options of the edit, with the time and sigma at which it starts, and its number of steps."""
    if request is None or prepared is None:
        return None
    times = experiment.edit_times(trained.model, trained.how, prepared.edit)
    sigma = float(trained.model.schedule.sigma(jnp.float32(times[0])))
    start = {"start": float(times[0]), "start_sigma": sigma, "steps": len(times) - 1}
    files = {
        "init_image": str(request.init_image),
        "mask": request.mask and str(request.mask),
        "expand": request.expand,
    }
    return files | dataclasses.asdict(prepared.edit) | start


def _beside(conditions: list[np.ndarray], images: np.ndarray) -> np.ndarray:
    """A row for each of the first samples: pictures of its conditions, and the sample."""
    rows, columns = len(conditions[0]), len(conditions) + 1
    shown = np.stack([*conditions, images[:rows]], axis=1).reshape(columns * rows, *images.shape[1:])
    return pictures.grid(shown, columns=columns)


def _by_class(images: np.ndarray, names: list[str]) -> np.ndarray:
    """Pictures [K * R, H, W, C] of samples that take R classes in turn: a row for each class."""
    rows = images.reshape(-1, len(names), *images.shape[1:]).swapaxes(0, 1)  # [R, K, H, W, C]
    return pictures.labelled_rows(rows, names)


def _compare(prepared: PreparedEdit, kind: Modality, tiles: np.ndarray) -> np.ndarray:
    """The example, its part that is not painted (the rest is 0, gray in images), and the first samples."""
    known = np.where(prepared.unknown, 0.0, prepared.image)
    before = [prepared.image, known] if prepared.edit.inpaint else [prepared.image]
    shown = np.concatenate([kind.tiles(kind.from_model(np.stack(before))), tiles[:_COMPARED]])
    titles = ["given", "kept"][: len(before)] + [f"edit {i}" for i in range(len(tiles[:_COMPARED]))]
    return pictures.labelled_grid(shown[None], columns=titles)


def _write(
    out: OutputFolder,
    prepared: _Prepared,
    samples: np.ndarray,
    manifest: Mapping[str, object],
    names: list[str] | None,
    shown: Mapping[str, np.ndarray],
) -> None:
    """Writes a file of each sample, the pictures, an .npz of all and the manifest; the folder appears at once.

    samples [N, *S, C] are in the data's units; names are their classes.
    """
    kind, labels = prepared.kind, prepared.cond.get("label", np.zeros(len(samples), np.int32))
    texts = names or prepared.request.sample_request.prompts or [""]
    titles = [texts[i % len(texts)] for i in range(len(samples))]
    with out.written() as partial:
        for i, one in enumerate(samples):
            (partial / f"{i:06d}{kind.suffix}").write_bytes(kind.encode(one))
        for name, picture in shown.items():
            (partial / name).write_bytes(pictures.encode_png(picture))
        for name, content in kind.pages(samples, titles).items():
            (partial / name).write_bytes(content)
        if prepared.written_noise is not None:
            np.save(partial / FILE, prepared.written_noise)
        np.savez_compressed(
            partial / "samples.npz", allow_pickle=False, labels=labels, seeds=prepared.seeds, **{kind.noun: samples}
        )
        (partial / _MANIFEST).write_text(json.dumps(manifest, indent=2))
