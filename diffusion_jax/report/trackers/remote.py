"""A run at a service that keeps what it was sent, and takes nothing back."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypedDict, TypeVar

import numpy as np

from diffusion_jax.errors import UserError
from diffusion_jax.report.atomic import replace_file
from diffusion_jax.report.trackers.tracker import RunName

NAME = "trackers.json"
"""The file of a workdir that holds the `State` of each service."""


_CHECKPOINT = "checkpoint"  # among the names in `State.sent`

_Value = TypeVar("_Value", float, np.ndarray, bytes)


class State(TypedDict, total=False):
    """What a workdir remembers of its run at a service."""

    id: str  # of the run at the service
    place: str  # where the run is: project, address
    rows: int  # sent so far
    sent: dict[str, int]  # the last step that was sent, by the name of a scalar, picture or sound


class Service(Protocol):
    """The run at a service. Its methods may raise whatever the service's package raises."""

    state: State  # with id and place
    line: str  # where the run is looked at

    def scalars(self, row: int, step: int, values: Mapping[str, float]) -> None:
        """Sends numbers; row counts the calls, through all starts of the run."""

    def images(self, row: int, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Sends pictures uint8 [H, W, C]."""

    def sounds(self, row: int, step: int, sounds: Mapping[str, bytes]) -> None:
        """Sends WAV files."""

    def config(self, values: Mapping[str, object], text: str) -> None:
        """Sends the config, or what has changed of it."""

    def checkpoint(self, step: int, provenance: Mapping[str, object]) -> None:
        """Sends the provenance of a checkpoint."""

    def close(self) -> None:
        """Waits until all is sent or, offline, written."""


class Remote:
    """Sends each value of each step once, whatever the run repeats.

    What has been sent is kept in trackers.json of the workdir. A run that goes on from a checkpoint sends nothing for
    steps that it does again, which are the same numbers; after a roll-back they are others, and the service keeps the
    first. What the service lacks of the records in metrics.jsonl is sent at the start.

    A service that fails does not end the training: stderr says so once, the rest of this start is not sent, and the
    next start sends the scalars that are missing.
    """

    def __init__(self, name: str, run: RunName, connect: Callable[[RunName, State | None], Service]):
        self._name, self._file = name, run.root / NAME
        self._connect, self._run = connect, run
        self._service: Service | None = None
        self._state: State = {}
        self._opened = False

    @property
    def line(self) -> str:
        """Where the run is looked at."""
        return "" if self._service is None else self._service.line

    def start(self, step: int | None, records: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        """Opens the run at the first call, a new one for None, and sends the records that it lacks.

        Raises UserError where it cannot be opened.
        """
        if not self._opened:
            known = read(self._file).get(self._name)
            if step is None and known and known.get("sent"):
                known = None  # another run, that had begun; one that had sent nothing is this one
            try:
                self._service = self._connect(self._run, known)
            except UserError:
                raise
            except Exception as error:  # each package has its own
                raise UserError(
                    f"{self._name} cannot be opened: {_said(error)}; mend it, or leave it out of log.to"
                ) from error
            self._state = {"rows": 0, "sent": {}} | (known or {}) | self._service.state
            self._opened = True
            self._remember()
        for at, values in records:
            self.scalars(at, values)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Sends the numbers that were not sent for this step or a later one."""
        self._send(step, values, lambda service, row, new: service.scalars(row, step, new))

    def images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Sends the pictures that were not sent for this step or a later one."""
        self._send(step, images, lambda service, row, new: service.images(row, step, new))

    def sounds(self, step: int, sounds: Mapping[str, bytes]) -> None:
        """Sends the sounds that were not sent for this step or a later one."""
        self._send(step, sounds, lambda service, row, new: service.sounds(row, step, new))

    def config(self, values: Mapping[str, object], text: str) -> None:
        """Sends the config."""
        self._attempt(lambda service: service.config(values, text))

    def checkpoint(self, step: int, provenance: Mapping[str, object]) -> None:
        """Sends the provenance of a checkpoint, unless that of this step or a later one was sent."""
        if self._service is None or step <= self._state["sent"].get(_CHECKPOINT, -1):
            return
        self._attempt(lambda service: service.checkpoint(step, provenance))
        if self._service is not None:
            self._state["sent"][_CHECKPOINT] = step
            self._remember()

    def close(self) -> None:
        """Waits until all is sent."""
        self._attempt(lambda service: service.close())
        self._service = None

    def _send(
        self, step: int, values: Mapping[str, _Value], send: Callable[[Service, int, Mapping[str, _Value]], None]
    ) -> None:
        new = {name: value for name, value in values.items() if step > self._state["sent"].get(name, -1)}
        if not new or self._service is None:
            return
        self._attempt(lambda service: send(service, self._state["rows"], new))
        if self._service is not None:
            self._state["rows"] += 1
            self._state["sent"] |= dict.fromkeys(new, step)
            self._remember()

    def _attempt(self, action: Callable[[Service], None]) -> None:
        if self._service is None:
            return
        try:
            action(self._service)
        except Exception as error:  # each package has its own
            self._service = None
            print(
                f"diffusion-jax: {self._name} is given nothing more in this start: {_said(error)}; metrics.jsonl has "
                "everything, and the next start sends what is missing",
                file=sys.stderr,
                flush=True,
            )

    def _remember(self) -> None:
        states = read(self._file) | {self._name: self._state}
        replace_file(self._file, json.dumps(states, indent=1).encode())


def read(file: Path) -> dict[str, State]:
    """{service: its state} of a trackers.json; {} where there is none. Raises UserError where it is damaged."""
    try:
        found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        if not all(isinstance(state.get("id"), str) for state in found.values()):
            raise ValueError("it names no run")
    except (ValueError, AttributeError) as error:
        raise UserError(
            f"{file} is damaged: {error}; restore a copy of it, or remove it for new runs at the services of log.to"
        ) from error
    return found


def _said(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
