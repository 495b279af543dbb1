"""A picture of a score over one to three variables."""

import io
import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle


def heatmap_png(
    values: np.ndarray, axes: Sequence[tuple[str, Sequence[str]]], title: str, *, higher: bool = False
) -> bytes:
    """A PNG of values [R], [R, K] or [R, K, P] over axes (name, labels) of rows, columns and panels.

    A lighter cell is better, and the best cell has a frame. higher says whether a higher value is better. Cells that
    are not finite are white.
    """
    values = values.reshape(*values.shape, *[1] * (3 - values.ndim))  # [R, K, P]
    named = [*axes, *[("", [""])] * (3 - len(axes))]
    (row, rows), (column, columns), (panel, panels) = named
    r, k, p = values.shape
    width = 2.0 + p * max(2.2, 0.85 * k)  # inches
    figure = Figure(figsize=(width, 1.8 + 0.5 * r), dpi=110, layout="constrained")
    shown = figure.subplots(1, p, squeeze=False, sharey=True)[0]
    finite = values[np.isfinite(values)]
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 1.0)
    best = None
    if finite.size:
        best = np.unravel_index(np.nanargmax(values) if higher else np.nanargmin(values), values.shape)
    cmap = "viridis" if higher else "viridis_r"
    for i, plot in enumerate(shown):
        image = plot.imshow(values[:, :, i], cmap=cmap, vmin=low, vmax=high, aspect="auto")
        plot.set_xticks(range(k), list(columns))
        plot.set_yticks(range(r), list(rows))
        plot.set_xlabel(column)
        plot.set_title(f"{panel} {panels[i]}" if panel else "", fontsize=10)
        for y in range(r):
            for x in range(k):
                value = values[y, x, i]
                level = 0.5 if high == low else (value - low) / (high - low)
                light = (level if higher else 1 - level) > 0.6
                plot.text(x, y, f"{value:.3g}", ha="center", va="center", color="black" if light else "white", size=9)
        if best is not None and best[2] == i:
            plot.add_patch(_frame(int(best[1]), int(best[0])))
    shown[0].set_ylabel(row)
    figure.colorbar(image, ax=list(shown))
    figure.suptitle(textwrap.fill(title, int(12 * width)), fontsize=10)
    file = io.BytesIO()
    FigureCanvasAgg(figure).print_png(file)
    return file.getvalue()


def _frame(x: int, y: int) -> Rectangle:
    return Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, edgecolor="#d62728", lw=2.5)
