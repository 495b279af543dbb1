"""Clips of sound to spectrograms with axes, small enough for a grid of them."""

import functools
import math

import matplotlib
import numpy as np
from PIL import Image, ImageDraw

from diffusion_jax.report import lettering

WIDTH, HEIGHT = 240, 168
"""Pixels of one picture."""

FLOOR = -80.0
"""dB of a full-scale sine, 0 dB, at which the colours begin."""

_LEFT, _RIGHT, _BOTTOM, _STRIP = 34, 12, 17, 24  # margins, and the height of the waveform above the spectrogram
_WINDOW = 0.046  # seconds; 2048 samples at 44.1 kHz
_PADDING = 4  # times the window, of the transform: lines are drawn between the bins too
_INK, _PAPER, _WAVE, _CLIPPED = (40, 40, 40), (255, 255, 255), (60, 90, 140), (214, 39, 40)
_TICKS_HZ = (100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000)


def spectrograms(clips: np.ndarray, rate: int) -> np.ndarray:
    """A picture of each of clips [N, L, C] in [-1, 1]: uint8 [N, HEIGHT, WIDTH, 3].

    Above, the waveform from -1 to 1, red where it reaches them. Below, the short-time Fourier transform under Hann
    windows of 46 ms, the power averaged over the channels, in dB of a full-scale sine. The axis of frequency is the mel
    scale 2595 log10(1 + f / 700) up to half the rate, and ticks are in Hz and seconds.
    """
    return np.stack([_picture(clip, rate) for clip in clips])


def _picture(clip: np.ndarray, rate: int) -> np.ndarray:
    width, height = WIDTH - _LEFT - _RIGHT, HEIGHT - _BOTTOM - _STRIP
    levels = level_map(clip, rate, width, height)
    shades = np.clip((levels - FLOOR) / -FLOOR, 0, 1)
    picture = np.full((HEIGHT, WIDTH, 3), _PAPER, np.uint8)
    picture[_STRIP : _STRIP + height, _LEFT : _LEFT + width] = _colours()[np.rint(255 * shades).astype(int)]
    picture[: _STRIP - 2, _LEFT : _LEFT + width] = _waveform(clip, width, _STRIP - 2)
    drawn = Image.fromarray(picture)
    _axes(ImageDraw.Draw(drawn), len(clip) / rate, rate / 2, width, height)
    return np.asarray(drawn)


def level_map(clip: np.ndarray, rate: int, width: int, height: int) -> np.ndarray:
    """Levels in dB [height, width] of a clip [L, C]: rows on the mel scale from rate / 2 down to 0, columns in time.

    A pixel shows the highest level of the frequencies that it covers, so that no line is lost between rows.
    """
    length = len(clip)
    size = 2 ** round(math.log2(max(_WINDOW * rate, 16)))
    while size > max(length, 16):
        size //= 2
    centres = np.rint((np.arange(width) + 0.5) / width * length).astype(int)
    padded = np.pad(clip.astype(np.float64), ((size // 2, size // 2), (0, 0)))
    window = np.hanning(size + 1)[:-1]
    frames = padded[centres[:, None] + np.arange(size)] * window[:, None]  # [width, size, C]
    spectrum = np.fft.rfft(frames, _PADDING * size, axis=1)
    power = (abs(spectrum) ** 2).mean(axis=2) * (2 / window.sum()) ** 2  # 1 for a sine of amplitude 1
    edges = _hertz(np.linspace(0, _mel(rate / 2), height + 1))
    starts = np.minimum((edges[:-1] / (rate / 2) * (power.shape[1] - 1)).astype(int), power.shape[1] - 1)
    rows = np.maximum.reduceat(power, starts, axis=1)  # [width, height], lowest first
    return 10 * np.log10(rows.T[::-1] + 1e-12)


def _mel(hertz: float) -> float:
    return 2595 * math.log10(1 + hertz / 700)


def _hertz(mel: np.ndarray) -> np.ndarray:
    return 700 * (10 ** (mel / 2595) - 1)


@functools.cache
def _colours() -> np.ndarray:
    """matplotlib's magma, uint8 [256, 3]."""
    return np.rint(255 * matplotlib.colormaps["magma"](np.arange(256))[:, :3]).astype(np.uint8)


def _waveform(clip: np.ndarray, width: int, height: int) -> np.ndarray:
    """The range of values of each column between -1 and 1, uint8 [height, width, 3]."""
    edges = np.linspace(0, len(clip), width + 1).astype(int)[:-1]
    low, high = (each.reduceat(clip, np.minimum(edges, len(clip) - 1), axis=0) for each in (np.minimum, np.maximum))
    low, high = low.min(axis=1), high.max(axis=1)  # over the channels
    top, bottom = (np.clip(np.rint((1 - value) / 2 * (height - 1)), 0, height - 1) for value in (high, low))
    rows = np.arange(height)[:, None]
    filled = (rows >= top) & (rows <= bottom)
    full = np.maximum(high, -low) >= 1
    return np.where(filled[..., None], np.where(full[:, None], _CLIPPED, _WAVE), _PAPER).astype(np.uint8)


def _axes(draw: ImageDraw.ImageDraw, seconds: float, top: float, width: int, height: int) -> None:
    font = lettering.font(10)
    bottom = _STRIP + height
    draw.text((_LEFT - 5, _STRIP - 8), "Hz", _INK, font, anchor="rb")
    above = float(_STRIP - 6)  # lowest row that the label above takes
    for hertz in reversed(_TICKS_HZ):
        y = bottom - 1 - _mel(hertz) / _mel(top) * (height - 1)
        if hertz > top or y - 5 < above:
            continue
        draw.line((_LEFT - 3, y, _LEFT - 1, y), _INK)
        text = f"{hertz // 1000}k" if hertz >= 1000 else str(hertz)
        draw.text((_LEFT - 5, y), text, _INK, font, anchor="rm")
        above = y + 6
    step = nice_step(seconds / 4)
    ticks = [round(i * step, 10) for i in range(int(seconds / step + 1e-9) + 1)]
    for tick in ticks:
        x = _LEFT + tick / seconds * (width - 1)
        draw.line((x, bottom, x, bottom + 2), _INK)
        text = f"{tick:g}" + (" s" if tick == ticks[-1] else "")
        draw.text((min(x, WIDTH - 1 - font.getlength(text) / 2), bottom + 4), text, _INK, font, anchor="mt")


def nice_step(least: float) -> float:
    """The smallest of 1, 2 and 5 times a power of ten that is at least least."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= least * (1 - 1e-9))
