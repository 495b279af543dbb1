"""The result of an evaluation: JSON that says all that it takes to believe it, and to repeat it."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from diffusion_jax.report.atomic import replace_file
from diffusion_jax.train.provenance import versions

FORMAT = "diffusion_jax evaluation 1"


def result_of(
    root: Path, config: ConfigDict, about: Mapping[str, Any], metrics: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """The result: about says what of the workdir root was measured, and metrics has each score."""
    return {
        "format": FORMAT,
        "subject": {"workdir": str(root), **about},
        "data": {"source": config.data.source, "split": config.data.split},
        "metrics": metrics,
        "device": jax.devices()[0].device_kind,
        "versions": versions(),
    }


def write(result: Mapping[str, Any], folder: Path, out: Path | None = None) -> Path:
    """Writes a result to out, or to folder under a name of its own; returns the file."""
    text = json.dumps(result, indent=2, allow_nan=False)
    if out is None:
        digest = hashlib.sha256(text.encode()).hexdigest()  # the same evaluation again gives the same file
        out = folder / f"{result['subject']['checkpoint_step']:08d}-{digest[:8]}.json"
    replace_file(out, text.encode())
    return out


def line(entry: Mapping[str, Any]) -> str:
    """A metric's result as a person reads it."""
    value, std, error = (entry.get(name) for name in ("value", "std", "standard_error"))
    text = f"{entry['label']}: {value:.6g}"
    text += f" ± {std:.2g} (standard deviation)" if std is not None else ""
    text += f" ± {error:.2g} (standard error)" if error is not None else ""
    parts = [f"{name} {part:.4g}" for name, part in entry.get("parts", {}).items()]
    return text + (f" = {' + '.join(parts)}" if parts else "") + f", n = {entry['how']['n']}"
