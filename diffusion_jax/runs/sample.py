"""`diffusion-jax sample`: a workdir to pictures."""

import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax import build
from diffusion_jax.errors import UserError
from diffusion_jax.report import pictures
from diffusion_jax.report.progress import progress
from diffusion_jax.runs.conditions import SampleRequest, conditions, record
from diffusion_jax.runs.edit import Given, Prepared, prepare
from diffusion_jax.runs.trained import UNGUIDED, GuidedBy, Trained, restore, seeds_from
from diffusion_jax.train.checkpoint import versions

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
    request: SampleRequest,
    batch: int,
    step: int | None,
    average: bool | float,
    overwrite: bool,
    given: Given | None = None,
    guided_by: GuidedBy = UNGUIDED,
    **overrides: object,
) -> None:
    """Draws num samples from a checkpoint of the workdir root into the folder out, which appears whole or not at all.

    With an image given each sample is an edit of it, and edit.png shows them beside it.

    Sample i has seed `seed` + i and is of what `request` says; without labels, its class is drawn from its seed. step
    None is the newest checkpoint. overrides replace fields of the config's `Sampling` where not None.
    """
    if batch < 1:
        raise UserError(f"--batch is at least 1; got {batch}")
    seeds = seeds_from(seed, num)
    _check_out(out, overwrite)
    trained = restore(
        root,
        step=step,
        average=average,
        overrides=overrides,
        guided_by=guided_by,
    )
    prepared = None if given is None else prepare(given, trained.model.shape)
    cond = conditions(request, trained, seeds, painted=prepared is not None and prepared.edit.inpaint)
    program = _program(trained, prepared)
    size = -(-min(batch, num) // trained.share) * trained.share
    images = []
    with progress(num, description="sample", unit="samples") as bar:
        for start in range(0, num, size):
            take = np.arange(start, start + size).clip(max=num - 1)  # the last batch is padded: one compilation
            told = {name: a[take] for name, a in cond.items()}
            images.append(pictures.to_uint8(np.asarray(program(trained.params, trained.frozen, seeds[take], told))))
            bar.update(min(start + size, num))
    manifest = {
        "workdir": str(root),
        "checkpoint_step": trained.step,
        "weights": trained.weights,
        "sampling": dataclasses.asdict(trained.how),
        "seeds": [int(seed), int(seed) + num - 1],
        "asked": record(request),
        "labels": trained.label_names(cond["label"]) if "label" in cond else None,  # of each sample
        "guided_by": record(guided_by),
        "shape": list(images[0].shape[1:]),
        "edit": _edit_record(given, prepared, trained),
        "device": jax.devices()[0].device_kind,
        "versions": versions(),
    }
    drawn = np.concatenate(images)[:num]
    extra = {} if prepared is None else {"edit.png": _compare(prepared, drawn)}
    if told_pictures := _pictures(trained, cond, drawn.shape[-1]):
        extra["given.png"] = _beside(told_pictures, drawn)
    if 1 < len(request.labels) <= min(num, _COLUMNS):
        extra["classes.png"] = _by_class(drawn, manifest["labels"][: len(request.labels)])
    shown = {"grid.png": min(num, _GRID)} | dict.fromkeys(extra, min(num, _COMPARED))
    if "classes.png" in extra:
        shown["classes.png"] = min(num // len(request.labels), _COMPARED) * len(request.labels)
    _write(out, drawn, cond.get("label", np.zeros(num, np.int32)), seeds, manifest, extra)
    part = [f"; {name} shows the first {count}" for name, count in shown.items() if count < num]
    print(f"{num} samples of step {trained.step}: {out / 'grid.png'}{''.join(part)}")


def _program(trained: Trained, prepared: Prepared | None) -> Callable[..., jax.Array]:
    """(params, frozen, seeds, cond) -> images."""
    if prepared is None:
        return build.sample_program(trained.model, trained.how, trained.mesh, trained.guides)
    program = build.edit_program(trained.model, trained.how, trained.mesh, prepared.edit, trained.guides)
    return lambda params, frozen, seeds, cond: program(params, frozen, seeds, cond, prepared.image, prepared.unknown)


def _edit_record(given: Given | None, prepared: Prepared | None, trained: Trained) -> dict | None:
    """What is edited and how: with the time that the edit starts at, the noise there, and the steps from there on."""
    if given is None or prepared is None:
        return None
    times = build.edit_times(trained.model, trained.how, prepared.edit)
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


def _compare(prepared: Prepared, images: np.ndarray) -> np.ndarray:
    """The image as given, what of it is kept (the rest gray), and the first samples."""
    kept = np.where(prepared.unknown, 0.0, prepared.image)
    before = [prepared.image, kept] if prepared.edit.inpaint else [prepared.image]
    shown = np.concatenate([pictures.to_uint8(np.stack(before)), images[:_COMPARED]])
    titles = ["given", "kept"][: len(before)] + [f"edit {i}" for i in range(len(images[:_COMPARED]))]
    return pictures.labelled_grid(shown[None], columns=titles)


def _check_out(out: Path, overwrite: bool) -> None:
    """Raises unless out is new or empty, or holds samples that may be replaced."""
    if out.exists() and not out.is_dir():
        raise UserError(f"--out={out} is a file; give a folder")
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not overwrite:
        raise UserError(f"--out={out} already has files; give another folder, or --overwrite to replace its samples")
    if not (out / _MANIFEST).is_file():
        raise UserError(f"--out={out} has files but no {_MANIFEST}, so it is not a folder of samples; give another")


def _write(
    out: Path,
    images: np.ndarray,
    labels: np.ndarray,
    seeds: np.ndarray,
    manifest: dict,
    extra: Mapping[str, np.ndarray],
) -> None:
    """Writes everything, and the extra pictures, beside out, then moves it there."""
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        unfinished.chmod(0o755)  # mkdtemp makes it private
        for i, image in enumerate(images):
            (unfinished / f"{i:06d}.png").write_bytes(pictures.encode_png(image))
        (unfinished / "grid.png").write_bytes(pictures.encode_png(pictures.grid(images[:_GRID])))
        for name, picture in extra.items():
            (unfinished / name).write_bytes(pictures.encode_png(picture))
        np.savez_compressed(unfinished / "samples.npz", images=images, labels=labels, seeds=seeds)
        (unfinished / _MANIFEST).write_text(json.dumps(manifest, indent=2))
        if out.exists():
            shutil.rmtree(out)
        os.replace(unfinished, out)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
