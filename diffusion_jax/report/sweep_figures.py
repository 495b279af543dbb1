"""Figures of a sweep: learning curves and parallel coordinates, for light and dark pages, and all of them as a PNG."""

import dataclasses
import io
import math
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter
from matplotlib.typing import ColorType

from diffusion_jax.report.table import draw_table, wrapped


@dataclasses.dataclass(frozen=True)
class Row:
    """A trial as a row of the report."""

    number: int
    state: str  # done | pruned | failed | unfinished
    value: float | None
    changes: dict[str, object]
    course: tuple[tuple[int, float], ...] = ()  # (step, objective)
    reason: str = ""  # of a trial that failed
    seconds: float | None = None


@dataclasses.dataclass(frozen=True)
class Theme:
    """The colours of a page."""

    ink: str
    faint: str
    best: str
    scale: tuple[float, float]  # the part of the colour map that is visible on the background
    background: str = "none"


_TICKS = 6  # the most ticks of an axis of the parallel coordinates

LIGHT = Theme("#1f2328", "#b6bcc4", "#d1242f", (0.0, 0.85), "#ffffff")
DARK = Theme("#e6edf3", "#5b636d", "#ff7b72", (0.25, 1.0), "#0d1117")


def ranked(rows: Sequence[Row], direction: str) -> list[Row]:
    """The rows of finished trials, the best first, then those of pruned trials likewise, then the others by number."""
    order = {"done": 0, "pruned": 1}
    sign = 1 if direction == "minimize" else -1

    def key(row: Row) -> tuple[int, float, int]:
        value = math.inf if row.value is None or math.isnan(row.value) else sign * row.value
        return order.get(row.state, 2), value, row.number

    return sorted(rows, key=key)


def places(rows: Sequence[Row]) -> list[str]:
    """The rank of each of the `ranked` rows: "1", "2", ..., and "" for a trial that failed or has no value."""
    has_rank = [row.state in ("done", "pruned") and row.value is not None and math.isfinite(row.value) for row in rows]
    return [str(i + 1) if given else "" for i, given in enumerate(has_rank)]


def best_of(rows: Sequence[Row]) -> Row | None:
    """The best of the `ranked` rows; None where no trial is done."""
    return rows[0] if rows[0].state == "done" and places(rows)[0] else None


def curves_svg(rows: Sequence[Row], metric: str, theme: Theme) -> bytes:
    """An SVG of the objective of every trial by step. rows are `ranked`."""
    figure = Figure(figsize=(7.2, 3.9), layout="constrained")
    _curves(figure.add_subplot(), rows, metric, theme)
    return _svg(figure)


def parallel_svg(rows: Sequence[Row], metric: str, theme: Theme) -> bytes:
    """An SVG with a line for each trial through its values of the swept keys to its objective. rows are `ranked`."""
    keys = len(rows[0].changes)
    figure = Figure(figsize=(max(7.2, 1.9 * (keys + 1)), 3.9), layout="constrained")
    _parallel(figure.add_subplot(), rows, metric, theme)
    return _svg(figure)


def report_png(rows: Sequence[Row], metric: str, title: str, grid: np.ndarray | None) -> bytes:
    """A PNG of curves, parallel coordinates, a table of the ten best, and the best trial's grid uint8 [H, W, C]."""
    file = io.BytesIO()
    FigureCanvasAgg(report_figure(rows, metric, title, grid)).print_png(file)
    return file.getvalue()


def report_figure(rows: Sequence[Row], metric: str, title: str, grid: np.ndarray | None) -> Figure:
    """The figure of `report_png`."""
    figure = Figure(figsize=(14, 9.5), dpi=100, layout="constrained", facecolor="white")
    keys = list(rows[0].changes)
    share = 6 if grid is None else 4 if len(keys) > 3 else 3
    # C curves, P parallel coordinates, T table, S samples; each letter is a sixth of the width.
    axes = figure.subplot_mosaic(f"CCCPPP;{'T' * share}{'S' * (6 - share)}")
    figure.suptitle(title, fontsize=13)
    _curves(axes["C"], rows, metric, LIGHT)
    _parallel(axes["P"], rows, metric, LIGHT)
    best = best_of(rows)
    if grid is not None:
        axes["S"].axis("off")
        axes["S"].imshow(grid.squeeze(), cmap="gray", interpolation="nearest")
        if best is not None:
            axes["S"].set_title(f"samples of trial {best.number:03d}, the best")
    lines = [["rank", "trial", "state", *map(wrapped, [metric, *_short(keys)])]]
    for rank, row in list(zip(places(rows), rows, strict=True))[:10]:
        lines.append([rank, f"{row.number:03d}", row.state, _number(row.value), *(say(row.changes[k]) for k in keys)])
    draw_table(axes["T"], FigureCanvasAgg(figure).get_renderer(), lines, LIGHT.ink, LIGHT.faint)
    return figure


def say(value: object) -> str:
    """A value of a config as text."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _short(keys: Sequence[str]) -> list[str]:
    """The last part of each dotted key, or the whole key where two have the same last part."""
    last = [key.rpartition(".")[2] for key in keys]
    return [key if last.count(name) > 1 else name for key, name in zip(keys, last, strict=True)]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.5g}"


def _colors(rows: Sequence[Row], theme: Theme) -> list[ColorType]:
    """The colours of ranked rows: the best has its own, the others go along a colour map."""
    ranks = np.linspace(theme.scale[0], theme.scale[1], max(len(rows), 2))
    colors = list(matplotlib.colormaps["viridis"](ranks))[: len(rows)]
    return [theme.best, *colors[1:]] if rows and best_of(rows) else colors


def _curves(axes: Axes, rows: Sequence[Row], metric: str, theme: Theme) -> None:
    drawn = []
    for row, color in reversed(list(zip(rows, _colors(rows, theme), strict=True))):
        if not row.course:
            continue
        steps, values = np.asarray(row.course, np.float64).T
        drawn.append(values[np.isfinite(values)])
        best = row is best_of(rows)
        axes.plot(
            steps,
            values,
            color=color,
            lw=2.2 if best else 1.1,
            alpha=1 if best else 0.85,
            ls="-" if row.state == "done" else ":",
            marker="x" if row.state == "pruned" else None,
            markevery=[-1],
            ms=5,
            label=f"{row.number:03d}, the best" if best else None,
        )
    positive = [v for v in drawn if v.size]
    if positive and (together := np.concatenate(positive)).min() > 0 and together.max() > 10 * together.min():
        axes.set_yscale("log")
    axes.set(title="Learning curves", xlabel="step", ylabel=metric)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.grid(color=theme.faint, alpha=0.4, lw=0.6)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, labelcolor=theme.ink, loc="upper right")
    _dress(axes, theme)


def _parallel(axes: Axes, rows: Sequence[Row], metric: str, theme: Theme) -> None:
    shown = [row for rank, row in zip(places(rows), rows, strict=True) if rank]
    keys = list(rows[0].changes)
    columns = [[row.changes[key] for row in shown] for key in keys] + [[row.value for row in shown]]
    names = [*_short(keys), metric]
    small, longest = (9, 40) if len(names) < 5 else (7, 8)  # of names, and letters of a tick
    axes.set_title("Parallel coordinates")
    heights = []
    for i, (name, column) in enumerate(zip(names, columns, strict=True)):
        height, ticks = _axis(column)
        heights.append(height)
        axes.axvline(i, color=theme.faint, lw=1)
        for at, text in ticks:
            label = text if len(text) <= longest else f"{text[:longest]}…"
            axes.annotate(
                label, (i, at), (4, 0), textcoords="offset points", va="center", fontsize=8, color=theme.ink, zorder=5
            )
        axes.annotate(wrapped(name), (i, 1.05), ha="center", fontsize=small, color=theme.ink, annotation_clip=False)
    for k, color in reversed(list(enumerate(_colors(shown, theme)))):
        y, best = [height[k] for height in heights], shown[k] is best_of(rows)
        axes.plot(range(len(names)), y, color=color, lw=2.4 if best else 1.1, alpha=1 if best else 0.8)
    axes.set(xlim=(-0.15, len(names) - 1 + 0.35), ylim=(-0.06, 1.2), xticks=[], yticks=[])
    _dress(axes, theme)
    axes.spines[:].set_visible(False)


def _axis(column: Sequence[object]) -> tuple[list[float], list[tuple[float, str]]]:
    """The height of each value in [0, 1], and ticks (height, text).

    Positive numbers that span more than a decade are on a logarithmic scale.
    """
    numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in column)
    if not numeric:
        distinct = sorted(set(map(str, column)))
        at = {text: i / max(len(distinct) - 1, 1) for i, text in enumerate(distinct)}
        return [at[str(value)] for value in column], [(at[text], text) for text in distinct]
    values = np.asarray(column, np.float64)
    if not values.size:
        return [], []
    low, high = values.min(), values.max()
    log = low > 0 and high > 10 * low
    scaled = np.log(values) if log else values
    span = (scaled.max() - scaled.min()) or 1.0
    marks = np.unique(scaled)
    if len(marks) > 1 and np.diff(marks).min() < span / (2 * _TICKS):  # ticks at all values would overlap
        marks = np.linspace(scaled.min(), scaled.max(), _TICKS)
    ticks = [((mark - scaled.min()) / span, f"{math.exp(mark) if log else mark:.3g}") for mark in marks]
    return list((scaled - scaled.min()) / span), ticks


def _dress(axes: Axes, theme: Theme) -> None:
    axes.set_facecolor("none")
    axes.title.set_color(theme.ink)
    axes.xaxis.label.set_color(theme.ink)
    axes.yaxis.label.set_color(theme.ink)
    axes.tick_params(which="both", colors=theme.ink)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(theme.faint)


def _svg(figure: Figure) -> bytes:
    figure.patch.set_alpha(0)
    file = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "sweep"}):  # so that equal sweeps give equal files
        FigureCanvasSVG(figure).print_svg(file, metadata={"Date": None})
    return file.getvalue()
