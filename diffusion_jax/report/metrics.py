"""The metrics of a run, in metrics.jsonl and for trackers such as TensorBoard."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import SupportsFloat

import numpy as np

from diffusion_jax.errors import UserError
from diffusion_jax.report.atomic import replace_file
from diffusion_jax.report.trackers import NO_TRACKERS, Trackers


class MetricWriter:
    """Writes scalars to workdir/metrics.jsonl, and all that it is given to trackers.

    A line is {"step": int, name: number, ...}. It is strict JSON, in which a value that is not finite is null: every
    parser reads it, and a data frame has a missing value.

    resumed_step is the step from which the run goes on. Lines of later steps, and an incomplete line, are deleted, so
    that each step is there once. None is a new run: an older metrics.jsonl is renamed to metrics.jsonl.old. The caller
    closes trackers, which are started here.
    """

    def __init__(
        self, workdir: str | os.PathLike[str], resumed_step: int | None = None, trackers: Trackers = NO_TRACKERS
    ):
        self._trackers = trackers
        path = Path(workdir, "metrics.jsonl")
        path.parent.mkdir(parents=True, exist_ok=True)
        kept: list[tuple[str, int, dict[str, float | None]]] = []
        if path.exists():
            if resumed_step is None:
                os.replace(path, path.with_name("metrics.jsonl.old"))
            else:
                kept = [(line, step, record) for line, step, record in _read(path) if step <= resumed_step]
                replace_file(path, "".join(f"{line}\n" for line, _, _ in kept).encode())
        self._file = path.open("a", encoding="utf-8")
        trackers.start(resumed_step, [(step, _scalars(record)) for _, step, record in kept])

    def scalars(self, step: int, values: Mapping[str, SupportsFloat]) -> None:
        """Writes a line: values are numbers or arrays of shape (), under any name but "step"."""
        if "step" in values:
            raise ValueError('a metric cannot be named "step"')
        numbers = {name: float(value) for name, value in values.items()}
        line = {"step": int(step)} | {name: x if math.isfinite(x) else None for name, x in numbers.items()}
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()
        self._trackers.scalars(int(step), numbers)

    def images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Gives pictures, uint8 [H, W, C], to the trackers."""
        self._trackers.images(int(step), images)

    def sounds(self, step: int, sounds: Mapping[str, bytes]) -> None:
        """Gives sounds, WAV files, to the trackers."""
        self._trackers.sounds(int(step), sounds)

    def close(self) -> None:
        """Closes metrics.jsonl."""
        self._file.close()

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class NullWriter:
    """A metric writer that writes nothing, for all processes of a run but the first."""

    def scalars(self, step: int, values: Mapping[str, SupportsFloat]) -> None:
        """Does nothing."""

    def images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Does nothing."""

    def sounds(self, step: int, sounds: Mapping[str, bytes]) -> None:
        """Ignores them."""

    def close(self) -> None:
        """Does nothing."""

    def __enter__(self) -> "NullWriter":
        return self

    def __exit__(self, *error: object) -> None:
        pass


MetricRecord = dict[str, float]
"""A line of metrics.jsonl, {"step": int, name of a metric: number}, with NaN for null."""


def read_metrics(path: str | os.PathLike[str]) -> list[MetricRecord]:
    """The records of a metrics.jsonl in order, without an incomplete last line.

    Raises UserError for any other line that is no record.
    """
    return [{"step": step} | _scalars(record) for _, step, record in _read(Path(path))]


def _scalars(record: Mapping[str, float | None]) -> MetricRecord:
    """The numbers of a record without its step, NaN for null."""
    return {name: math.nan if value is None else value for name, value in record.items() if name != "step"}


def _read(path: Path) -> list[tuple[str, int, dict[str, float | None]]]:
    """(line, step, record) of every line but an incomplete last one."""
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    records = []
    for i, line in enumerate(lines):
        try:
            record = json.loads(line)
            step = record["step"]
        except (ValueError, KeyError, TypeError):
            step = None
        if isinstance(step, int):
            records.append((line, step, record))
        elif i < len(lines) - 1:
            raise UserError(
                f'{path}, line {i + 1}, is not a record such as {{"step": 100, "loss": 0.05}}: {line[:80]!r}; '
                "remove the line, or move the file away"
            )
    return records
