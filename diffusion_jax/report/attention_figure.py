"""Maps of a caption's words, laid over the picture that was drawn from it, as a PNG."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from diffusion_jax.report import lettering
from diffusion_jax.report.figures import encode

_ACROSS = 12  # pictures beside each other, at most
_SIDE = 1.15  # inches of a picture


@dataclasses.dataclass(frozen=True)
class Row:
    """A picture uint8 [H, W, C], and (word, map [h, w]) of the words of the caption that it was drawn from."""

    image: np.ndarray
    maps: Sequence[tuple[str, np.ndarray]]


def attention_png(rows: Sequence[Row], title: str) -> bytes:
    """A PNG of rows: the picture, then each map in colours over the gray picture, with the word and its numbers.

    The numbers are the least and the greatest value of the map, in percent; a long caption takes several lines.
    """
    across = min(max(1 + len(row.maps) for row in rows), _ACROSS)
    lines = [-(-(1 + len(row.maps)) // across) for row in rows]
    figure = Figure(figsize=(max(_SIDE * across, 8), 0.5 + (_SIDE + 0.45) * sum(lines)), dpi=100, layout="constrained")
    figure.suptitle(title, fontsize=10, wrap=True)
    grid = figure.subplots(sum(lines), across, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    first = 0
    for row, count in zip(rows, lines, strict=True):
        panels = list(grid[first : first + count].flat)
        _picture(panels[0], row.image)
        panels[0].set_title("sample", fontsize=9)
        gray = np.repeat(row.image[..., :3].mean(axis=-1, keepdims=True).astype(np.uint8), 3, axis=-1)
        for axes, (word, values) in zip(panels[1:], row.maps, strict=False):
            _picture(axes, gray)
            extent = (-0.5, gray.shape[1] - 0.5, gray.shape[0] - 0.5, -0.5)
            axes.imshow(values, cmap="inferno", alpha=0.7, extent=extent, interpolation="bilinear")
            least, most = 100 * values.min(), 100 * values.max()
            name = lettering.wrap(word, lettering.font(12), 100, 1)[0].replace("$", r"\$")
            axes.set_title(f"{name}\n{least:.0f} to {most:.0f} %", fontsize=9)
        first += count
    return encode(figure)


def _picture(axes: Axes, pixels: np.ndarray) -> None:
    """The picture uint8 [H, W, 1, 3 or 4], its pixels as squares."""
    axes.imshow(
        pixels[..., 0] if pixels.shape[-1] == 1 else pixels, cmap="gray", vmin=0, vmax=255, interpolation="nearest"
    )
