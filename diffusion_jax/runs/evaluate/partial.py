"""What an evaluation under way has gathered, in a file beside its result: a run that was killed goes on from there."""

import hashlib
import io
import json
import sys
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_jax.evals.gathering import Gathered
from diffusion_jax.evals.moments import Moments
from diffusion_jax.report.atomic import replace_file

_COST = 20
"""Saving takes at most one part in so many of the time."""


class PartialEvaluation:
    """The sets of images gathered so far for one evaluation, which request describes to the last detail.

    The file's name is the request's SHA-256: another evaluation never goes on from it. It is written whole or not at
    all, every so many seconds (0: as often as asked), and removed in the end.
    """

    def __init__(self, folder: Path, request: Mapping[str, Any], *, seconds: float = 60.0):
        text = json.dumps(request, sort_keys=True, default=str)
        self.path = folder / f"unfinished-{hashlib.sha256(text.encode()).hexdigest()[:16]}.npz"
        self._seconds, self._next = seconds, time.monotonic() + seconds
        self._sets: dict[str, Gathered] = {}
        self._notes: dict[str, Any] = {}
        self._read()

    def of(self, name: str) -> tuple[Gathered | None, Any]:
        """(what is gathered of this set of images, what was noted of it), or (None, None)."""
        return self._sets.get(name), self._notes.get(name)

    def due(self) -> bool:
        """Whether it is time to `write`."""
        return time.monotonic() >= self._next

    def write(self, name: str, gathered: Gathered, note: Any = None) -> None:
        """Sets what is gathered of one set of images, and saves all."""
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
        """The evaluation is finished."""
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
