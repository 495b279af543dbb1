"""A survey of a data set for a first config: sizes, colours, classes, captions, broken files."""

import collections
import dataclasses
import io
from collections.abc import Iterator

import numpy as np
from PIL import Image

from diffusion_jax.data import description, transforms
from diffusion_jax.data.classes import shown
from diffusion_jax.data.example import Example, Source, image_of, modality_of
from diffusion_jax.data.sources import CAPTION, open_source
from diffusion_jax.errors import UserError

LOOKED_AT = 500
"""The most images that are decoded; they are spread evenly over the data."""

PICTURED = 9

_BROKEN = 5  # named, at most

_MODES = {
    "1": "black and white",
    "L": "gray",
    "LA": "gray with alpha",
    "P": "palette",
    "RGB": "RGB",
    "RGBA": "RGB with alpha",
    "I;16": "gray of 16 bits",
    "CMYK": "CMYK",
}


@dataclasses.dataclass(frozen=True)
class Survey:
    """The contents of a data set."""

    source: str  # as data.source names it
    caption: str  # as data.caption
    count: int
    looked_at: int
    sizes: dict[tuple[int, int], int]  # {(height, width), upright: images}, of those looked at
    modes: dict[str, int]  # {kind of pixels in the file: images}
    colour: bool  # whether a pixel is not gray
    transparent: bool  # whether a pixel is not opaque
    classes: dict[str, int]  # {name: images}, of those looked at; {}: none, or one alone
    num_classes: int
    captions: tuple[str, ...]  # some; (): none
    notes: tuple[str, ...]
    broken: tuple[str, ...]  # why each image that cannot be read cannot, of those looked at
    pictured: tuple[np.ndarray, ...]  # uint8 [h, w, 4] as they are, at most PICTURED

    def lines(self) -> Iterator[str]:
        """Yields the lines of a table for the user."""
        looked = "" if self.looked_at == self.count else f", {self.looked_at:,} looked at"
        yield f"images      {self.count:,}{looked}"
        for name, counts in (
            ("sizes", {f"{h} x {w}": n for (h, w), n in self.sizes.items()}),
            ("pixels", self.modes),
            ("classes", self.classes),
        ):
            yield f"{name:12}{_counted(counts)}"
        first = f"; the first: {self.captions[0][:60]!r}" if self.captions else "none"
        yield f"captions    {first if not self.captions else 'for each image' + first}"
        yield f"broken      {len(self.broken) or 'none'}"
        yield from (f"            {reason}" for reason in self.broken[:_BROKEN])
        yield from (f"note        {note}" for note in self.notes)


def survey(source: str, caption: str = CAPTION) -> Survey:
    """Opens a data set, such as folder:PATH, and decodes up to LOOKED_AT of its images.

    Raises UserError where there is no such data, or none of its images can be read.
    """
    data, notes = _opened(source, caption)
    places = description.places(data, LOOKED_AT)
    sizes, modes, labels = (collections.Counter[object]() for _ in range(3))
    colour = transparent = False
    captions: list[str] = []
    broken: list[str] = []
    readable: list[int] = []
    for place in places:
        try:
            example = data[place]
            image = _decoded(example)
        except UserError as error:
            broken.append(str(error))
            continue
        readable.append(place)
        sizes[image.shape[:2]] += 1
        modes[_mode(image_of(example))] += 1
        colour = colour or bool((image[..., :1] != image[..., 1:3]).any())
        transparent = transparent or bool((image[..., 3] < 255).any())
        if "label" in example:
            labels[example["label"]] += 1
        if example.get("caption", "").strip():
            captions.append(example["caption"].strip())
    if not sizes:
        raise UserError(f"{source}: of {len(places)} images none can be read: {broken[0]}")
    count = data.num_classes if labels and data.num_classes else 0
    names = data.class_names or [str(number) for number in range(count)]
    if count < 2:
        count, names = 0, []
    if captions and len(captions) < len(places) - len(broken):
        notes.append(f"{len(places) - len(broken) - len(captions)} captions are empty; they train as no caption")
    return Survey(
        source=source,
        caption=caption,
        count=len(data),
        looked_at=len(places),
        sizes=dict(sizes.most_common()),  # type: ignore[arg-type]
        modes=dict(modes.most_common()),  # type: ignore[arg-type]
        colour=colour,
        transparent=transparent,
        classes={name: labels[number] for number, name in enumerate(names)},
        num_classes=count,
        captions=tuple(captions),
        notes=tuple(notes),
        broken=tuple(broken),
        pictured=tuple(_decoded(data[readable[place]]) for place in description.spread(len(readable), PICTURED)),
    )


def _opened(source: str, caption: str) -> tuple[Source, list[str]]:
    """(the data with labels and captions where they have them, notes on these)."""
    notes: list[str] = []
    data = open_source(source, caption=caption, needs=frozenset({"label"}))
    if modality_of(data) != "image":
        raise UserError(f"new looks at images, and {source} holds others; docs/data.md says how to write its config")
    try:
        both = open_source(source, caption=caption, needs=frozenset({"label", "caption"}))
    except UserError as error:
        if "data.caption" in str(error) or caption != CAPTION:  # there is a table, with other columns
            notes.append(f"no captions: {error}")
        both = data
    if len(both) == 0:
        raise UserError(f"{source} holds no images")
    left = len(data) - len(both)
    if left and len(both) < len(data) / 2:
        notes.append(
            f"{len(both):,} of {len(data):,} images have a caption, too few to train on: captions are not used"
        )
        return data, notes
    if left:
        notes.append(f"{left:,} images without a caption are left out")
    return both, notes


def _decoded(example: Example) -> np.ndarray:
    """uint8 [h, w, 4]."""
    return transforms.decode(image_of(example), channels=4, name=example["name"])


def _mode(data: bytes) -> str:
    with Image.open(io.BytesIO(data), formats=transforms.FORMATS) as image:
        return _MODES.get(image.mode, image.mode)


def _counted(counts: dict[str, int]) -> str:
    if not counts:
        return "none"
    if len(counts) == 1:
        return next(iter(counts))
    return shown([f"{name} ({count:,})" for name, count in counts.items()])
