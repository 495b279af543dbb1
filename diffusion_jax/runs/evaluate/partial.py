"""The features gathered by an evaluation that is not complete, in a file from which a later run goes on."""

import hashlib
import io
import json
import sys
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from diffusion_jax.evals.gathering import Gathered
from diffusion_jax.evals.moments import Moments
from diffusion_jax.report.atomic import replace_file

_COST = 20
"""Saves take at most 1 / _COST of the time."""


class PartialEvaluation:
    """The features gathered so far for one evaluation: one set for the samples, one for the real images.

    request has everything that the features depend on. The file's name is the SHA-256 of request, so that no other
    evaluation goes on from it. The file is written whole or not at all. `due` is true every `seconds`, or always for 0.
    """

    def __init__(self, folder: Path, request: Mapping[str, object], *, seconds: float = 60.0):
        text = json.dumps(request, sort_keys=True, default=str)
        self.path = folder / f"unfinished-{hashlib.sha256(text.encode()).hexdigest()[:16]}.npz"
        self._seconds, self._next = seconds, time.monotonic() + seconds
        self._sets: dict[str, Gathered] = {}
        self._notes: dict[str, Mapping[str, object] | None] = {}
        self._read()

    def of(self, name: str) -> tuple[Gathered | None, Mapping[str, object] | None]:
        """(the features of the set called name, its note), or (None, None) where none are saved."""
        return self._sets.get(name), self._notes.get(name)

    def due(self) -> bool:
        """Whether it is time to `write`."""
        return time.monotonic() >= self._next

    def write(self, name: str, gathered: Gathered, note: Mapping[str, object] | None = None) -> None:
        """Replaces the features and the note (JSON) of the set called name, and saves all sets."""
        began = time.monotonic()
        self._sets[name], self._notes[name] = gathered, note
        arrays: dict[str, np.ndarray] = {}
        for each, some in self._sets.items():
            arrays[f"{each}/count"] = np.asarray(some.count)
            for feature, m in some.moments.items():
                parts = {"count": np.asarray(m.count), "mean": m.mean, "scatter": m.scatter}
                arrays |= {f"{each}/moments/{feature}/{part}": a for part, a in parts.items()}
            arrays |= {f"{each}/kept/{feature}": a for feature, a in some.kept.items()}
        arrays["notes"] = np.frombuffer(json.dumps(self._notes).encode(), np.uint8)
        data = io.BytesIO()
        np.savez(data, allow_pickle=False, **arrays)
        replace_file(self.path, data.getvalue())
        now = time.monotonic()
        self._next = now + max(self._seconds, _COST * (now - began) if self._seconds else 0.0)

    def remove(self) -> None:
        """Removes the file, once the evaluation is complete."""
        self.path.unlink(missing_ok=True)

    def _read(self) -> None:
        if not self.path.is_file():
            return
        try:
            with np.load(self.path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            self._notes = json.loads(arrays.pop("notes").tobytes())
            self._sets = {each: _gathered(each, arrays) for each in self._notes}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            self._sets, self._notes = {}, {}
            print(f"diffusion-jax: {self.path} is damaged ({error}); starting over", file=sys.stderr)


def _gathered(name: str, arrays: Mapping[str, np.ndarray]) -> Gathered:
    under = {key.removeprefix(f"{name}/"): a for key, a in arrays.items() if key.startswith(f"{name}/")}
    features = {key.split("/")[1] for key in under if key.startswith("moments/")}
    return Gathered(
        int(under["count"]),
        {
            f: Moments(int(under[f"moments/{f}/count"]), under[f"moments/{f}/mean"], under[f"moments/{f}/scatter"])
            for f in sorted(features)
        },
        {key.removeprefix("kept/"): a for key, a in under.items() if key.startswith("kept/")},
    )
