"""The trials of a sweep on disk: each an ordinary workdir, with a record of how it ended and a lock on who runs it.

sweep.json            what the sweep is: another one is refused
trials/000/           a workdir
trials/000/trial.json how it ended: state, value, reason, seconds
trials/000/log.txt    what its process said
trials/000/owner      locked as long as a sweep process sees to the trial
trials/000/lock       locked as long as its own process runs, even where the sweep's was killed
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import shlex
import signal
import socket
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from diffusion_jax import config as configs
from diffusion_jax import extensions
from diffusion_jax.errors import UserError
from diffusion_jax.report.atomic import replace_file
from diffusion_jax.report.metrics import read_metrics
from diffusion_jax.runs.workdir.paths import Workdir
from diffusion_jax.sweeps.definition import Changes, Objective
from diffusion_jax.train import manifest

DONE, PRUNED, FAILED = "done", "pruned", "failed"
"""How a trial ended."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a trial ended: its objective if it has one, why it failed, seconds of its last process, step of pruning."""

    state: str
    value: float | None = None
    reason: str = ""
    seconds: float | None = None
    step: int | None = None


@dataclasses.dataclass(frozen=True)
class Trial:
    """One point of the space and its workdir."""

    number: int
    changes: Changes
    config: ConfigDict
    workdir: Workdir

    @property
    def log(self) -> Path:
        """What its processes said."""
        return self.workdir.root / "log.txt"

    @property
    def trained(self) -> bool:
        """Whether its checkpoint of the last step is complete."""
        return (self.workdir.checkpoints / str(self.config.train.steps) / manifest.NAME).is_file()

    @property
    def outcome(self) -> Outcome | None:
        """How it ended, if it has."""
        path = self.workdir.root / "trial.json"
        if not path.is_file():
            return None
        record = json.loads(path.read_text(encoding="utf-8"))
        fields = [field.name for field in dataclasses.fields(Outcome)]  # an earlier version may have had fewer
        return Outcome(**{name: record[name] for name in fields if name in record})

    def write(self, outcome: Outcome) -> None:
        """Records how it ended."""
        record = {"number": self.number, "changes": self.changes} | dataclasses.asdict(outcome)
        replace_file(self.workdir.root / "trial.json", (json.dumps(record, indent=2) + "\n").encode())

    def forget(self) -> None:
        """Takes its record away, so that it is run again."""
        (self.workdir.root / "trial.json").unlink(missing_ok=True)

    def records(self) -> list[dict[str, Any]]:
        """What it has logged."""
        return read_metrics(self.workdir.metrics) if self.workdir.metrics.is_file() else []

    def result(self, objective: Objective) -> float:
        """The objective of a trial that is trained; NaN where it diverged.

        Raises UserError where the metric was never logged.
        """
        records = self.records()
        course = objective.course(records)
        if not course:
            logged = sorted({name for record in records for name in record} - {"step"})
            raise UserError(
                f"the objective {objective.metric!r} was never logged by trial {self.number:03d}, which logged "
                f"{', '.join(logged) or 'nothing'}; choose one of these, and the same command goes on"
            )
        return course[-1][1]


def changed(config: ConfigDict, changes: Mapping[str, Any]) -> ConfigDict:
    """config with dotted keys changed; raises UserError for a key that it has not, or a value of another type."""
    values = config.to_dict()
    for key, value in changes.items():
        *sections, last = key.split(".")
        part = values
        for i, name in enumerate(sections):
            if not isinstance(part.get(name), dict):
                where = ".".join(["config", *sections[:i]])
                raise UserError(f"unknown key {where}.{name} in {key}; {where} has the sections {_sections(part)}")
            part = part[name]
        part[last] = value
    return configs.check(values)


def _sections(part: Mapping[str, Any]) -> str:
    return ", ".join(name for name, value in part.items() if isinstance(value, dict)) or "(none)"


def command(config_file: str, workdir: str, changes: Mapping[str, Any], program: tuple[str, ...] = ()) -> list[str]:
    """The command line that trains config_file with changes, as words."""
    program = program or (sys.executable, "-m", "diffusion_jax")
    flags = [f"--config.{key}={value if isinstance(value, str) else repr(value)}" for key, value in changes.items()]
    trusted = [f"--extension={package}" for package in extensions.given()]
    return [*program, "train", f"--config={config_file}", f"--workdir={workdir}", *trusted, *flags]


def as_typed(words: list[str]) -> str:
    """A command as one types it in a shell."""
    return shlex.join(words)


class Lock:
    """A trial that is ours: the lock that its process inherits, and the one that we alone hold."""

    def __init__(self, folder: Path, child: int, owner: int):
        self._folder, self.child, self._owner = folder, child, owner

    def note(self, pid: int) -> None:
        """Writes down who inherited the lock, for whoever comes after a kill of ours."""
        replace_file(self._folder / "process.json", json.dumps({"host": socket.gethostname(), "pid": pid}).encode())

    def release(self) -> None:
        """Lets go; a child that inherited its lock holds that until it ends."""
        os.close(self.child)
        os.close(self._owner)


def claim(folder: Path) -> Lock | None:
    """The lock of a trial's folder, or None where another sweep process has it.

    A trial whose sweep process was killed may still run: it is asked to save and end, and waited for. What comes next
    may depend on it.
    """
    owner = _try_lock(folder / "owner")
    if owner is None:
        return None
    child = _try_lock(folder / "lock")
    if child is None:
        process = folder / "process.json"
        held = json.loads(process.read_text()) if process.is_file() else {}
        print(f"{folder} still runs without its sweep; it saves first", flush=True)
        if held.get("host") == socket.gethostname():
            with contextlib.suppress(ProcessLookupError):
                os.kill(held["pid"], signal.SIGTERM)
        child = _try_lock(folder / "lock", wait=True)
    assert child is not None
    return Lock(folder, child, owner)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """While entered, no other process is."""
    descriptor = _try_lock(path, wait=True)
    assert descriptor is not None
    try:
        yield
    finally:
        os.close(descriptor)


def _try_lock(path: Path, *, wait: bool = False) -> int | None:
    """A descriptor that holds the lock of path until all its copies are closed; None where another holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor
