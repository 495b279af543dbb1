"""The page of a training run: what it was, its curves and grids, its evaluations and checkpoints, how to repeat it."""

import dataclasses
import html
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from diffusion_jax.report import figures, pictures
from diffusion_jax.report.inline_svg import inline_svg
from diffusion_jax.report.page import address, document

MOST_BYTES = 24 * 2**20
"""Of the grids in one page; a browser holds all of them in memory."""

_CURVES = {
    "loss": ("Loss", "loss"),
    "grad_norm": ("Gradient norm", "norm"),
    "learning_rate": ("Learning rate", "rate"),
    "images_per_second": ("Speed", "examples a second"),
}
"""{metric: the title of its curve, its axis}, of those that stand before all others."""

_COLOURS = {pictures.MEAN: "var(--mean)", pictures.POINTS: "var(--points)", pictures.BAD: "var(--bad)"}

_STYLE = """
:root { --mean: #1f3f66; --points: #6f9bd1; --bad: #c62828; }
@media (prefers-color-scheme: dark) { :root { --mean: #a9c8f2; --points: #5b86bd; --bad: #ff7a70; } }
main { max-width: 1180px; margin: 0 auto; }
h1 { margin: 0 0 .25rem; font-size: 1.5rem; overflow-wrap: anywhere; }
h2 { margin: 2rem 0 .75rem; font-size: 1.15rem; }
p { margin: 0 0 .75rem; } .soft { color: var(--soft); }
.card { padding: .9rem 1rem; background: var(--card); border: 1px solid var(--line); border-radius: 8px; }
.wide { overflow-x: auto; }
.curves { display: grid; grid-template-columns: repeat(auto-fit, minmax(420px, 1fr)); gap: 1rem; }
.grids { display: flex; flex-wrap: wrap; gap: 1rem; }
figure { margin: 0; } figcaption { margin-bottom: .5rem; font-weight: 600; }
.grids img { display: block; width: auto; max-width: min(100%, 540px); height: auto; border-radius: 4px; }
svg { display: block; width: 100%; height: auto; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .3rem 1.25rem; margin: 0; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 600; color: var(--soft); }
th, td { padding: .3rem .9rem .3rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
tr:last-child td { border-bottom: 0; }
td:first-child { white-space: nowrap; } td:last-child { overflow-wrap: anywhere; }
pre, code { font: 13px/1.5 ui-monospace, "SFMono-Regular", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
pre { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; }
details { margin-top: .75rem; } summary { cursor: pointer; color: var(--soft); }
.warn { border-left: 4px solid var(--bad); }
"""


@dataclasses.dataclass(frozen=True)
class Section:
    """A table of a page, or a sentence in its place."""

    title: str
    head: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    instead: str = ""  # what is said where there are no rows
    details: Mapping[str, str] = dataclasses.field(default_factory=dict)  # {summary: text} that is folded away
    warns: bool = False


@dataclasses.dataclass(frozen=True)
class RunPage:
    """What the page of a run says."""

    title: str
    line: str  # under the title
    facts: Mapping[str, str]
    records: Sequence[Mapping[str, float]]  # of metrics.jsonl
    grids: Mapping[int, Path]  # {step: PNG}
    sections: Sequence[Section]
    commands: str  # lines of a shell
    config: str  # a config file that makes the run again


def run_page(run: RunPage) -> bytes:
    """The page as one HTML file without scripts and addresses of other files, by day and by night."""
    parts = [
        f"<h1>{html.escape(run.title)}</h1>\n<p class=soft>{html.escape(run.line)}</p>",
        f'<div class="card">{_facts(run.facts)}</div>',
        _curves(run.records),
        _loss_by_time(run.records),
        _grids(run.grids),
        *map(_section, run.sections),
        _repeat(run.commands, run.config),
    ]
    body = "\n".join(part for part in parts if part)
    return document(run.title, _STYLE, f"<main>\n{body}\n</main>")


def _facts(facts: Mapping[str, str]) -> str:
    return "<dl>" + "".join(f"<dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd>" for k, v in facts.items()) + "</dl>"


def _curves(records: Sequence[Mapping[str, float]]) -> str:
    """Curves of the metrics in `_CURVES`, and of what was measured beside them: scores, accuracies."""
    logged = list(dict.fromkeys(name for record in records for name in record))
    plain = ("step", "loss_by_time/", "input_wait", "save_stall", "corrupt_examples", *_CURVES)
    others = {name: (name.removeprefix("eval/"), name) for name in logged if not name.startswith(plain)}
    shown = {name: texts for name, texts in (_CURVES | others).items() if name in logged}
    if not shown:
        return _section(Section("Curves", instead="Nothing was logged yet."))
    cards = []
    for i, (name, (title, axis)) in enumerate(shown.items()):
        figure = pictures.curve(records, name, title, axis, size=(6, 3.4))
        cards.append(f'<figure class="card">{inline_svg(figure, f"curve{i}", _COLOURS)}</figure>')
    return f'<h2>Curves</h2>\n<div class="curves">\n{"".join(cards)}\n</div>'


def _loss_by_time(records: Sequence[Mapping[str, float]]) -> str:
    """The loss in each part of time; nothing for a run without it, as a classifier's is."""
    names = sorted({name for record in records for name in record if name.startswith("loss_by_time/")})
    logged = [record for record in records if any(name in record for name in names)]
    if not logged:
        return ""
    losses = np.asarray([[record.get(name, np.nan) for name in names] for record in logged], np.float64)
    if not np.isfinite(losses).any():
        return ""
    figure = figures.loss_by_time(np.asarray([record["step"] for record in logged]), losses)
    light, dark = figures.time_colours(len(names)), figures.time_colours(len(names), dark=True)
    variables = [f"--t{i}" for i in range(len(names))]
    given, by_night = (
        "; ".join(f"{name}: {colour}" for name, colour in zip(variables, each, strict=True)) for each in (light, dark)
    )
    rules = f":root {{ {given} }} @media (prefers-color-scheme: dark) {{ :root {{ {by_night} }} }}"
    colours = {colour: f"var({name})" for name, colour in zip(variables, light, strict=True)}
    svg = inline_svg(figure, "by_time", colours | {"#ffffff": "var(--card)"})
    return f'<h2>Loss by noise level</h2>\n<style>{rules}</style>\n<div class="card">{svg}</div>'


def _grids(grids: Mapping[int, Path]) -> str:
    if not grids:
        return _section(Section("Samples while training", instead="The run has drawn none (sample.every)."))
    steps = _spread(sorted(grids), {step: path.stat().st_size for step, path in grids.items()})
    cards = "".join(
        f'<figure class="card"><figcaption>step {step:,}</figcaption><img alt="samples after {step:,} steps" '
        f'src="{address("image/png", grids[step].read_bytes())}"></figure>'
        for step in steps
    )
    left = "" if len(steps) == len(grids) else f"<p class=soft>{len(steps)} of {len(grids)} grids.</p>"
    return f'<h2>Samples while training</h2>\n{left}<div class="grids">\n{cards}\n</div>'


def _spread(steps: Sequence[int], sizes: Mapping[int, int], most: int = 12) -> list[int]:
    """At most `most` of the steps, from the first to the last at like distances, within `MOST_BYTES` but for one."""
    for count in range(min(most, len(steps)), 1, -1):
        chosen = [steps[round(i)] for i in np.linspace(0, len(steps) - 1, count)]
        if sum(sizes[step] for step in chosen) <= MOST_BYTES:
            return chosen
    return [steps[-1]]


def _section(section: Section) -> str:
    text = f"<p class=soft>{html.escape(section.instead)}</p>" if section.instead and not section.rows else ""
    if section.rows:
        head = "".join(f"<th>{html.escape(cell)}</th>" for cell in section.head)
        rows = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in section.rows
        )
        text = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    text += "".join(_folded(summary, content) for summary, content in section.details.items())
    kind = "card wide warn" if section.warns else "card wide"
    return f'<h2>{html.escape(section.title)}</h2>\n<div class="{kind}">{text}</div>'


def _folded(summary: str, text: str) -> str:
    return f"<details><summary>{html.escape(summary)}</summary><pre>{html.escape(text)}</pre></details>"


def _repeat(commands: str, config: str) -> str:
    folded = _folded("A config file that makes this run", config)
    return f'<h2>To repeat it</h2>\n<div class="card"><pre>{html.escape(commands)}</pre>{folded}</div>'
