"""Arrays to pictures: pixels, grids with and without labels, loss curves.

Images are channels last; floats lie in [-1, 1], pixels are uint8; C is 1 (gray), 3 (RGB) or 4 (RGBA).
"""

import io
import math
import os
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter
from PIL import Image, ImageDraw
from PIL.ImageFont import FreeTypeFont

from diffusion_jax.errors import UserError
from diffusion_jax.report import lettering
from diffusion_jax.report.atomic import replace_file

MEAN, POINTS, BAD = "#1f3f66", "#6f9bd1", "#d62728"
"""The colours of a curve."""

_BACKGROUND = 200  # light gray: separates from black images and from white ones
_INK = (30, 30, 30)
_LABEL_WIDTH = 180  # pixels, at most
_MARGIN = 6  # pixels beside a name
_GAP = 16  # pixels between blocks of rows
_ASPECT = 4 / 3  # width / height of a screen, about


def to_uint8(images: np.ndarray) -> np.ndarray:
    """Pixels rint((x + 1) 127.5) of x [...] clipped to [-1, 1]: the exact inverse of v / 127.5 - 1 for v in 0..255.

    Raises TypeError for integers, which are pixels already, and UserError for NaN and infinities, which have no colour.
    """
    images = np.asarray(images)
    if images.dtype.kind in "biu":
        raise TypeError(f"to_uint8 takes floats in [-1, 1]; got {images.dtype}")
    x = images.astype(np.float32)  # half precision would round twice
    check_finite(x)
    return np.rint((np.clip(x, -1, 1) + 1) * np.float32(127.5)).astype(np.uint8)


def check_finite(images: np.ndarray) -> None:
    """Raises UserError where a value of images [...] is NaN or infinite."""
    if not (finite := np.isfinite(images)).all():
        raise UserError(
            f"{1 - finite.mean():.1%} of the samples' values are NaN or infinite; the network or the sampler has "
            "diverged"
        )


def grid(images: np.ndarray, columns: int | None = None, padding: int = 2, scale: int | None = None) -> np.ndarray:
    """One picture [H', W', C] of uint8 images [N, H, W, C] in reading order, padding pixels apart, on light gray.

    Columns default to the squarest grid. Each image is enlarged by the integer scale, nearest neighbour; the default is
    the least that makes its shorter side 48 pixels.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or not len(images):
        raise ValueError(f"grid takes uint8 images [N, H, W, C], N > 0; got {images.dtype} {images.shape}")
    columns = columns or math.ceil(math.sqrt(len(images)))
    scale = scale or _readable_scale(images, side=48)
    images = images.repeat(scale, axis=1).repeat(scale, axis=2)
    n, h, w, c = images.shape
    rows = math.ceil(n / columns)
    picture = np.full((padding + rows * (h + padding), padding + columns * (w + padding), c), _BACKGROUND, np.uint8)
    if c == 4:
        picture[..., 3] = 255
    for i, image in enumerate(images):
        top, left = (padding + index * (side + padding) for index, side in zip(divmod(i, columns), (h, w), strict=True))
        picture[top : top + h, left : left + w] = image
    return picture


def labelled_grid(
    images: np.ndarray,
    rows: Sequence[str] = (),
    columns: Sequence[str] = (),
    padding: int = 2,
    scale: int | None = None,
) -> np.ndarray:
    """RGB picture [H', W', 3] of uint8 images [R, K, H, W, C] with R names at the left and K titles on top.

    Either list may be empty. A long text is wrapped, then cut with an ellipsis; a character that the font lacks is its
    escape. The default scale is the least that makes the shorter side of an image 64 pixels.
    """
    r, k, h, w, _ = images.shape
    for texts, n, kind in ((rows, r, "row"), (columns, k, "column")):
        if texts and len(texts) != n:
            raise ValueError(f"a grid of {n} {kind}s takes {n} {kind} labels; got {len(texts)}")
    scale = scale or _readable_scale(images[0], side=64)
    h, w = h * scale, w * scale
    font = lettering.font(12)
    line = sum(font.getmetrics())
    names = [_row_name(text, font, h) for text in rows]
    titles = [lettering.wrap(text, font, w, 3) for text in columns]
    left = max((_name_width(lines, font) for lines in names), default=0)
    top = line * max((len(lines) for lines in titles), default=0) + (_MARGIN // 2 if titles else 0)

    tiles = _as_pil(grid(images.reshape(r * k, *images.shape[2:]), k, padding, scale)).convert("RGBA")
    picture = Image.new("RGB", (left + tiles.width, top + tiles.height), (_BACKGROUND,) * 3)
    picture.paste(tiles, (left, top), tiles)
    draw = ImageDraw.Draw(picture)
    for i, lines in enumerate(names):
        y = top + padding + i * (h + padding) + (h - line * len(lines)) / 2
        for j, text in enumerate(lines):
            draw.text((left - _MARGIN / 2, y + j * line), text, _INK, font, anchor="ra")
    for i, lines in enumerate(titles):
        x = left + padding + i * (w + padding) + w / 2
        for j, text in enumerate(lines):
            draw.text((x, top - line * (len(lines) - j)), text, _INK, font, anchor="ma")
    return np.asarray(picture)


def labelled_rows(images: np.ndarray, rows: Sequence[str], padding: int = 2, scale: int | None = None) -> np.ndarray:
    """RGB picture [H', W', 3] of uint8 images [R, K, H, W, C] with R names, in blocks that stand beside each other.

    A block is the `labelled_grid` of consecutive rows; the rows go on at the top of the block to the right. All blocks
    but the last have the same number of rows, that by which the picture comes nearest to 4:3. With one block it is the
    `labelled_grid` of all rows. The default scale is that of `labelled_grid`.
    """
    r = len(images)
    if len(rows) != r:
        raise ValueError(f"a picture of {r} rows takes {r} names; got {len(rows)}")
    scale = scale or _readable_scale(images[0], side=64)
    each = _rows_of_a_block(images.shape, rows, padding, scale)
    blocks = [labelled_grid(images[i : i + each], rows[i : i + each], (), padding, scale) for i in range(0, r, each)]
    width = sum(block.shape[1] for block in blocks) + _GAP * (len(blocks) - 1)
    picture = np.full((blocks[0].shape[0], width, 3), _BACKGROUND, np.uint8)
    left = 0
    for block in blocks:
        picture[: block.shape[0], left : left + block.shape[1]] = block
        left += block.shape[1] + _GAP
    return picture


def _rows_of_a_block(shape: tuple[int, ...], rows: Sequence[str], padding: int, scale: int) -> int:
    """The rows of a block of `labelled_rows`, of images of a shape [R, K, H, W, C]."""
    r, k, h, w, _ = shape
    font = lettering.font(12)
    names = [_name_width(_row_name(text, font, h * scale), font) for text in rows]
    tiles = k * (w * scale + padding) + padding

    def distance(each: int) -> float:
        """That of the picture's shape to 4:3, in logarithms."""
        widths = [max(names[i : i + each]) + tiles for i in range(0, r, each)]
        width, height = sum(widths) + _GAP * (len(widths) - 1), each * (h * scale + padding) + padding
        return abs(math.log(width / height / _ASPECT))

    return min({-(-r // blocks) for blocks in range(1, r + 1)}, key=lambda each: (distance(each), -each))


def _row_name(text: str, font: FreeTypeFont, height: int) -> list[str]:
    """The lines of a row's name; height in pixels is the row's."""
    return lettering.wrap(text, font, _LABEL_WIDTH, max(1, height // sum(font.getmetrics())))


def _name_width(lines: Sequence[str], font: FreeTypeFont) -> int:
    """Pixels of a row's name with the margin beside it."""
    return math.ceil(max((font.getlength(text) for text in lines), default=0)) + _MARGIN


def encode_png(image: np.ndarray) -> bytes:
    """Pixels uint8 [H, W, C] or [H, W] as a PNG."""
    if image.dtype != np.uint8:
        raise TypeError(f"a PNG holds uint8 pixels; got {image.dtype}")
    file = io.BytesIO()
    _as_pil(image).save(file, "PNG")
    return file.getvalue()


def save_png(path: str | os.PathLike[str], image: np.ndarray) -> None:
    """Writes uint8 [H, W, C] or [H, W] as a PNG, whole or not at all, creating parent folders."""
    replace_file(path, encode_png(image))


def curve_png(
    path: str | os.PathLike[str],
    records: Sequence[Mapping[str, float]],
    name: str = "loss",
    title: str = "training loss",
    ylabel: str | None = None,
) -> None:
    """Writes `curve` of name as a 960 x 540 PNG."""
    file = io.BytesIO()
    FigureCanvasAgg(curve(records, name, title, ylabel)).print_png(file)
    replace_file(path, file.getvalue())


def curve(
    records: Sequence[Mapping[str, float]],
    name: str = "loss",
    title: str = "training loss",
    ylabel: str | None = None,
    size: tuple[float, float] = (8, 4.5),
) -> Figure:
    """A figure of name against "step": the points, their running mean, red ticks where not finite; size in inches.

    Records come in order of step; those without the name (evaluations, say) are passed over; ValueError if that is all.
    The axis is logarithmic where all values are positive and span a decade.
    """
    points = [(record["step"], record[name]) for record in records if name in record]
    if not points:
        raise ValueError(f"no record holds {name!r}")
    steps, values = np.asarray(points, np.float64).T
    finite = np.isfinite(values)
    values[~finite] = np.nan  # breaks the line

    figure = Figure(figsize=size, dpi=120, layout="constrained")
    axes = figure.add_subplot(title=title, xlabel="step", ylabel=ylabel or name)
    if len(points) < 20:
        axes.plot(steps, values, "o-", ms=5, lw=1.2, color=MEAN, label="as logged")
    else:
        width = max(2, len(points) // 40)
        dots = 3 if len(points) > 200 else 5
        axes.plot(steps, values, "o", ms=dots, color=POINTS, alpha=0.4, mew=0, label="as logged")
        label = f"mean of {2 * width + 1} records"
        axes.plot(steps, running_mean(values, width), color=MEAN, lw=1.8, label=label)
    if finite.any() and np.nanmin(values) > 0 and np.nanmax(values) > 10 * np.nanmin(values):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    if not finite.all():
        ends = np.repeat([[0.0], [0.04]], (~finite).sum(), axis=1)  # in heights of the plot
        lines = axes.plot(np.tile(steps[~finite], (2, 1)), ends, color=BAD, transform=axes.get_xaxis_transform())
        lines[0].set_label("not finite")
    if steps.min() == steps.max():
        axes.set_xlim(steps[0] - 1, steps[0] + 1)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.grid(alpha=0.3, lw=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    if len(axes.get_legend_handles_labels()[0]) > 1:
        axes.legend(frameon=False, loc="upper right")  # "best" takes seconds on a long run
    return figure


def running_mean(values: np.ndarray, width: int) -> np.ndarray:
    """Mean [N] of values [N] over i - width .. i + width, NaN left out, and NaN where the value is NaN.

    At the start the window narrows to a third on the right side, which keeps a steep first fall; at the end it is cut.
    Each window is summed by itself, so that a spike of any height is gone once it is out of the window.
    """
    i = np.arange(len(values))
    first = np.maximum(i - width, 0)
    last = np.minimum(i + np.clip(i, width // 3, width) + 1, len(values))
    known = ~np.isnan(values)
    windows = np.stack([first, last], axis=1).ravel()  # every other sum of reduceat is of a window
    total, count = (np.add.reduceat(np.append(a, 0.0), windows)[::2] for a in (np.where(known, values, 0), known))
    return np.where(known, total / np.maximum(count, 1), np.nan)


def _readable_scale(images: np.ndarray, side: int) -> int:
    return math.ceil(side / min(images.shape[1:3], default=side))


def _as_pil(image: np.ndarray) -> Image.Image:
    return Image.fromarray(image[..., 0] if image.ndim == 3 and image.shape[-1] == 1 else image)
