"""The tables of a run's page: evaluations, checkpoints, faults, starts."""

import datetime
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from diffusion_jax.report.metrics import MetricRecord
from diffusion_jax.report.run_page import Section
from diffusion_jax.runs.workdir import events
from diffusion_jax.runs.workdir.paths import Workdir, read_json
from diffusion_jax.train import manifest

_MOST = 20
"""Rows of faults and of checkpoints that are listed."""

_SAMPLING = ("sampler", "steps", "guidance")
"""What a row says of how samples were drawn; the rest is in the record."""


def newest(workdir: Workdir) -> int:
    """The step of the newest checkpoint, 0 without one."""
    return max((int(folder.name) for folder in _steps(workdir)), default=0)


def evaluations(workdir: Workdir) -> Section:
    """A row for each score of each evaluation in the workdir. Raises UserError where a file is damaged."""
    rows, details = [], {}
    for file in sorted((workdir.root / "evaluations").glob("*.json")):
        result: dict[str, Any] = read_json(file)
        subject, metrics = result.get("subject"), result.get("metrics")
        if not isinstance(subject, dict) or not isinstance(metrics, dict):
            continue  # a comparison, or another file of the user
        drawn = subject.get("sampling") or {}
        how = ", ".join(f"{name} {drawn[name]}" for name in _SAMPLING if name in drawn)
        for name, score in metrics.items():
            rows.append(
                (
                    f"{subject.get('checkpoint_step', 0):,}",
                    str(score.get("label", name)),
                    _value(score),
                    f"{score.get('how', {}).get('n', '')}",
                    f"{subject.get('weights', '')}" + (f"; {how}" if how else ""),
                    str(result.get("device", "")),
                )
            )
        details[f"{file.name}: what its numbers depend on"] = json.dumps(result, indent=2, ensure_ascii=False)
    return Section(
        "Evaluations",
        ("step", "score", "value", "n", "of", "device"),
        rows,
        instead="None; diffusion-jax evaluate makes them.",
        details=details,
    )


def checkpoints(workdir: Workdir) -> Section:
    """A row for each checkpoint, the newest first, with the digest of its manifest."""
    rows = []
    for folder in sorted(_steps(workdir), key=lambda each: -int(each.name))[:_MOST]:
        files = [path for path in folder.rglob("*") if path.is_file()]
        listed = folder / manifest.NAME
        said = hashlib.sha256(listed.read_bytes()).hexdigest()[:16] if listed.is_file() else "not complete"
        rows.append((f"{int(folder.name):,}", _time(folder), _size(files), said))
    aside = sorted(path.name for path in workdir.checkpoints.glob("*.*") if path.name.split(".")[0].isdecimal())
    return Section(
        "Checkpoints",
        ("step", "written", "size", "SHA-256 of its manifest"),
        rows,
        instead="None yet.",
        details={f"{len(aside)} set aside because they did not verify": "\n".join(aside)} if aside else {},
    )


def faults(workdir: Workdir, records: Sequence[MetricRecord], noted: Sequence[events.Event]) -> Section:
    """What went wrong: losses that were not finite, roll-backs, examples that could not be read, a phase that hung."""
    rows = [
        (f"{event['step']:,}", "roll-back", str(event.get("reason", "")))
        for event in noted
        if event["event"] == events.ROLL_BACK
    ]
    skipped = list(_nonfinite(workdir))
    rows += [(f"{step:,}", "loss not finite", text) for step, text in skipped[:_MOST]]
    if len(skipped) > _MOST:
        rows.append((f"{skipped[-1][0]:,}", "loss not finite", f"the last of {len(skipped):,} in nonfinite.jsonl"))
    corrupt = [int(record["corrupt_examples"]) for record in records if "corrupt_examples" in record]
    if corrupt:
        rows.append(("", "unreadable examples", f"{corrupt[-1]:,} since the last start"))
    stacks = workdir.root / "stacks.txt"
    hung = stacks.is_file() and stacks.stat().st_size > 0
    if hung:
        rows.append(("", "a phase that took too long", "the stacks of all threads are in stacks.txt"))
    return Section("Faults", ("step", "what", "more"), rows, instead="None was noted.", warns=bool(rows))


def history(noted: Sequence[events.Event]) -> Iterator[Section]:
    """The starts and ends of the run, where it noted them."""
    if not noted:
        return
    rows = []
    for event in noted:
        more = str(event.get("command", "")) or (f"by {event['stopped']}" if event.get("stopped") else "")
        machine = f"{event['devices']} x {event['device']}" if "device" in event else ""
        rows.append((when(event), str(event["event"]), f"{event['step']:,}", machine, more))
    yield Section("Starts and ends", ("time", "what", "step", "machine", "more"), rows)


def when(event: Mapping[str, object]) -> str:
    """The time of an event for a person: 2026-11-28 00:11:20."""
    return str(event.get("time", "")).replace("T", " ")[:19]


def _steps(workdir: Workdir) -> list[Path]:
    folders = workdir.checkpoints.iterdir() if workdir.checkpoints.is_dir() else ()
    return [folder for folder in folders if folder.name.isdecimal()]


def _nonfinite(workdir: Workdir) -> Iterator[tuple[int, str]]:
    """(step, its metrics) of the lines of nonfinite.jsonl; an incomplete line is left out."""
    file = workdir.root / "nonfinite.jsonl"
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else ():
        try:
            record = json.loads(line)
            yield record["step"], ", ".join(f"{k} {record[k]}" for k in ("loss", "grad_norm") if k in record)
        except (ValueError, KeyError, TypeError):
            continue


def _value(score: Mapping[str, Any]) -> str:
    error = score.get("std") or score.get("standard_error")
    value = score.get("value")
    text = f"{value:.5g}" if isinstance(value, int | float) and math.isfinite(value) else str(value)
    return text + (f" ± {error:.2g}" if error else "")


def _time(folder: Path) -> str:
    return datetime.datetime.fromtimestamp(folder.stat().st_mtime).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _size(files: Sequence[Path]) -> str:
    total = float(sum(path.stat().st_size for path in files))
    for unit in ("B", "KiB", "MiB"):
        if total < 1024:
            return f"{total:.3g} {unit}"
        total /= 1024
    return f"{total:.3g} GiB"
