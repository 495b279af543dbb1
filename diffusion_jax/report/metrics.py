"""Metrics of a run: metrics.jsonl, which anything reads, and TensorBoard."""

import io
import json
import math
import os
import time
import wave
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from diffusion_jax.errors import UserError
from diffusion_jax.report.atomic import replace_file


class MetricWriter:
    """Writes scalars to workdir/metrics.jsonl and workdir/tensorboard, images to the latter.

    A line is {"step": int, name: number, ...}, on disk as soon as written. It is strict JSON: a value that is not
    finite is null, which every parser takes and data frames read as missing; TensorBoard keeps NaN and infinity apart.

    resumed_step is the step of the checkpoint that the run goes on from: what was written of later steps, or half
    written, is taken away, so that no step is lost or doubled. None is a new run: an older metrics.jsonl is set aside
    as metrics.jsonl.old, and TensorBoard is told to forget.
    """

    def __init__(self, workdir: str | os.PathLike[str], resumed_step: int | None = None):
        path = Path(workdir, "metrics.jsonl")
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            if resumed_step is None:
                os.replace(path, path.with_name("metrics.jsonl.old"))
            else:
                records = _read(path)
                kept = "".join(f"{line}\n" for line, record in records if record["step"] <= resumed_step)
                replace_file(path, kept.encode())
        self._file = path.open("a", encoding="utf-8")
        folder = Path(workdir, "tensorboard")
        folder.mkdir(exist_ok=True)
        # Not through SummaryWriter, whose thread dies of a full disk and leaves the run waiting for it for ever.
        # The file's own stamp is in seconds: without the suffix a quick resume would overwrite it.
        self._events = EventsWriter(str(folder / "events"), f".{time.time_ns()}")
        self._flushed = -math.inf
        # TensorBoard forgets this step and later ones.
        self._add(0 if resumed_step is None else resumed_step + 1, session_log=SessionLog(status=SessionLog.START))

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        """Writes one record: values are numbers or arrays of shape (), under any name but "step"."""
        if "step" in values:
            raise ValueError('a metric cannot be named "step"')
        numbers = {name: float(value) for name, value in values.items()}
        line = {"step": int(step)} | {name: x if math.isfinite(x) else None for name, x in numbers.items()}
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()
        for name, x in numbers.items():
            self._add(step, summary=summary.scalar(name, x))

    def images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Shows pictures, uint8 [H, W, C], in TensorBoard."""
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
        """Writes out what is pending; nothing can be written after."""
        try:
            self._file.close()
        finally:
            self._events.close()

    def _add(self, step: int, **content: Any) -> None:
        self._events.write_event(Event(step=int(step), wall_time=time.time(), **content))
        if time.monotonic() - self._flushed > 10:  # seconds: it waits for the disk
            self._events.flush()
            self._flushed = time.monotonic()

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class NullWriter:
    """Writes nothing: the metric writer of every process but the first."""

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        """Ignores them."""

    def images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Ignores them."""

    def sounds(self, step: int, sounds: Mapping[str, bytes]) -> None:
        """Ignores them."""

    def close(self) -> None:
        """Does nothing."""

    def __enter__(self) -> "NullWriter":
        return self

    def __exit__(self, *error: object) -> None:
        pass


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl in order, null as NaN; a last line still being written is left out.

    Raises UserError for any other line that is not a record.
    """
    return [
        {name: math.nan if value is None else value for name, value in record.items()}
        for _, record in _read(Path(path))
    ]


def _read(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """(line, record) of every line, but for a half-written last one."""
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    records = []
    for i, line in enumerate(lines):
        try:
            record = json.loads(line)
            step = record["step"]
        except (ValueError, KeyError, TypeError):
            step = None
        if isinstance(step, int):
            records.append((line, record))
        elif i < len(lines) - 1:
            raise UserError(
                f'{path}, line {i + 1}, is not a record such as {{"step": 100, "loss": 0.05}}: {line[:80]!r}; '
                "remove the line, or move the file away"
            )
    return records
