"""Masks of the values that inpainting fills, and semantic maps, which have a class for each pixel."""

import numpy as np
from PIL import Image, ImageDraw

from diffusion_jax.data import transforms
from diffusion_jax.errors import UserError

_BLOCKS = 6  # of four Philox numbers, that each position of the stream owns
_BENDS = 8  # in the longest brush stroke
_LEAST, _MOST = 0.05, 0.9  # of the pixels, that strokes may cover


def random_masks(seed: int, first: int, count: int, size: tuple[int, ...]) -> np.ndarray:
    """A mask for each of the positions [first, first + count), bool [count, *size], True where values are unknown.

    Of images, half are brush strokes, in the manner of Yu et al. 2019 (arXiv:1806.03589), 3 in 10 boxes, and 2 in 10
    a side of the image, as for outpainting. Of other arrays, half are boxes, such as a gap in a waveform, half a side,
    such as its end. Each mask has unknown and known values. A mask is a function of seed and its position
    alone. Raises UserError for a side of 1, which has no part to hide.
    """
    if min(size) < 2:
        raise UserError(f"masks need sides of at least 2, not {' x '.join(str(side) for side in size)}")
    key = np.random.SeedSequence([seed, 2]).generate_state(2, np.uint64)  # 0 and 1 are order and flips
    raw = np.random.Philox(key=key, counter=_BLOCKS * first).random_raw(4 * _BLOCKS * count)
    draws = ((raw >> np.uint64(11)) * 2.0**-53).reshape(count, -1)  # uniform in [0, 1)
    masks = np.zeros((count, *size), bool)
    for mask, (kind, *rest) in zip(masks, draws, strict=True):
        if len(size) != 2:
            mask[:] = (_box if kind < 0.5 else _side)(rest, size)
        elif kind < 0.5:
            mask[:] = _strokes(rest, *size)
            if not _LEAST <= mask.mean() <= _MOST:
                mask[:] = _side(rest, size)
        else:
            mask[:] = (_box if kind < 0.8 else _side)(rest, size)
    return masks


def _strokes(draws: list[float], height: int, width: int) -> np.ndarray:
    """One brush stroke with 4 to 8 bends, as thick as a 10th to a 4th of the shorter side."""
    number, thickness, *places = draws
    bends = 4 + int(number * (_BENDS - 3))
    points = [(places[2 * i] * width, places[2 * i + 1] * height) for i in range(bends)]
    radius = max((0.1 + 0.15 * thickness) * min(height, width) / 2, 0.5)
    canvas = Image.new("1", (width, height))
    brush = ImageDraw.Draw(canvas)
    brush.line(points, fill=1, width=max(round(2 * radius), 1))
    for x, y in points:
        brush.ellipse((x - radius, y - radius, x + radius, y + radius), fill=1)
    return np.asarray(canvas)


def _box(draws: list[float], size: tuple[int, ...]) -> np.ndarray:
    """A box anywhere, its sides 0.4 to 0.8 of the array's."""
    mask = np.zeros(size, bool)
    rank = len(size)
    lengths = [_part(0.4 + 0.4 * draw, side) for draw, side in zip(draws[:rank], size, strict=True)]
    ends = zip(draws[rank : 2 * rank], size, lengths, strict=True)
    starts = [int(draw * (side - length + 1)) for draw, side, length in ends]
    mask[tuple(slice(start, start + length) for start, length in zip(starts, lengths, strict=True))] = True
    return mask


def _side(draws: list[float], size: tuple[int, ...]) -> np.ndarray:
    """The part of the array, 0.25 to 0.65 of it, at one of the ends of one of its axes."""
    mask = np.zeros(size, bool)
    axis, last = divmod(int(2 * len(size) * draws[0]), 2)
    along = np.moveaxis(mask, axis, 0)
    part = _part(0.25 + 0.4 * draws[1], len(along))
    along[len(along) - part if last else 0 : len(along) if last else part] = True
    return mask


def _part(share: float, side: int) -> int:
    """round(share * side), but at least 1 and at most side - 1."""
    return min(max(round(share * side), 1), side - 1)


def read_map(data: bytes, image_size: tuple[int, ...], size: tuple[int, ...], *, name: str) -> np.ndarray:
    """A semantic map for the image of image_size (h, w), brought to size (H, W) as `transforms.resize_crop` does.

    The classes are int32 [H, W], those of the nearest pixels. Raises UserError that names the map if its size is not
    that of the image.
    """
    classes = read_classes(data, name=f"the map of {name}")
    if classes.shape != image_size:
        raise UserError(
            f"the map of {name} is {classes.shape[1]} x {classes.shape[0]}, but its image {image_size[1]} x "
            f"{image_size[0]}; draw it at the size of the image"
        )
    rows, columns = _nearest(image_size, size)
    return classes[np.ix_(rows, columns)]


def read_classes(data: bytes, *, name: str) -> np.ndarray:
    """The classes of a semantic map, upright, int32 [h, w]: the values of gray of 8 or 16 bits, or palette indices.

    Raises UserError that names the map where it is an image in colours.
    """
    with transforms.opened(data, name) as image:
        mode = image.mode
        if mode in ("1", "L", "P") or mode.startswith("I"):
            return np.asarray(image).astype(np.int32)
    raise UserError(f"{name} holds colours ({mode}); a map is a gray or palette PNG, a class a value")


def _nearest(image_size: tuple[int, ...], size: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """(rows [H], columns [W]) of the map in which the centres of the pixels of the scaled and cropped image lie."""
    scale = max(new / side for side, new in zip(image_size, size, strict=True))
    indices = []
    for side, new in zip(image_size, size, strict=True):
        before = max(side - new / scale, 0) / 2
        centres = before + (np.arange(new) + 0.5) * (side - 2 * before) / new
        indices.append(np.minimum(centres.astype(np.int64), side - 1))
    return indices[0], indices[1]
