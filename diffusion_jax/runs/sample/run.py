"""`diffusion-jax sample`: a workdir to pictures."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax import experiment
from diffusion_jax.errors import UserError
from diffusion_jax.models.sampling import START
from diffusion_jax.report import pictures
from diffusion_jax.report.progress import progress
from diffusion_jax.runs.sample.conditions import SampleRequest, conditions, cut_prompts, record
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


def sample(
    root: Path,
    out: Path,
    *,
    num: int,
    seed: int,
    sample_request: SampleRequest,
    batch: int,
    step: int | None,
    average: bool | float,
    overwrite: bool,
    given: EditRequest | None = None,
    guided_by: GuideRequest = NO_GUIDES,
    noise: NoiseRequest = DRAWN,
    **overrides: object,
) -> None:
    """Draws num samples from a checkpoint of the workdir root into the folder out, which appears whole or not at all.

    With an image given each sample is an edit of it, and edit.png shows them beside it.

    Sample i has seed `seed` + i and is of what sample_request says; without labels, its class is drawn from its seed.
    step None is the newest checkpoint. overrides replace fields of the config's `Sampling` where not None.
    """
    if batch < 1:
        raise UserError(f"--batch is at least 1; got {batch}")
    seeds = seeds_from(seed, num)
    folder = _checked_out(out, overwrite)
    trained = restore(
        root,
        step=step,
        average=average,
        overrides=overrides,
        guided_by=guided_by,
    )
    prepared = None if given is None else prepare(given, trained.model.shape)
    size = batch_size(trained, batch, num)
    height, width = trained.model.shape[:2] if prepared is None else prepared.edit.canvas
    folder.check_room(num * height * width * trained.model.shape[2])
    check_memory(trained, size, (height, width))
    cond = conditions(sample_request, trained, seeds, painted=prepared is not None and prepared.edit.inpaint)
    kept = {}
    if noise != DRAWN:
        if prepared is not None:
            raise UserError("an edit starts from its image; leave out --noise and --save_noise, or --init_image")
        kept[FILE] = cond[START] = starting_noise(noise, seeds, trained.model.x_shape)
    program = _program(trained, prepared)
    with progress(num, description="sample", unit="samples") as bar:
        images = [pictures.to_uint8(drawn) for drawn in draw(program, trained, seeds, cond, size, bar)]
    manifest = {
        "workdir": str(root),
        "checkpoint_step": trained.step,
        "weights": trained.weights,
        "sampling": dataclasses.asdict(trained.how),
        "seeds": [int(seed), int(seed) + num - 1],
        "asked": record(sample_request),
        "labels": trained.label_names(cond["label"]) if "label" in cond else None,  # of each sample
        "cut": [cut._asdict() for cut in cut_prompts(sample_request, trained)],
        "guided_by": record(guided_by),
        "shape": list(images[0].shape[1:]),
        "edit": _edit_record(given, prepared, trained),
        "noise": noise.file and str(noise.file),
        "device": jax.devices()[0].device_kind,
        "versions": versions(),
    }
    drawn = np.concatenate(images)
    extra = {} if prepared is None else {"edit.png": _compare(prepared, drawn)}
    if told_pictures := _pictures(trained, cond, drawn.shape[-1]):
        extra["given.png"] = _beside(told_pictures, drawn)
    if 1 < len(sample_request.labels) <= min(num, _COLUMNS):
        extra["classes.png"] = _by_class(drawn, manifest["labels"][: len(sample_request.labels)])
    shown = {"grid.png": min(num, _GRID)} | dict.fromkeys(extra, min(num, _COMPARED))
    if "classes.png" in extra:
        shown["classes.png"] = min(num // len(sample_request.labels), _COMPARED) * len(sample_request.labels)
    manifest["pictures"] = {name: {"samples": count, "of": num} for name, count in shown.items()}
    _write(
        folder,
        drawn,
        cond.get("label", np.zeros(num, np.int32)),
        seeds,
        manifest,
        extra | (kept if noise.keep else {}),
    )
    part = [f"; {name} shows the first {count}" for name, count in shown.items() if count < num]
    print(f"{num} samples of step {trained.step}: {out / 'grid.png'}{''.join(part)}")


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


def _pictures(trained: Trained, cond: Mapping[str, np.ndarray], channels: int) -> list[np.ndarray]:
    """What the first samples were told that can be seen, each uint8 [K, H, W, channels]."""
    first = {name: a[:_COMPARED] for name, a in cond.items()}
    return [shown for condition in trained.model.conditions for shown in condition.pictures(first, channels)]


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


def _compare(prepared: PreparedEdit, images: np.ndarray) -> np.ndarray:
    """The image as given, what of it is kept (the rest gray), and the first samples."""
    kept = np.where(prepared.unknown, 0.0, prepared.image)
    before = [prepared.image, kept] if prepared.edit.inpaint else [prepared.image]
    shown = np.concatenate([pictures.to_uint8(np.stack(before)), images[:_COMPARED]])
    titles = ["given", "kept"][: len(before)] + [f"edit {i}" for i in range(len(images[:_COMPARED]))]
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
    images: np.ndarray,
    labels: np.ndarray,
    seeds: np.ndarray,
    manifest: dict,
    extra: Mapping[str, np.ndarray],
) -> None:
    """Writes everything, and the extra pictures and .npy files; all of it comes into place at once."""
    with out.written() as partial:
        for i, image in enumerate(images):
            (partial / f"{i:06d}.png").write_bytes(pictures.encode_png(image))
        (partial / "grid.png").write_bytes(pictures.encode_png(pictures.grid(images[:_GRID])))
        for name, array in extra.items():
            if name.endswith(".npy"):
                np.save(partial / name, array)
            else:
                (partial / name).write_bytes(pictures.encode_png(array))
        np.savez_compressed(partial / "samples.npz", images=images, labels=labels, seeds=seeds)
        (partial / _MANIFEST).write_text(json.dumps(manifest, indent=2))
