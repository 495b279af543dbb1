"""A log of the examples that each step was trained on, by which a run can be shown to have missed none."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffusion_jax.report.atomic import replace_file


class ExampleLog:
    """Appends {"step", "examples"} a step to folder/NNNNN.jsonl, NNNNN the number of this process.

    A line is written as the step is given its batch. resumed_step is the step of the checkpoint that the run goes on
    from: lines of later steps, which are done again, are taken away; None is a new run.
    """

    def __init__(
        self, folder: Path, *, process: int, processes: int = 1, resumed_step: int | None, steps_per_dispatch: int = 1
    ):
        self._step, self._each = resumed_step or 0, steps_per_dispatch
        path = folder / f"{process:05}.jsonl"
        # Each cuts its own file, which no other may replace under it; the first those of processes that are no more.
        mine = [path] + [f for f in folder.glob("*.jsonl") if process == 0 and int(f.stem) >= processes]
        for each in filter(Path.is_file, mine):
            kept = [line for line, record in _read(each) if record["step"] <= self._step]
            replace_file(each, "".join(kept).encode())
        folder.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8")

    def append(self, examples: Sequence[int]) -> None:
        """Takes the places in the source of the examples [steps_per_dispatch * b] of the next steps."""
        share = len(examples) // self._each
        for i in range(self._each):
            self._step += 1
            here = [int(index) for index in examples[i * share : (i + 1) * share]]
            self._file.write(json.dumps({"step": self._step, "examples": here}) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Nothing can be appended after."""
        self._file.close()


def read_examples(folder: Path) -> dict[int, list[int]]:
    """{step: the examples of all processes, in order}."""
    steps: dict[int, list[int]] = {}
    for path in sorted(folder.glob("*.jsonl")):
        for _, record in _read(path):
            steps.setdefault(record["step"], []).extend(record["examples"])
    return steps


def _read(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """(line, record) of each whole line; a kill may have left half of the last."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [(line, json.loads(line)) for line in lines if line.endswith("\n")]
