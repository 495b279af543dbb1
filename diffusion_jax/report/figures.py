"""Figures of the mathematics and of a training run, as PNG files. Times go from 0 at the data to 1 at the noise."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator, NullFormatter, NullLocator, StrMethodFormatter
from PIL import Image, ImageDraw, ImageFont

from diffusion_jax.report import pictures

EXAMPLE_IMAGE = Path(matplotlib.get_data_path(), "sample_data", "grace_hopper.jpg")
"""A photograph in the public domain, which comes with matplotlib."""


_SIDE = 96  # the least pixels of an image's shorter side


def strips_png(x: np.ndarray, scale: np.ndarray, times: Sequence[float], rows: Sequence[str], title: str) -> bytes:
    """A PNG of images x [R, K, H, W, C] at K times, in R named rows under a title.

    scale [R, K] times x is about in [-1, 1], and is clipped to it.
    """
    pixels = pictures.to_uint8(x * scale[..., None, None, None])
    columns = [f"t = {t:.3g}" for t in times]
    enlarge = -(-_SIDE // min(x.shape[2:4]))
    picture = pictures.labelled_grid(pixels, rows=rows, columns=columns, scale=enlarge)
    return pictures.encode_png(_titled(picture, title))


def tiles_png(tiles: np.ndarray, rows: Sequence[str], titles: Sequence[Sequence[str]], title: str) -> bytes:
    """A PNG of uint8 tiles [R, K, H, W, C] in R named rows under a title, each tile with a text of titles [R][K]."""
    enlarge = -(-_SIDE // min(tiles.shape[2:4]))
    strips = [
        pictures.labelled_grid(row[None], rows=[name], columns=texts if any(texts) else (), scale=enlarge)
        for row, name, texts in zip(tiles, rows, titles, strict=True)
    ]
    widest = max(strip.shape[1] for strip in strips)
    background = strips[0][0, 0]
    picture = [np.pad(strip, ((0, 0), (widest - strip.shape[1], 0), (0, 0))) for strip in strips]
    for padded, strip in zip(picture, strips, strict=True):
        padded[:, : widest - strip.shape[1]] = background
    return pictures.encode_png(_titled(np.concatenate(picture), title))


def _titled(picture: np.ndarray, title: str) -> np.ndarray:
    """The picture [H, W, 3] with a title above it, and a margin of its own background."""
    font = ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf"), 14)
    margin, top = 8, 28
    h, w, _ = picture.shape
    background = tuple(int(value) for value in picture[0, 0])
    canvas = Image.new("RGB", (max(w, int(font.getlength(title))) + 2 * margin, h + top + margin), background)
    canvas.paste(Image.fromarray(picture), (margin, top))
    ImageDraw.Draw(canvas).text((margin, margin), title, (30, 30, 30), font)
    return np.asarray(canvas)


def schedules_png(t: np.ndarray, curves: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]]) -> bytes:
    """A PNG of log-SNR, signal and noise levels against t [N]. curves are {name: (alpha, sigma, log-SNR)}, each [N].

    The axis of the log-SNR spans its values in 0.01 <= t <= 0.99, for it may be infinite at the ends.
    """
    rows = -(-len(curves) // 2)
    figure = Figure(figsize=(11, 4.8 + 0.22 * rows), dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2)
    left.set(title="Log signal-to-noise ratio", xlabel="time t", ylabel="log α² / σ²  (nats)")
    right.set(title="Signal and noise level", xlabel="time t", ylabel="level")
    lines = []
    for i, (name, (alpha, sigma, logsnr)) in enumerate(curves.items()):
        color = f"C{i % 10}"
        lw = 3.0 - 1.6 * i / len(curves)  # so that curves below are seen
        lines += left.plot(t, logsnr, color=color, lw=lw, label=name)
        right.plot(t, alpha, color=color, lw=lw)
        right.plot(t, sigma, color=color, lw=lw, ls="--")
    inner = np.stack([logsnr[(t >= 0.01) & (t <= 0.99)] for _, _, logsnr in curves.values()])
    low, high = inner.min(), inner.max()
    left.set_ylim(low - 0.15 * (high - low), high + 0.15 * (high - low))
    left.axhline(0, color="0.6", lw=0.8, zorder=0)
    highest = max(max(alpha.max(), sigma.max()) for alpha, sigma, _ in curves.values())
    if highest > 2:  # a variance-exploding schedule
        right.set_yscale("symlog", linthresh=1.0, linscale=1.0)
        ticks = [0, 0.25, 0.5, 0.75, *(v for e in range(5) for v in (10**e, 3 * 10**e) if v <= highest)]
        right.yaxis.set_major_locator(FixedLocator(ticks))
        right.yaxis.set_minor_locator(NullLocator())
        right.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        right.set_ylabel("level  (logarithmic above 1)")
    right.legend(
        handles=[
            Line2D([], [], color="0.3", lw=1.8, label="signal α(t)"),  # noqa: RUF001
            Line2D([], [], color="0.3", lw=1.8, ls="--", label="noise σ(t)"),  # noqa: RUF001
        ],
        frameon=False,
    )
    for axes in (left, right):
        axes.set_xlim(0, 1)
        plain(axes)
    figure.legend(handles=lines, loc="outside lower center", ncols=2, frameon=False)
    return encode(figure)


def time_colours(count: int, *, dark: bool = False) -> list[str]:
    """The colours #rrggbb of so many parts of time, from the data to the noise; dark: on a dark ground."""
    palette = matplotlib.colormaps["viridis"](np.linspace(0.3, 1.0, count) if dark else np.linspace(0, 0.92, count))
    return [matplotlib.colors.to_hex(colour) for colour in palette]


def loss_by_time_png(steps: np.ndarray, losses: np.ndarray) -> bytes:
    """`loss_by_time` as a PNG."""
    return encode(loss_by_time(steps, losses))


def loss_by_time(steps: np.ndarray, losses: np.ndarray) -> Figure:
    """A figure of losses [N, K] after steps [N], in K equal parts of [0, 1] of time; NaN for a part without a loss.

    It shows the mean of each part over the last quarter of training as bars, and the curve of each part.
    """
    k = losses.shape[1]
    begin = np.arange(k) / k
    late = steps > 0.75 * steps[-1]
    last, known = losses[late], np.isfinite(losses[late])
    mean = np.where(known, last, 0).sum(axis=0) / np.where(known.any(axis=0), known.sum(axis=0), np.nan)

    figure = Figure(figsize=(12, 4.8), dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2)
    span = " to ".join(f"{step:,}" for step in dict.fromkeys([int(steps[late][0]), int(steps[-1])]))
    left.set(title=f"Mean loss in each part of time, step {span}")
    left.set(xlabel="time t  (0: data, 1: noise)", ylabel="mean loss", xlim=(0, 1), xticks=np.arange(k + 1) / k)
    colors = [matplotlib.colors.to_rgba(colour) for colour in time_colours(k)]
    left.bar(begin, mean, width=1 / k, align="edge", color=colors, edgecolor="white")
    left.bar_label(left.containers[0], [f"{value:.2g}" if np.isfinite(value) else "" for value in mean], fontsize=8)
    left.margins(y=0.08)

    width = len(steps) // 40
    window = f", means of {2 * width + 1} records" if width else ""
    right.set(title=f"Course over training{window}", xlabel="step", ylabel="loss")
    for i in range(k):
        values = np.where(np.isfinite(losses[:, i]), losses[:, i], np.nan)
        drawn = np.isfinite(values)
        smooth = pictures.running_mean(values, width) if width else values
        right.plot(steps[drawn], smooth[drawn], "o-" if len(steps) < 20 else "-", ms=3, lw=1.4, color=colors[i])
    finite = losses[np.isfinite(losses)]
    if len(finite) and finite.max() > 10 * finite.min() > 0:
        right.set_yscale("log")
        right.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        right.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        right.yaxis.set_minor_formatter(NullFormatter())
    right.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10], nbins=6))
    right.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    palette = matplotlib.colors.ListedColormap(colors)
    bar = figure.colorbar(ScalarMappable(BoundaryNorm(np.arange(k + 1) / k, k), palette), ax=right, label="time t")
    bar.set_ticks((np.arange(k + 1) / k).tolist())
    for axes in (left, right):
        plain(axes)
    left.grid(visible=False, axis="x")
    return figure


def plain(axes: Axes) -> None:
    """A light grid, and no frame at the top and the right."""
    axes.grid(alpha=0.3, lw=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def encode(figure: Figure) -> bytes:
    """The figure as a PNG."""
    file = io.BytesIO()
    FigureCanvasAgg(figure).print_png(file)
    return file.getvalue()
