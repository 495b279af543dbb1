"""`diffusion-jax evaluate compare`: what two evaluations say of two models, where they can be compared."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from diffusion_jax import config as configs
from diffusion_jax.data.text_file import decode_text
from diffusion_jax.errors import UserError
from diffusion_jax.runs.evaluate.results import FORMAT


def compare(a: Path, b: Path) -> dict[str, float]:
    """Prints each metric of both, its difference, and how what was measured differs; returns b - a by metric.

    Raises UserError, and says what differs, where a metric was not taken alike: another number of images, other
    features, other real images, another method.
    """
    first, second = _read(a), _read(b)
    ours, theirs = first["metrics"], second["metrics"]
    common = [name for name in ours if name in theirs]
    if not common:
        raise UserError(f"{a} has {', '.join(ours)} and {b} has {', '.join(theirs)}: no metric in common")
    if unlike := {name: text for name in common if (text := "; ".join(_differences(ours[name], theirs[name], "how")))}:
        name, text = next(iter(unlike.items()))
        raise UserError(f"{name} of {a} and of {b} cannot be compared ({text}); evaluate both alike")
    gaps = {name: theirs[name]["value"] - ours[name]["value"] for name in common}
    rows = [("", "A", "B", "B - A")]
    rows += [(n, _number(ours[n]), _number(theirs[n]), f"{gaps[n]:+.4g}") for n in common]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    for part in ("subject", "versions"):
        for text in _differences(first, second, part):
            print(f"{part} {text}")
    for name in sorted(set(ours) ^ set(theirs)):
        print(f"{name} is of {'A' if name in ours else 'B'} alone")
    return gaps


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"there is no file {path}; give a JSON file that evaluate wrote")
    text = decode_text(path.read_bytes(), str(path))
    try:
        value = json.loads(text)
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); give a file that evaluate wrote") from None
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise UserError(f"{path} is not a result that this version of evaluate wrote")
    return value


def _differences(a: dict[str, Any], b: dict[str, Any], part: str) -> Iterator[str]:
    """Of each key under part at which the two differ: key, the first's value / the second's."""
    ours, theirs = configs.flat(a[part]), configs.flat(b[part])
    for key in dict.fromkeys([*ours, *theirs]):
        if (x := ours.get(key, "-")) != (y := theirs.get(key, "-")):
            yield f"{key} {x} / {y}"


def _number(entry: dict[str, Any]) -> str:
    error = entry.get("std") or entry.get("standard_error")
    return f"{entry['value']:.6g}" + (f" ± {error:.2g}" if error else "")
