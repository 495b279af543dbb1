"""A log of the examples of each training step, which shows that a run has left none out."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

from diffusion_jax.report.atomic import replace_file


class ExampleLog:
    """Appends a line {"step", "examples"} for each step to folder/NNNNN.jsonl, with the number of the process.

    A line is written as the step gets its batch. resumed_step is the step from which the run goes on, None for a new
    run: the lines of later steps are deleted, for these steps are done again.
    """

    def __init__(
        self, folder: Path, *, process: int, processes: int = 1, resumed_step: int | None, steps_per_dispatch: int = 1
    ):
        self._step, self._each = resumed_step or 0, steps_per_dispatch
        path = folder / f"{process:05}.jsonl"
        # A process cuts its own file, which no other may replace; the first also cuts those of processes that are gone.
        mine = [path] + [f for f in folder.glob("*.jsonl") if process == 0 and int(f.stem) >= processes]
        for each in filter(Path.is_file, mine):
            kept = [line for line, record in _read(each) if record["step"] <= self._step]
            replace_file(each, "".join(kept).encode())
        folder.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8")

    def append(self, examples: Sequence[int]) -> None:
        """Writes the lines of the next steps, by their examples' indices in the source [steps_per_dispatch * b]."""
        share = len(examples) // self._each
        for i in range(self._each):
            self._step += 1
            here = [int(index) for index in examples[i * share : (i + 1) * share]]
            self._file.write(json.dumps({"step": self._step, "examples": here}) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def read_examples(folder: Path) -> dict[int, list[int]]:
    """{step: the examples of all processes, in the order of the processes}."""
    steps: dict[int, list[int]] = {}
    for path in sorted(folder.glob("*.jsonl")):
        for _, record in _read(path):
            steps.setdefault(record["step"], []).extend(record["examples"])
    return steps


class _Record(TypedDict):
    """A line of the log."""

    step: int
    examples: list[int]


def _read(path: Path) -> list[tuple[str, _Record]]:
    """(line, record) of each complete line. The last line may be incomplete, after a kill."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [(line, json.loads(line)) for line in lines if line.endswith("\n")]
