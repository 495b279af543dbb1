"""Pictures of coloured shapes with true captions and semantic maps, drawn from numbers; and a reader of such pictures.

A picture shows one or two shapes, small or large, that don't touch, on a gray background, plain or softly shaded. Only
shapes have a hue, so that a colour's share of a pixel is a projection, and what a generated picture shows can be said
from its pixels. Places are in parts of the side from the top left corner.
"""

import dataclasses
import functools
import re
from typing import NamedTuple

import numpy as np

from diffusion_jax.errors import UserError

SHAPES = ("circle", "square", "triangle")  # a semantic map has 1, 2, 3 for them and 0 for the background
COLOURS = {
    "red": (225, 45, 45),
    "yellow": (235, 205, 40),
    "green": (40, 170, 60),
    "cyan": (40, 195, 205),
    "blue": (45, 75, 225),
    "purple": (180, 45, 205),
}
SPLITS = {"train": 0, "test": 1}  # name: what its pictures are drawn with

_BLOCKS = 5  # of four Philox numbers, that each picture owns
_EXTENTS = {"small": (0.11, 0.13), "large": (0.18, 0.21)}  # half of the side of the box that the shape lies in
_MARGIN, _GAP = 0.03, 0.08  # between a shape and the edge, and between the boxes of two
_GRID = 4  # points a side in each pixel, of which the pixel's colour is the mean
_RELATIONS = {("x", -1): "left of", ("x", 1): "right of", ("y", -1): "above", ("y", 1): "below"}

_LEAST_AREA = 0.008  # of the picture, a third of the smallest shape: less than that is a speck
_LEAST_OVERLAP = 0.7  # of a region with the shape that it is taken for
_AREAS = {"circle": np.pi, "square": 3.24, "triangle": 2.0}  # in units of extent^2, of what `covers` draws
_CAPTION = re.compile(
    rf"a (?:small |large )?({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})"
    rf"(?: ({'|'.join(_RELATIONS.values())}) a (?:small |large )?({'|'.join(COLOURS)}) ({'|'.join(SHAPES)}))?"
)


class Shape(NamedTuple):
    """A shape that was drawn, in the box (x +- extent, y +- extent)."""

    shape: str
    colour: str
    size: str
    extent: float
    x: float
    y: float


@dataclasses.dataclass(frozen=True)
class Picture:
    """What a picture shows, whatever its size in pixels."""

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
        """What `matches` and `related` read."""
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
        (axis, sign), relation = list(_RELATIONS.items())[int(4 * next(draws))]
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
    """A coordinate for a shape that keeps clear of the edge."""
    return _MARGIN + extent + draw * (1 - 2 * (_MARGIN + extent))


def _apart(extents: list[float], *draws: float) -> tuple[list[float], list[float]]:
    """Coordinates of two shapes along the axis on which the first comes first, and across it, where they are nearer."""
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
        share = _share(shape.shape, columns, rows, size, shape.x, shape.y, shape.extent)[..., None]
        image[box] += share * (np.array(COLOURS[shape.colour]) - image[box])
        u, v = (centres[box[1]] - shape.x) / shape.extent, (centres[box[0]] - shape.y) / shape.extent
        classes[box][covers(shape.shape, u, v[:, None])] = SHAPES.index(shape.shape) + 1
    return np.rint(image).astype(np.uint8), classes


def _share(
    shape: str, columns: tuple[int, int], rows: tuple[int, int], size: int, x: float, y: float, extent: float
) -> np.ndarray:
    """How much of each pixel in these columns and rows of size the shape covers, [rows, columns]."""
    u, v = (
        ((np.arange(_GRID * start, _GRID * stop) + 0.5) / (_GRID * size) - c) / extent
        for (start, stop), c in ((columns, x), (rows, y))
    )
    points = covers(shape, u, v[:, None])
    return points.reshape(rows[1] - rows[0], _GRID, columns[1] - columns[0], _GRID).mean((1, 3))


class Seen(NamedTuple):
    """A shape that was read from pixels."""

    shape: str | None  # None: it is like none of SHAPES
    colour: str
    centre: tuple[float, float]  # x and y of its box, in parts of the picture's width


def read_picture(image: np.ndarray) -> list[Seen]:
    """The coloured shapes in image, uint8 [H, W, 3], from its pixels alone.

    A pixel has the colour whose hue is nearest, and of it a share, the length of its projection on that colour. A
    region with more than half is taken for the shape whose drawing, of the same area and centre, overlaps it best.
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
    """What is seen, and the pixels of each, bool [H, W]."""
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

    Sizes and the relation are not looked at. Raises UserError for a caption that `Picture.caption` would not write.
    """
    first, _, second = _parsed(caption)
    named = [first] if second is None else [first, second]
    return sorted(named) == sorted((seen.shape or "", seen.colour) for seen in read_picture(image))


def related(image: np.ndarray, caption: str) -> bool:
    """Whether image `matches` caption, and its shapes, if two, lie as caption says: further apart so than across."""
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
    """How one lies to other, along the axis on which they are further apart."""
    dx, dy = one[0] - other[0], one[1] - other[1]
    if abs(dx) > abs(dy):
        return _RELATIONS["x", 1 if dx > 0 else -1]
    return _RELATIONS["y", 1 if dy > 0 else -1]


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
        drawn = _blurred(_share(shape, (0, width), (0, height), width, mean_x, y, extent))
        fits.append((np.minimum(drawn, soft).sum() / np.maximum(drawn, soft).sum(), shape, (mean_x, y)))
    overlap, shape, centre = max(fits)
    return (shape if overlap >= _LEAST_OVERLAP else None), centre


def _blurred(weight: np.ndarray) -> np.ndarray:
    """weight under the filter (1, 2, 1) / 4 along both axes: JPEG's soft colours then cost a shape little."""
    weight = np.pad(weight, 2)
    weight = (weight[:-2] + 2 * weight[1:-1] + weight[2:]) / 4
    return (weight[:, :-2] + 2 * weight[:, 1:-1] + weight[:, 2:]) / 4
