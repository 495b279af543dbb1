"""The result of an evaluation as JSON: the scores, and everything that is needed to repeat them."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import NotRequired, TypedDict

import jax
from ml_collections import ConfigDict

from diffusion_jax.report.atomic import replace_file
from diffusion_jax.train.provenance import versions

FORMAT = "diffusion_jax evaluation 1"


class Measured(TypedDict):
    """One score and how it was computed."""

    label: str  # its name for a person
    value: float
    how: dict[str, object]  # every choice that the value depends on; two scores are comparable where these are equal
    std: NotRequired[float | None]  # the standard deviation over subsets or samples
    standard_error: NotRequired[float | None]
    parts: NotRequired[dict[str, float]]  # terms that add up to the value
    standard_errors: NotRequired[dict[str, float | None]]  # of the parts
    features: NotRequired[dict[str, object] | None]  # the record of the feature extractor
    notes: NotRequired[list[str]]  # sentences for the user


class Subject(TypedDict):
    """What was measured: which weights of a workdir, and how samples were drawn."""

    checkpoint_step: int
    weights: str  # `restored.weights_name`
    seed: int
    workdir: NotRequired[str]
    checkpoint_sha256: NotRequired[str | None]  # of the checkpoint's manifest
    seeds: NotRequired[list[int]]  # of the first and the last sample
    guided_by: NotRequired[dict[str, object]]
    sampling: NotRequired[Mapping[str, object] | None]  # None: reconstructions of an autoencoder


class Result(TypedDict):
    """The result of one evaluation."""

    format: str
    subject: Subject
    data: dict[str, str]  # source and split of the real images
    metrics: dict[str, Measured]
    device: str
    versions: dict[str, str]


def result_of(root: Path, config: ConfigDict, subject: Subject, metrics: dict[str, Measured]) -> Result:
    """The result for the workdir root, whose subject has everything but the workdir's name."""
    return {
        "format": FORMAT,
        "subject": {"workdir": str(root), **subject},
        "data": {"source": config.data.source, "split": config.data.split},
        "metrics": metrics,
        "device": jax.devices()[0].device_kind,
        "versions": versions(),
    }


def write(result: Result, folder: Path, out: Path | None = None) -> Path:
    """Writes a result to out or, for None, to a file in folder whose name is its step and digest; returns the file."""
    text = json.dumps(result, indent=2, allow_nan=False)
    if out is None:
        digest = hashlib.sha256(text.encode()).hexdigest()  # the same evaluation again gives the same file
        out = folder / f"{result['subject']['checkpoint_step']:08d}-{digest[:8]}.json"
    replace_file(out, text.encode())
    return out


def line(score: Measured) -> str:
    """One line of text for a score: label, value, its deviation or error, parts, number of images."""
    std, error = score.get("std"), score.get("standard_error")
    text = f"{score['label']}: {score['value']:.6g}"
    text += f" ± {std:.2g} (standard deviation)" if std is not None else ""
    text += f" ± {error:.2g} (standard error)" if error is not None else ""
    parts = [f"{name} {part:.4g}" for name, part in score.get("parts", {}).items()]
    return text + (f" = {' + '.join(parts)}" if parts else "") + f", n = {score['how']['n']}"
