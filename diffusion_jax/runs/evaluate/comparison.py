"""`diffusion-jax evaluate compare`: the differences between two evaluations, where they are comparable."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import cast

from diffusion_jax import config as configs
from diffusion_jax.data.text_file import decode_text
from diffusion_jax.errors import UserError
from diffusion_jax.runs.evaluate.results import FORMAT, Measured, Result


def compare(a: Path, b: Path) -> dict[str, float]:
    """Prints each metric of both results, its difference, and what differs between the models; returns {metric: b - a}.

    Raises UserError that lists what differs where a metric was computed in two ways: from another number of images,
    other features, other real images, or by another method.
    """
    first, second = _read(a), _read(b)
    ours, theirs = first["metrics"], second["metrics"]
    common = [name for name in ours if name in theirs]
    if not common:
        raise UserError(f"{a} has {', '.join(ours)} and {b} has {', '.join(theirs)}: no metric in common")
    for name in common:
        if text := "; ".join(_differences(ours[name]["how"], theirs[name]["how"])):
            raise UserError(f"{name} of {a} and of {b} cannot be compared ({text}); evaluate both alike")
    gaps = {name: theirs[name]["value"] - ours[name]["value"] for name in common}
    rows = [("", "A", "B", "B - A")]
    rows += [(n, _number(ours[n]), _number(theirs[n]), f"{gaps[n]:+.4g}") for n in common]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    for text in _differences(first["subject"], second["subject"]):
        print(f"subject {text}")
    for text in _differences(first["versions"], second["versions"]):
        print(f"versions {text}")
    for name in sorted(set(ours) ^ set(theirs)):
        print(f"{name} is of {'A' if name in ours else 'B'} alone")
    return gaps


def _read(path: Path) -> Result:
    if not path.is_file():
        raise UserError(f"there is no file {path}; give a JSON file that evaluate wrote")
    text = decode_text(path.read_bytes(), str(path))
    try:
        value = json.loads(text)
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); give a file that evaluate wrote") from None
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise UserError(f"{path} is not a result that this version of evaluate wrote")
    return cast(Result, value)


def _differences(a: Mapping[str, object], b: Mapping[str, object]) -> Iterator[str]:
    """Yields "KEY VALUE OF a / VALUE OF b" for each dotted key at which the two differ."""
    ours, theirs = configs.flat(a), configs.flat(b)
    for key in dict.fromkeys([*ours, *theirs]):
        if (x := ours.get(key, "-")) != (y := theirs.get(key, "-")):
            yield f"{key} {x} / {y}"


def _number(score: Measured) -> str:
    error = score.get("std") or score.get("standard_error")
    return f"{score['value']:.6g}" + (f" ± {error:.2g}" if error else "")
