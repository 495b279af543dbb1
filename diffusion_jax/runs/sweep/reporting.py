"""The report of a sweep: report.html, report.png and results.json, from the workdirs of its trials."""

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from diffusion_jax.report.atomic import replace_file
from diffusion_jax.report.sweep import report_html
from diffusion_jax.report.sweep_figures import Row, places, ranked, report_png
from diffusion_jax.runs.sweep.trials import DONE, FAILED, Outcome, Trial, as_typed, command
from diffusion_jax.sweeps.definition import Changes, Objective, Sweep

UNFINISHED = "unfinished"
"""The state of a trial without an outcome."""


def write(
    root: Path,
    trials: Sequence[Trial],
    definition: Sweep,
    config_file: str,
    overrides: Changes,
    sweep_file: Path,
) -> list[Row]:
    """Writes the ranked trials to report.html, report.png and results.json in root, prints them, and returns them."""
    objective = definition.objective
    rows = ranked([row(trial, objective) for trial in trials], objective.direction)
    best = next((trial for trial in trials if trial.number == rows[0].number and rows[0].state == DONE), None)
    typed, grid = "", None
    if best is not None:
        words = command(config_file, f"{root}_best", overrides | best.changes, ("diffusion-jax",))
        typed = as_typed(words)
        grid = max((best.workdir.root / "samples").glob("*.png"), default=None)
    counts = {state: sum(r.state == state for r in rows) for state in dict.fromkeys(r.state for r in rows)}
    facts = {
        "config": config_file,
        "sweep": f"{sweep_file}: {definition.method}" + f", pruner {definition.pruner}" * (definition.pruner != "none"),
        "objective": f"{objective.direction} {objective.metric}, the mean of its last {objective.last} logged values",
        "trials": ", ".join(f"{count} {state}" for state, count in counts.items()),
    }
    title = f"Sweep {root.absolute().name}"
    page = report_html(
        rows, title=title, metric=objective.metric, facts=facts, command=typed, grid=grid.read_bytes() if grid else None
    )
    picture = np.asarray(Image.open(grid)) if grid else None
    replace_file(root / "report.png", report_png(rows, objective.metric, title, picture))
    results = {
        "objective": {"metric": objective.metric, "direction": objective.direction, "last": objective.last},
        "command": typed,
        "trials": [
            {"trial": r.number, "state": r.state, "value": r.value, "changes": r.changes, "reason": r.reason}
            for r in rows
        ],
    }
    replace_file(root / "results.json", (json.dumps(results, indent=2) + "\n").encode())
    replace_file(root / "report.html", page)
    _print(rows, objective)
    print(f"report in {root / 'report.html'}" + (f"; the best again: {typed}" if typed else ""), flush=True)
    return rows


def row(trial: Trial, objective: Objective) -> Row:
    """A trial as a row of the report.

    The objective of a trial that is done is read again from its metrics, for the sweep's objective may have changed
    since. Where it is not finite the row says that the trial failed.
    """
    outcome = trial.outcome or Outcome(UNFINISHED)
    course = tuple(objective.course(trial.records()))
    value = trial.result(objective) if outcome.state == DONE else outcome.value
    if outcome.state == DONE and value is not None and not math.isfinite(value):
        outcome, value = dataclasses.replace(outcome, state=FAILED, reason=not_finite(objective)), None
    if outcome.step is not None:
        course = tuple(point for point in course if point[0] <= outcome.step)
    return Row(trial.number, outcome.state, value, trial.changes, course, outcome.reason, outcome.seconds)


def not_finite(objective: Objective) -> str:
    """The reason of a trial that failed although it was trained to its end."""
    return f"its {objective.metric} was not finite at the end"


def _print(rows: Sequence[Row], objective: Objective) -> None:
    keys = list(rows[0].changes)
    table = [["rank", "trial", objective.metric, *keys, "state"]]
    for rank, r in zip(places(rows), rows, strict=True):
        value = "" if r.value is None else f"{r.value:.5g}"
        says = [f"{r.changes[k]:.4g}" if isinstance(r.changes[k], float) else str(r.changes[k]) for k in keys]
        table.append([rank, f"{r.number:03d}", value, *says, r.state])
    widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
    for line in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
