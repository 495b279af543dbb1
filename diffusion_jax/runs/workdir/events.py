"""What happened to a run, in events.jsonl of its workdir: each start, roll-back and end."""

import datetime
import json
import os
import shlex
import sys
from pathlib import Path

from diffusion_jax.errors import UserError
from diffusion_jax.runs.workdir.paths import Workdir

START, ROLL_BACK, END = "start", "roll-back", "end"
"""The kinds of events."""

Event = dict[str, object]
"""{"event": its kind, "time": local time in ISO 8601, "step": int, and what belongs to the kind}."""


def append(workdir: Workdir, kind: str, step: int, **more: object) -> None:
    """Appends an event of now."""
    now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    line = json.dumps({"event": kind, "time": now, "step": step, **more})
    with workdir.events.open("a", encoding="utf-8") as file:
        file.write(f"{line}\n")


def read(workdir: Workdir) -> list[Event]:
    """The events in order, without an incomplete last line; [] for a run that has noted none.

    Raises UserError for any other line that is no event.
    """
    if not workdir.events.is_file():
        return []
    lines = workdir.events.read_text(encoding="utf-8", errors="replace").split("\n")
    found: list[Event] = []
    for i, line in enumerate(lines):
        try:
            event = json.loads(line)
        except ValueError:
            event = None
        if isinstance(event, dict) and isinstance(event.get("event"), str) and isinstance(event.get("step"), int):
            found.append(event)
        elif i < len(lines) - 1:
            raise UserError(
                f"{workdir.events}, line {i + 1}, is no event: {line[:80]!r}; remove the line, or move the file away"
            )
    return found


def command() -> dict[str, str]:
    """{"command": the line that this process was started by, "folder": where}; {} where it was Python that called."""
    if Path(sys.argv[0]).name not in ("diffusion-jax", "__main__.py"):
        return {}
    return {"command": shlex.join(["diffusion-jax", *sys.argv[1:]]), "folder": os.getcwd()}
