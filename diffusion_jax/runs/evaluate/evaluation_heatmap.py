"""`diffusion-jax evaluate heatmap`: scores by checkpoint, guidance, steps of the sampler and average."""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict, cast

import numpy as np

from diffusion_jax import ranges
from diffusion_jax.errors import UserError
from diffusion_jax.report.atomic import replace_file
from diffusion_jax.report.heatmap import heatmap_png
from diffusion_jax.runs.evaluate.real_images import Interrupted
from diffusion_jax.runs.evaluate.results import FORMAT, Measured, Result
from diffusion_jax.runs.evaluate.run import AGAIN, Evaluator, Request, checkpoint_digest
from diffusion_jax.runs.workdir.output_folder import OutputFolder
from diffusion_jax.runs.workdir.paths import Workdir
from diffusion_jax.runs.workdir.restored import choose_step, weights_name
from diffusion_jax.train.checkpoint import Checkpoints
from diffusion_jax.train.faults import stop_on_signal

ALL = "all"
"""The value of the axis `step` that stands for every checkpoint."""

OVERRIDES = {"guidance": float, "steps": int, "sampler": str, "grid": str, "guidance_rescale": float}
"""Axes that are keys of the config's sampling, and their types."""

AXES = ("step", "ema", *OVERRIDES)

HIGHER = {"precision", "recall", "inception_score", "psnr", "ssim", "clip_score", "median_ratio"}
"""The scores of which a higher value is better."""

_MOST = 3  # axes: rows, columns and panels


Value = bool | int | float | str

Place = dict[str, Value]
"""{name of an axis: the value there}."""


class Cell(TypedDict):
    """The scores at one combination of the axes."""

    at: Place
    file: str  # the result, relative to the heatmap's folder
    metrics: dict[str, Measured]


class Best(TypedDict):
    """The best value of a score, and where it is."""

    at: Place
    value: float


@dataclasses.dataclass(frozen=True)
class Axis:
    """A quantity that is varied, and its values in order."""

    name: str
    values: tuple[Value, ...]

    def label(self, value: Value) -> str:
        """The value as text, such as "1.5"; an average by its `weights_name`."""
        if self.name == "ema":
            assert not isinstance(value, str)
            return weights_name(value)
        return f"{value:g}" if isinstance(value, float) else str(value)


def heatmap(request: Request, over: Sequence[str], out: Path, *, save_seconds: float = 60.0) -> Path:
    """Measures the request at every combination of the axes over ("guidance=1,2,4"), and writes the folder out.

    The names of axes are `AXES`; the first axis gives the rows, the second the columns, the third panels. heatmap.json
    has every score, SCORE.png is a picture of one. cells/ has a result of `evaluate` for each combination; a run that
    was killed goes on from the results there. Returns the path of heatmap.json. Raises UserError for an axis that is
    unknown or has no such values, and what `evaluate` raises.
    """
    axes = [_axis(text, request.root) for text in over]
    if request.step is None and not any(axis.name == "step" for axis in axes):
        request = dataclasses.replace(request, step=_steps([ALL], request.root)[-1])
    if not 1 <= len(axes) <= _MOST or len({axis.name for axis in axes}) < len(axes):
        raise UserError(f"--over is given for 1 to {_MOST} axes, each once; got {', '.join(over) or 'none'}")
    OutputFolder(out).check()
    cells: list[Cell] = []
    evaluator = Evaluator(request)
    combinations = list(itertools.product(*(axis.values for axis in axes)))
    with stop_on_signal() as stop:
        for i, values in enumerate(combinations):
            place = dict(zip((axis.name for axis in axes), values, strict=True))
            cell_request = _at(request, place)
            file = out / "cells" / f"{_key(cell_request)}.json"
            result = _read(file, request.root)
            if result is None:
                text = ", ".join(f"{axis.name} {axis.label(value)}" for axis, value in zip(axes, values, strict=True))
                print(f"{i + 1} of {len(combinations)}: {text}", flush=True)
                try:
                    result, _ = evaluator.measure(
                        cell_request, out / "cells", save_seconds, lambda: stop.signal is not None
                    )
                except Interrupted as done:
                    print(f"stopped by {stop.signal} after {done} of this; the same command goes on", flush=True)
                    raise SystemExit(AGAIN) from None
                replace_file(file, json.dumps(result, indent=2, allow_nan=False).encode())
            cells.append({"at": place, "file": str(file.relative_to(out)), "metrics": result["metrics"]})
            if stop.signal is not None and i + 1 < len(combinations):
                print(
                    f"stopped by {stop.signal} after {i + 1} of {len(combinations)}; the same command goes on",
                    flush=True,
                )
                raise SystemExit(AGAIN)
    return _write(request, axes, cells, out)


def _write(request: Request, axes: Sequence[Axis], cells: Sequence[Cell], out: Path) -> Path:
    """Writes a picture of each score and heatmap.json, prints the best combination of each; returns heatmap.json."""
    shape = tuple(len(axis.values) for axis in axes)
    best: dict[str, Best] = {}
    for score, measured in cells[0]["metrics"].items():
        values = np.asarray([cell["metrics"][score]["value"] for cell in cells], np.float64)
        winner = cells[int(np.argmax(values) if score in HIGHER else np.argmin(values))]
        best[score] = {"at": winner["at"], "value": winner["metrics"][score]["value"]}
        names = [(axis.name, [axis.label(value) for value in axis.values]) for axis in axes]
        title = f"{measured['label']}, n = {measured['how']['n']}"
        replace_file(out / f"{score}.png", heatmap_png(values.reshape(shape), names, title, higher=score in HIGHER))
    record = {
        "format": "diffusion_jax heatmap 1",
        "workdir": str(request.root),
        "axes": [{"name": axis.name, "values": list(axis.values)} for axis in axes],
        "best": best,
        "cells": list(cells),
    }
    file = out / "heatmap.json"
    replace_file(file, json.dumps(record, indent=2, allow_nan=False).encode())
    for score, top in best.items():
        where = ", ".join(f"{axis.name} {axis.label(top['at'][axis.name])}" for axis in axes)
        print(f"best {score}: {top['value']:.6g} at {where}")
    print(f"{len(cells)} combinations: {file}")
    return file


def _axis(text: str, root: Path) -> Axis:
    """The axis of "NAME=VALUE,VALUE,...". Commas within parentheses do not separate values."""
    name, equals, rest = text.partition("=")
    parts = [part.strip() for part in re.split(r",(?![^()]*\))", rest) if part.strip()]
    if name not in AXES or not equals or not parts:
        raise UserError(f"--over is AXIS=VALUE,VALUE,... with an axis of {', '.join(AXES)}; got {text!r}")
    if name == "step":
        return Axis(name, tuple(_steps(parts, root)))
    try:
        values: list[Value] = [_average(part) if name == "ema" else OVERRIDES[name](part) for part in parts]
    except ValueError:
        raise UserError(f"--over={text}: the values of {name} are not all of type {_type(name)}") from None
    for value in values:
        if not isinstance(value, bool):  # --ema=true has no range
            ranges.check_flag("evaluate heatmap", name, value)
    if len(set(map(str, values))) < len(values):
        raise UserError(f"--over={text} has a value twice")
    return Axis(name, tuple(values))


def _type(name: str) -> str:
    return "true, false or a length" if name == "ema" else OVERRIDES[name].__name__


def _average(text: str) -> bool | float:
    return text == "true" if text in ("true", "false") else float(text)


def _steps(parts: Sequence[str], root: Path) -> list[int]:
    """The steps of checkpoints, ascending, each once; raises UserError where the workdir has no such checkpoint."""
    workdir = Workdir(root)
    workdir.read_config()  # raises where root is no workdir
    with contextlib.closing(Checkpoints(workdir.checkpoints, read_only=True)) as checkpoints:
        choose_step(checkpoints, None)  # raises where there is no checkpoint
        if list(parts) == [ALL]:
            return checkpoints.steps()
        if wrong := [part for part in parts if not part.isdecimal()]:
            raise UserError(f"--over=step={','.join(parts)}: steps are numbers, or all; got {wrong[0]!r}")
        return [choose_step(checkpoints, step) for step in sorted({int(part) for part in parts})]


def _at(request: Request, place: Mapping[str, Value]) -> Request:
    """The request of one combination of the axes."""
    overrides = dict(request.overrides) | {name: value for name, value in place.items() if name in OVERRIDES}
    step, average = place.get("step", request.step), place.get("ema", request.average)
    return dataclasses.replace(request, overrides=overrides, step=step, average=average)  # type: ignore[arg-type]


def _key(request: Request) -> str:
    """The name of the file of a request's result."""
    text = json.dumps(dataclasses.asdict(request), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _read(file: Path, root: Path) -> Result | None:
    """The result in a file; None where there is no whole one, or the checkpoint was another when it was written."""
    if not file.is_file():
        return None
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return None
    if not isinstance(result, dict) or result.get("format") != FORMAT:
        return None
    subject = result["subject"]
    now = checkpoint_digest(root, subject["checkpoint_step"])
    return cast(Result, result) if subject["checkpoint_sha256"] == now else None
