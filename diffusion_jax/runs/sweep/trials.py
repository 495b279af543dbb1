"""The trials of a sweep on disk. Each is an ordinary workdir with a record of its outcome and two locks.

sweep.json            config and identity of the sweep; the folder takes no other sweep
trials/000/           a workdir
trials/000/trial.json its outcome: state, value, reason, seconds
trials/000/log.txt    the output of its process
trials/000/owner      locked while a sweep process is responsible for the trial
trials/000/lock       locked while the trial's own process runs, even where the sweep's process was killed
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

from ml_collections import ConfigDict

from diffusion_jax import config as configs
from diffusion_jax import extensions
from diffusion_jax.errors import UserError
from diffusion_jax.report.atomic import replace_file
from diffusion_jax.report.metrics import MetricRecord, read_metrics
from diffusion_jax.runs.workdir.paths import Workdir
from diffusion_jax.sweeps.definition import Changes, Objective
from diffusion_jax.train import manifest

DONE, PRUNED, FAILED = "done", "pruned", "failed"
"""The states of a trial that has ended."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a trial ended."""

    state: str  # `DONE`, `PRUNED` or `FAILED`
    value: float | None = None  # of the objective
    reason: str = ""  # of a trial that failed
    seconds: float | None = None  # that its last process ran
    step: int | None = None  # of a pruned trial


@dataclasses.dataclass(frozen=True)
class Trial:
    """A point of the sweep's space, and its workdir."""

    number: int
    changes: Changes
    config: ConfigDict
    workdir: Workdir

    @property
    def log(self) -> Path:
        """The file with the output of its processes."""
        return self.workdir.root / "log.txt"

    @property
    def trained(self) -> bool:
        """Whether its checkpoint of the last step is complete."""
        return (self.workdir.checkpoints / str(self.config.train.steps) / manifest.NAME).is_file()

    @property
    def outcome(self) -> Outcome | None:
        """How it ended; None while it has not."""
        path = self.workdir.root / "trial.json"
        if not path.is_file():
            return None
        record = json.loads(path.read_text(encoding="utf-8"))
        fields = [field.name for field in dataclasses.fields(Outcome)]  # an earlier version may have written fewer
        return Outcome(**{name: record[name] for name in fields if name in record})

    def write(self, outcome: Outcome) -> None:
        """Writes the record of how it ended."""
        record = {"number": self.number, "changes": self.changes} | dataclasses.asdict(outcome)
        replace_file(self.workdir.root / "trial.json", (json.dumps(record, indent=2) + "\n").encode())

    def forget(self) -> None:
        """Deletes the record of its end, so that it is run again."""
        (self.workdir.root / "trial.json").unlink(missing_ok=True)

    def records(self) -> list[MetricRecord]:
        """Its metrics so far."""
        return read_metrics(self.workdir.metrics) if self.workdir.metrics.is_file() else []

    def result(self, objective: Objective) -> float:
        """The objective of a trial that was trained to its end; NaN where it diverged.

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


def changed(config: ConfigDict, changes: Changes) -> ConfigDict:
    """The config with dotted keys changed. Raises UserError for an unknown key, and for a value of another type."""
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


def _sections(part: Mapping[str, object]) -> str:
    return ", ".join(name for name, value in part.items() if isinstance(value, dict)) or "(none)"


def command(config_file: str, workdir: str, changes: Changes, program: tuple[str, ...] = ()) -> list[str]:
    """The words of the command line that trains config_file with these changes in a workdir."""
    program = program or (sys.executable, "-m", "diffusion_jax")
    flags = [f"--config.{key}={value if isinstance(value, str) else repr(value)}" for key, value in changes.items()]
    trusted = [f"--extension={package}" for package in extensions.given()]
    return [*program, "train", f"--config={config_file}", f"--workdir={workdir}", *trusted, *flags]


def as_typed(words: list[str]) -> str:
    """A command as a line for a shell."""
    return shlex.join(words)


class Lock:
    """The two locks of a claimed trial: `child`, which its process inherits, and one that stays with this process."""

    def __init__(self, folder: Path, child: int, owner: int):
        self._folder, self.child, self._owner = folder, child, owner

    def note(self, pid: int) -> None:
        """Records the process that inherited the lock, for a sweep that starts after this one was killed."""
        replace_file(self._folder / "process.json", json.dumps({"host": socket.gethostname(), "pid": pid}).encode())

    def release(self) -> None:
        """Releases both. A process that inherited a lock holds it until the process ends."""
        os.close(self.child)
        os.close(self._owner)


def claim(folder: Path) -> Lock | None:
    """The locks of a trial's folder; None where another sweep process has claimed the trial.

    A trial whose sweep process was killed may still run. It is asked to save and end, and waited for, because the next
    trial may depend on its result.
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
    """While entered, no other process has entered with the same file."""
    descriptor = _try_lock(path, wait=True)
    assert descriptor is not None
    try:
        yield
    finally:
        os.close(descriptor)


def _try_lock(path: Path, *, wait: bool = False) -> int | None:
    """A descriptor that locks a file until all its copies are closed; None where another process has the lock."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor
