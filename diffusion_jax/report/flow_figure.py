"""Arrays in the order in which they become each other, with arrows between them, as a PNG."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from diffusion_jax.report import lettering
from diffusion_jax.report.figures import encode

_SIDE, _GAP, _LEFT = 1.5, 1.0, 1.4  # inches: of a panel, between panels, of the names of rows
_HEIGHT = 2.2  # of a row: its panels, and the texts above and below


@dataclasses.dataclass(frozen=True)
class Panel:
    """An array as a picture, or a text; with its name above, what is said of it below, and the arrow that leaves it."""

    name: str
    below: str = ""
    picture: np.ndarray | None = None  # uint8 [H, W] or [H, W, 3]
    text: str = ""  # in place of a picture
    arrow: str = ""  # what makes the next panel of this one, at an arrow; "": there is no arrow


def flow_png(rows: Sequence[tuple[str, Sequence[Panel]]], title: str) -> bytes:
    """A PNG of rows of panels, each under a name whose further lines are small."""
    most = max(len(panels) + bool(panels[-1].arrow) for _, panels in rows)
    width, height = _LEFT + most * (_SIDE + _GAP) - _GAP + 0.15, 0.4 + _HEIGHT * len(rows)
    figure = Figure(figsize=(width, height), dpi=100)
    figure.text(0.5, 1 - 0.2 / height, title, ha="center", va="center", fontsize=11)
    for i, (name, panels) in enumerate(rows):
        bottom = height - 0.4 - _HEIGHT * (i + 1) + 0.42  # inches
        middle = (bottom + _SIDE / 2) / height
        head, *more = name.split("\n")
        lines = [line for part in more for line in lettering.wrap(part, lettering.font(12), 115, 6)]
        figure.text(0.1 / width, middle, head + "\n" * len(lines), va="center", fontsize=9.5, fontweight="bold")
        figure.text(0.1 / width, middle, "\n" + "\n".join(lines).replace("$", r"\$"), va="center", fontsize=9)
        for j, panel in enumerate(panels):
            left = _LEFT + j * (_SIDE + _GAP)
            _draw(figure, panel, (left / width, bottom / height, _SIDE / width, _SIDE / height))
            if panel.arrow:
                _arrow(
                    figure, panel.arrow, ((left + _SIDE + 0.06) / width, (left + _SIDE + _GAP - 0.06) / width), middle
                )
    return encode(figure)


def _draw(figure: Figure, panel: Panel, place: tuple[float, float, float, float]) -> None:
    """The panel at place, (left, bottom, width, height) in parts of the figure."""
    axes = figure.add_axes(place)
    axes.set(xticks=[], yticks=[])
    axes.set_title(panel.name, fontsize=9.5, pad=4)
    axes.set_xlabel(panel.below, fontsize=8, labelpad=3)
    if panel.picture is not None:
        axes.imshow(panel.picture, cmap="gray", vmin=0, vmax=255, interpolation="nearest", aspect="auto")
        return
    axes.set_facecolor("#f4f4f4")
    lines = lettering.wrap(panel.text, lettering.font(12), 125, 9)
    axes.text(0.5, 0.5, "\n".join(lines).replace("$", r"\$"), ha="center", va="center", fontsize=9)


def _arrow(figure: Figure, text: str, ends: tuple[float, float], y: float) -> None:
    """An arrow between two ends, in parts of the figure's width, with a text above."""
    axes = figure.axes[-1]
    style = {"arrowstyle": "-|>", "color": "0.3", "lw": 1.4}
    axes.annotate(
        "", (ends[1], y), (ends[0], y), xycoords="figure fraction", textcoords="figure fraction", arrowprops=style
    )
    figure.text(sum(ends) / 2, y + 0.008, text, ha="center", va="bottom", fontsize=8)
