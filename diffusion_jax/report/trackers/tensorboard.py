"""A run in TensorBoard: event files in its workdir."""

import io
import json
import math
import shutil
import time
import wave
from collections.abc import Mapping, Sequence

import numpy as np
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from diffusion_jax.report.trackers.tracker import RunName

FOLDER = "tensorboard"
"""The folder of the event files in a workdir."""


class TensorBoard:
    """Writes events to workdir/tensorboard. TensorBoard forgets the values of the steps that a run does again."""

    def __init__(self, run: RunName):
        self._folder = run.root / FOLDER
        self._events: EventsWriter | None = None  # until the run starts, which may not come to be
        self._flushed = -math.inf
        self._started = self._told = 0  # steps
        self.line = f"TensorBoard: tensorboard --logdir={run.root}"
        if shutil.which("tensorboard") is None:
            self.line += " (pip install tensorboard)"

    def start(self, step: int | None, records: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        """Tells TensorBoard to forget the values after step."""
        if self._events is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            # Not SummaryWriter: its thread dies when the disk is full, and the run would wait for it without end. The
            # file's own time stamp is in seconds, so without the suffix a run that resumes at once would overwrite the
            # file.
            self._events = EventsWriter(str(self._folder / "events"), f".{time.time_ns()}")
        self._started = self._told = step or 0
        self._add(0 if step is None else step + 1, session_log=SessionLog(status=SessionLog.START))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Adds numbers; TensorBoard distinguishes NaN and infinity."""
        for name, value in values.items():
            self._add(step, summary=summary.scalar(name, value))

    def images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Adds pictures uint8 [H, W, C]."""
        for name, image in images.items():
            self._add(step, summary=summary.image(name, image, dataformats="HWC"))

    def sounds(self, step: int, sounds: Mapping[str, bytes]) -> None:
        """Adds players of WAV files."""
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

    def config(self, values: Mapping[str, object], text: str) -> None:
        """Adds the config as a text, at the step of the start."""
        self._add(self._started, summary=summary.text("config", _code(text)))

    def checkpoint(self, step: int, provenance: Mapping[str, object]) -> None:
        """Adds the provenance of a checkpoint as a text, unless it was there before or when the run started."""
        if step > self._told:
            self._told = step
            self._add(step, summary=summary.text("checkpoint", _code(json.dumps(provenance, indent=2))))

    def close(self) -> None:
        """Writes what is pending and closes the file."""
        if self._events is not None:
            self._events.close()

    def _add(self, step: int, **content: Summary | SessionLog) -> None:
        assert self._events is not None, "the run has not started"
        self._events.write_event(Event(step=int(step), wall_time=time.time(), **content))
        if time.monotonic() - self._flushed > 10:  # seconds; a flush waits for the disk
            self._events.flush()
            self._flushed = time.monotonic()


def _code(text: str) -> str:
    """The Markdown of a block of code, in which TensorBoard shows a text."""
    return "\n".join(f"    {line}" for line in text.splitlines())
