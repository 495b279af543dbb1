"""A small picture of each plain array: lines for one side, a colour map for two, three planes for three."""

import numpy as np
from matplotlib import colormaps
from PIL import Image, ImageDraw

_LINES = (160, 96)  # pixels: width and height of a picture of lines
_OVERSAMPLING = 2
_COLOURS = ((31, 63, 102), (214, 39, 40), (44, 130, 60), (148, 103, 189))  # of channels, in turn
_PLANE = 64  # pixels at least, of the shorter side of a plane
_GAP = 2


def tiles(arrays: np.ndarray) -> np.ndarray:
    """Pictures uint8 [N, H, W, 3] of arrays [N, *S, C] with one to three sides, all on one scale.

    The scale spans the values between the 0.5th and 99.5th percentile. Of one side, each channel is a line; of two, the
    channels stand beside each other; of three, so do the middle planes along each side of the first channel.
    """
    low, high = np.percentile(arrays, (0.5, 99.5))
    scaled = np.clip((arrays - low) / max(high - low, np.finfo(np.float32).tiny), 0, 1)
    draw = {3: _lines, 4: _maps, 5: _planes}[arrays.ndim]
    return np.stack([draw(each) for each in scaled])


def _lines(array: np.ndarray) -> np.ndarray:
    """A line a channel of [L, C] in [0, 1]."""
    width, height = (side * _OVERSAMPLING for side in _LINES)
    picture = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(picture)
    x = np.linspace(0, width - 1, len(array)) if len(array) > 1 else np.array([0.0])
    for channel, values in enumerate(array.T):
        points = np.stack([x, (1 - values) * (height - 1)], axis=1)
        draw.line([tuple(point) for point in points], _COLOURS[channel % len(_COLOURS)], _OVERSAMPLING)
    return np.asarray(picture.resize(_LINES, Image.Resampling.BOX))


def _maps(array: np.ndarray) -> np.ndarray:
    """A colour map of each channel of [H, W, C] in [0, 1]."""
    return _beside([array[..., channel] for channel in range(array.shape[-1])])


def _planes(array: np.ndarray) -> np.ndarray:
    """A colour map of the middle plane along each side of the first channel of [D, H, W, C] in [0, 1]."""
    return _beside([array[..., 0].take(array.shape[axis] // 2, axis=axis) for axis in range(3)])


def _beside(planes: list[np.ndarray]) -> np.ndarray:
    """Planes [h, w] in [0, 1] as colours, enlarged by whole factors, on white."""
    scale = max(1, -(-_PLANE // min(min(plane.shape) for plane in planes)))
    shown = [
        (colormaps["viridis"](plane.repeat(scale, 0).repeat(scale, 1))[..., :3] * 255).round().astype(np.uint8)
        for plane in planes
    ]
    width = sum(each.shape[1] for each in shown) + _GAP * (len(shown) - 1)
    picture = np.full((max(each.shape[0] for each in shown), width, 3), 255, np.uint8)
    left = 0
    for each in shown:
        picture[: each.shape[0], left : left + each.shape[1]] = each
        left += each.shape[1] + _GAP
    return picture
