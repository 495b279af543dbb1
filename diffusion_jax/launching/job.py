"""A job on any cluster: one command line of `train`, which is started again until it is done."""

import dataclasses
import re
import shlex
from collections.abc import Mapping

from diffusion_jax.errors import UserError

WORKER = ("diffusion-jax", "launch", "worker", "--")
"""The words before `train ...` on every host. They end the run with status 75 where it ends before it is done."""

MOUNT = "/runs"
"""The folder at which a bucket is mounted."""


@dataclasses.dataclass(frozen=True)
class Job:
    """A command line of `train`, with a name."""

    name: str
    arguments: tuple[str, ...]  # of `train`
    workdir: str
    made_by: str  # the command that renders the job again

    @property
    def command(self) -> tuple[str, ...]:
        """The words of the command that every host runs."""
        return (*WORKER, "train", *self.arguments)

    @property
    def shell(self) -> str:
        """The command as a line for a POSIX shell."""
        return shlex.join(self.command)


def check_job(job: Job, *, setup: str = "", restarts: int = 0) -> None:
    """Raises UserError for a name, an argument, a set-up line or a number of restarts that no cluster takes."""
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", job.name):
        raise UserError(f"--name={job.name!r} is not at most 40 lower-case letters, digits and hyphens, a letter first")
    at_least("restarts", restarts, 0)
    for text in (*job.arguments, setup):
        if not text.isprintable():
            raise UserError(f"{text!r} holds a character that cannot be printed, which no job file can")


def plain(**values: str) -> None:
    """Raises UserError for a value that is not one word of letters, digits and `.:/@_-`, as files have it unquoted."""
    for name, value in values.items():
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.:/@_-]*", value):
            raise UserError(f"--{name}={value!r} is one word of letters, digits and .:/@_-")


def at_least(name: str, value: int, least: int) -> None:
    """Raises UserError unless the value of a flag is at least `least`."""
    if value < least:
        raise UserError(f"--{name}={value} is at least {least}")


def needed(target: str, **values: str) -> None:
    """Raises UserError for a flag that the target needs and that has no value."""
    missing = [f"--{name}" for name, value in values.items() if not value]
    if missing:
        raise UserError(f"launch {target} needs {', '.join(missing)}")


def on_bucket(job: Job, bucket: str) -> None:
    """Raises UserError unless the workdir is on the bucket: the disk of a machine is lost with the machine."""
    inside = job.workdir.startswith(f"{MOUNT}/")
    if not bucket:
        raise UserError(
            f"the disk of a machine is lost when it is preempted: give --bucket=NAME, which is mounted at {MOUNT}, and "
            f"--workdir={MOUNT}/..."
        )
    if not inside:
        raise UserError(f"the bucket is mounted at {MOUNT}, so --workdir is {MOUNT}/...; got {job.workdir}")
    plain(bucket=bucket)


_WHOLE_LINE = re.compile(r"( *)\{\{(\w+)\}\}")
_PLACE = re.compile(r"\{\{(\w+)\}\}")


def fill(template: str, values: Mapping[str, str]) -> str:
    """The template with each {{name}} replaced by its value.

    A name alone on its line indents every line of the value as it is indented itself; where the value is empty, the
    line is left out. Raises KeyError for a name without a value.
    """
    lines: list[str] = []
    for line in template.splitlines():
        if whole := _WHOLE_LINE.fullmatch(line):
            lines += [whole[1] + part for part in values[whole[2]].splitlines()]
        else:
            lines.append(_PLACE.sub(lambda place: values[place[1]], line))
    return "\n".join(lines) + "\n"
