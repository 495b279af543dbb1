"""The metrics of a run, in metrics.jsonl and for TensorBoard."""

import io
import json
import math
import os
import time
import wave
from collections.abc import Mapping
from pathlib import Path
from typing import SupportsFloat

import numpy as np
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from diffusion_jax.errors import UserError
from diffusion_jax.report.atomic import replace_file


class MetricWriter:
    """Writes scalars to workdir/metrics.jsonl and workdir/tensorboard, and images to the latter.

    A line is {"step": int, name: number, ...}. It is strict JSON, in which a value that is not finite is null: every
    parser reads it, and a data frame has a missing value. TensorBoard distinguishes NaN and infinity.

    resumed_step is the step from which the run goes on. Lines of later steps, and an incomplete line, are deleted, so
    that each step is there once. None is a new run: an older metrics.jsonl is renamed to metrics.jsonl.old, and
    TensorBoard forgets the earlier values.
    """

    def __init__(self, workdir: str | os.PathLike[str], resumed_step: int | None = None):
        path = Path(workdir, "metrics.jsonl")
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            if resumed_step is None:
                os.replace(path, path.with_name("metrics.jsonl.old"))
            else:
                records = _read(path)
                kept = "".join(f"{line}\n" for line, step, _ in records if step <= resumed_step)
                replace_file(path, kept.encode())
        self._file = path.open("a", encoding="utf-8")
        folder = Path(workdir, "tensorboard")
        folder.mkdir(exist_ok=True)
        # Not SummaryWriter: its thread dies when the disk is full, and the run would wait for it without end. The
        # file's own time stamp is in seconds, so without the suffix a run that resumes at once would overwrite the
        # file.
        self._events = EventsWriter(str(folder / "events"), f".{time.time_ns()}")
        self._flushed = -math.inf
        # TensorBoard forgets the values of this step and of later ones.
        self._add(0 if resumed_step is None else resumed_step + 1, session_log=SessionLog(status=SessionLog.START))

    def scalars(self, step: int, values: Mapping[str, SupportsFloat]) -> None:
        """Writes a line: values are numbers or arrays of shape (), under any name but "step"."""
        if "step" in values:
            raise ValueError('a metric cannot be named "step"')
        numbers = {name: float(value) for name, value in values.items()}
        line = {"step": int(step)} | {name: x if math.isfinite(x) else None for name, x in numbers.items()}
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()
        for name, x in numbers.items():
            self._add(step, summary=summary.scalar(name, x))

    def images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Writes pictures, uint8 [H, W, C], for TensorBoard."""
        for name, image in images.items():
            self._add(step, summary=summary.image(name, image, dataformats="HWC"))

    def sounds(self, step: int, sounds: Mapping[str, bytes]) -> None:
        """Puts players of sounds, WAV files, into TensorBoard."""
        for name, data in sounds.items():  # not by summary.audio, which needs soundfile
            with wave.open(io.BytesIO(data)) as file:
                audio = Summary.Audio(
                    sample_rate=file.getframerate(),
                    num_channels=file.getnchannels(),
                    length_frames=file.getnframes(),
                    encoded_audio_string=data,
                    content_type="audio/wav",
                )
            self._add(step, summary=Summary(value=[Summary.Value(tag=name, audio=audio)]))

    def close(self) -> None:
        """Writes what is pending and closes the files."""
        try:
            self._file.close()
        finally:
            self._events.close()

    def _add(self, step: int, **content: Summary | SessionLog) -> None:
        self._events.write_event(Event(step=int(step), wall_time=time.time(), **content))
        if time.monotonic() - self._flushed > 10:  # seconds; a flush waits for the disk
            self._events.flush()
            self._flushed = time.monotonic()

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
    return [
        {name: math.nan if value is None else value for name, value in record.items()}
        for _, _, record in _read(Path(path))
    ]


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
