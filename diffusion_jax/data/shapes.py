"""Pictures of coloured shapes with true captions and semantic maps, drawn from random numbers.

A picture shows one or two shapes, small or large, that don't touch, on a gray background, plain or softly shaded. Only
shapes have a hue, so that a colour's share of a pixel is a projection; `shape_reader` reads shapes and colours back
from the pixels of a generated picture. Places are in parts of the side from the top left corner.
"""

import dataclasses
import functools
from typing import NamedTuple

import numpy as np

SHAPES = ("circle", "square", "triangle")  # a semantic map has 1, 2, 3 for them and 0 for the background
COLOURS = {
    "red": (225, 45, 45),
    "yellow": (235, 205, 40),
    "green": (40, 170, 60),
    "cyan": (40, 195, 205),
    "blue": (45, 75, 225),
    "purple": (180, 45, 205),
}
SPLITS = {"train": 0, "test": 1}  # name: the seed of its pictures

_BLOCKS = 5  # of four Philox numbers, that each picture owns
_EXTENTS = {"small": (0.11, 0.13), "large": (0.18, 0.21)}  # half of the side of the box that the shape lies in
_MARGIN, _GAP = 0.03, 0.08  # between a shape and the edge, and between the boxes of two
_GRID = 4  # points a side in each pixel, of which the pixel's colour is the mean
RELATIONS = {("x", -1): "left of", ("x", 1): "right of", ("y", -1): "above", ("y", 1): "below"}


class Shape(NamedTuple):
    """A shape of a picture, in the box (x +- extent, y +- extent)."""

    shape: str
    colour: str
    size: str
    extent: float
    x: float
    y: float


@dataclasses.dataclass(frozen=True)
class Picture:
    """The content of a picture, for every size in pixels."""

    shapes: tuple[Shape, ...]  # one or two
    relation: str | None  # of the first to the second
    gray: float  # of the background in the middle, in [0, 255]
    slope: tuple[float, float]  # its change over the width and over the height

    @property
    def label(self) -> int:
        """The place of the first shape in SHAPES."""
        return SHAPES.index(self.shapes[0].shape)

    @property
    def caption(self) -> str:
        """The caption, such as "a small red circle left of a blue square"; `shape_reader` parses it."""
        first = self.shapes[0]
        caption = f"a {first.size} {first.colour} {first.shape}"
        if self.relation is None:
            return caption
        return f"{caption} {self.relation} a {self.shapes[1].colour} {self.shapes[1].shape}"


def picture(split: str, index: int) -> Picture:
    """The picture at index of a split: a function of these two alone."""
    raw = np.random.Philox(key=_key(split), counter=_BLOCKS * index).random_raw(4 * _BLOCKS)
    draws = iter(((raw >> np.uint64(11)) * 2.0**-53).tolist())  # uniform in [0, 1)
    gray, turn, shade = 255 * (0.2 + 0.6 * next(draws)), 2 * np.pi * next(draws), next(draws)
    steep = 255 * 0.25 * max(2 * shade - 1, 0)  # half of the backgrounds are plain
    slope = (steep * float(np.cos(turn)), steep * float(np.sin(turn)))

    kinds = len(SHAPES) * len(COLOURS)
    first = int(kinds * next(draws))
    second = (first + 1 + int((kinds - 1) * next(draws))) % kinds  # any other
    sizes, extents = [], []
    for _ in range(2):
        size = "small" if next(draws) < 0.5 else "large"
        low, high = _EXTENTS[size]
        sizes.append(size)
        extents.append(low + (high - low) * next(draws))
    two = next(draws) < 0.5
    if not two:
        relation, places = None, [(_inside(next(draws), extents[0]), _inside(next(draws), extents[0]))]
    else:
        (axis, sign), relation = list(RELATIONS.items())[int(4 * next(draws))]
        along, across = _apart(extents[::-sign], next(draws), next(draws), next(draws), next(draws), next(draws))
        places = list(zip(*((along, across) if axis == "x" else (across, along)), strict=True))[::-sign]
    shapes = tuple(
        Shape(SHAPES[kind % 3], list(COLOURS)[kind // 3], size, extent, *place)
        for kind, size, extent, place in zip((first, second), sizes, extents, places, strict=False)
    )
    return Picture(shapes, relation, gray, slope)


@functools.cache
def _key(split: str) -> np.ndarray:
    return np.random.SeedSequence(SPLITS[split]).generate_state(2, np.uint64)


def _inside(draw: float, extent: float) -> float:
    """A coordinate of the centre of a shape that keeps its distance from the edge."""
    return _MARGIN + extent + draw * (1 - 2 * (_MARGIN + extent))


def _apart(extents: list[float], *draws: float) -> tuple[list[float], list[float]]:
    """Coordinates (along, across) of two shapes: on the axis the first comes first, across it they are nearer."""
    near, far = sorted(draws[:2])
    slack = 1 - 2 * (_MARGIN + sum(extents)) - _GAP
    along = [_MARGIN + extents[0] + near * slack, 1 - _MARGIN - extents[1] - (1 - far) * slack]
    middle, spread = _inside(draws[2], max(extents)), 0.5 * (along[1] - along[0])
    across = []
    for draw, extent in zip(draws[3:], extents, strict=True):
        across.append(min(max(middle + (draw - 0.5) * spread, _MARGIN + extent), 1 - _MARGIN - extent))
    return along, across


def covers(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Whether the shape in the box [-1, 1]^2 covers the points (u, v); v grows downwards."""
    if shape == "circle":
        return u**2 + v**2 <= 1
    if shape == "square":
        return np.maximum(abs(u), abs(v)) <= 0.9
    return (abs(v) <= 1) & (abs(u) <= (v + 1) / 2)  # its top in the middle of the box's upper side


def draw(picture: Picture, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The picture, anti-aliased, uint8 [size, size, 3], and its semantic map, uint8 [size, size], of pixel centres."""
    centres = (np.arange(size) + 0.5) / size
    ramp = picture.gray + picture.slope[0] * (centres - 0.5) + picture.slope[1] * (centres[:, None] - 0.5)
    image, classes = np.repeat(ramp[..., None], 3, axis=2), np.zeros((size, size), np.uint8)
    for shape in picture.shapes:
        columns, rows = (
            (max(int((c - shape.extent) * size), 0), int((c + shape.extent) * size) + 1) for c in (shape.x, shape.y)
        )
        box = slice(*rows), slice(*columns)  # all that it may touch
        share = coverage(shape.shape, columns, rows, size, shape.x, shape.y, shape.extent)[..., None]
        image[box] += share * (np.array(COLOURS[shape.colour]) - image[box])
        u, v = (centres[box[1]] - shape.x) / shape.extent, (centres[box[0]] - shape.y) / shape.extent
        classes[box][covers(shape.shape, u, v[:, None])] = SHAPES.index(shape.shape) + 1
    return np.rint(image).astype(np.uint8), classes


def coverage(
    shape: str, columns: tuple[int, int], rows: tuple[int, int], size: int, x: float, y: float, extent: float
) -> np.ndarray:
    """The fraction of each pixel that a shape in the box (x +- extent, y +- extent) covers, [rows, columns].

    columns and rows are (first, last + 1) in a picture of width size; x, y and extent are in parts of its side.
    """
    u, v = (
        ((np.arange(_GRID * start, _GRID * stop) + 0.5) / (_GRID * size) - c) / extent
        for (start, stop), c in ((columns, x), (rows, y))
    )
    points = covers(shape, u, v[:, None])
    return points.reshape(rows[1] - rows[0], _GRID, columns[1] - columns[0], _GRID).mean((1, 3))
