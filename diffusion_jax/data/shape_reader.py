"""Reads shapes, colours and semantic maps from the pixels of pictures like those of `shapes`, to check samples."""

import re
from typing import NamedTuple

import numpy as np

from diffusion_jax.data.shapes import COLOURS, RELATIONS, SHAPES, coverage
from diffusion_jax.errors import UserError

_LEAST_AREA = 0.008  # of the picture, a third of the smallest shape: less than that is a speck
_LEAST_OVERLAP = 0.7  # of a region with the shape that it is taken for
_AREAS = {"circle": np.pi, "square": 3.24, "triangle": 2.0}  # in units of extent^2, of what `covers` draws
_CAPTION = re.compile(
    rf"a (?:small |large )?({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})"
    rf"(?: ({'|'.join(RELATIONS.values())}) a (?:small |large )?({'|'.join(COLOURS)}) ({'|'.join(SHAPES)}))?"
)


class Seen(NamedTuple):
    """A shape that was read from pixels."""

    shape: str | None  # None: no shape of SHAPES overlaps it well
    colour: str
    centre: tuple[float, float]  # x and y of its box, in parts of the picture's width


def read_picture(image: np.ndarray) -> list[Seen]:
    """The coloured shapes in image, uint8 [H, W, 3], from its pixels alone.

    A pixel has the colour of the nearest hue; its share is the length of its projection on that colour. A region of
    shares above one half is taken for the shape whose drawing, of the same area and centre, overlaps it best.
    """
    return [seen for seen, _ in _read(image)]


def read_map(image: np.ndarray) -> np.ndarray:
    """The semantic map of image, uint8 [H, W, 3], from its pixels alone, as `draw` gives it: uint8 [H, W]."""
    classes = np.zeros(image.shape[:2], np.uint8)
    for seen, region in _read(image):
        if seen.shape is not None:
            classes[region] = SHAPES.index(seen.shape) + 1
    return classes


def _read(image: np.ndarray) -> list[tuple[Seen, np.ndarray]]:
    """(shape, its pixels bool [H, W]) of each shape in image."""
    height, width, _ = image.shape
    hues = np.array(list(COLOURS.values()), float)
    hues -= hues.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(hues, axis=1)
    chroma = image - image.mean(axis=2, keepdims=True)
    along = chroma @ (hues / lengths[:, None]).T  # [H, W, colours]
    nearest = along.argmax(axis=2)
    shares = np.clip(along / lengths, 0, 1)
    seen = []
    for number, colour in enumerate(COLOURS):
        share = shares[..., number]
        for region in _regions((nearest == number) & (share > 0.5)):
            weight = np.where(_grown(region), share, 0)
            if weight.sum() >= _LEAST_AREA * height * width:
                shape, centre = _fitted(weight)
                seen.append((Seen(shape, colour, centre), region))
    return seen


def matches(image: np.ndarray, caption: str) -> bool:
    """Whether image, uint8 [H, W, 3], shows the shapes of caption in their colours, and nothing else.

    Sizes and the relation are ignored. Raises UserError for a caption that `Picture.caption` would not write.
    """
    first, _, second = _parsed(caption)
    named = [first] if second is None else [first, second]
    return sorted(named) == sorted((seen.shape or "", seen.colour) for seen in read_picture(image))


def related(image: np.ndarray, caption: str) -> bool:
    """Whether image `matches` caption, and two shapes have its relation along the axis of larger distance."""
    first, relation, second = _parsed(caption)
    if not matches(image, caption):
        return False
    if relation is None:
        return True
    one, other = read_picture(image)
    return any(
        (a.shape, a.colour) == first and (b.shape, b.colour) == second and _relation(a.centre, b.centre) == relation
        for a, b in ((one, other), (other, one))
    )


def _relation(one: tuple[float, float], other: tuple[float, float]) -> str:
    """The relation of one to other along the axis on which they are further apart."""
    dx, dy = one[0] - other[0], one[1] - other[1]
    if abs(dx) > abs(dy):
        return RELATIONS["x", 1 if dx > 0 else -1]
    return RELATIONS["y", 1 if dy > 0 else -1]


def _parsed(caption: str) -> tuple[tuple[str, str], str | None, tuple[str, str] | None]:
    """(shape, colour) of the first, the relation, and (shape, colour) of the second."""
    found = _CAPTION.fullmatch(caption)
    if found is None:
        raise UserError(f"{caption!r} is no caption of shapes, such as 'a small red circle left of a blue square'")
    colour, shape, relation, other_colour, other_shape = found.groups()
    return (shape, colour), relation, None if relation is None else (other_shape, other_colour)


def _regions(inside: np.ndarray) -> list[np.ndarray]:
    """The connected parts of inside, each bool [H, W]."""
    regions, left = [], inside.copy()
    while left.any():
        region = np.zeros_like(left)
        region.flat[left.argmax()] = True
        while (wider := _grown(region) & left).sum() > region.sum():
            region = wider
        regions.append(region)
        left &= ~region
    return regions


def _grown(region: np.ndarray) -> np.ndarray:
    """The region and all pixels that touch it."""
    tall = region.copy()
    tall[1:] |= region[:-1]
    tall[:-1] |= region[1:]
    wide = tall.copy()
    wide[:, 1:] |= tall[:, :-1]
    wide[:, :-1] |= tall[:, 1:]
    return wide


def _fitted(weight: np.ndarray) -> tuple[str | None, tuple[float, float]]:
    """The shape that overlaps weight [H, W] best, None if none does well, and the centre of its box."""
    height, width = weight.shape
    area = weight.sum()
    mean_x = float((weight.sum(axis=0) @ (np.arange(width) + 0.5)) / area / width)
    mean_y = float((weight.sum(axis=1) @ (np.arange(height) + 0.5)) / area / width)
    fits, soft = [], _blurred(weight)
    for shape in SHAPES:
        extent = float(np.sqrt(area / _AREAS[shape])) / width
        y = mean_y - extent / 3 if shape == "triangle" else mean_y  # a triangle's mass lies low in its box
        drawn = _blurred(coverage(shape, (0, width), (0, height), width, mean_x, y, extent))
        fits.append((np.minimum(drawn, soft).sum() / np.maximum(drawn, soft).sum(), shape, (mean_x, y)))
    overlap, shape, centre = max(fits)
    return (shape if overlap >= _LEAST_OVERLAP else None), centre


def _blurred(weight: np.ndarray) -> np.ndarray:
    """weight under the filter (1, 2, 1) / 4 along both axes: JPEG's soft colours then cost a shape little."""
    weight = np.pad(weight, 2)
    weight = (weight[:-2] + 2 * weight[1:-1] + weight[2:]) / 4
    return (weight[:, :-2] + 2 * weight[:, 1:-1] + weight[:, 2:]) / 4
