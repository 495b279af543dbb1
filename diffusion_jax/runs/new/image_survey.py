"""A survey of images, and the size and network that suit them: sizes, colours, transparency."""

import collections
import dataclasses
import io
import statistics
from collections.abc import Iterator, Mapping
from typing import ClassVar, NamedTuple

import numpy as np
from PIL import Image

from diffusion_jax.data import transforms
from diffusion_jax.data.example import Example, image_of
from diffusion_jax.runs.new.fitting import Fit, Machine, UNet, batch_within, first_result, in_patches
from diffusion_jax.runs.new.survey import LabelledData, Survey, counted, inspect_examples

_MOST = {"cpu": 64 * 64, "other": 128 * 128}
"""The most pixels of an image; with more, a first run takes hours."""

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


class _ImageTraits(NamedTuple):
    """What was seen of one image."""

    size: tuple[int, int]  # height, width, upright
    mode: str  # kind of pixels in the file
    colour: bool
    transparent: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageSurvey(Survey):
    """The contents of a data set of images."""

    noun: ClassVar[str] = "images"

    sizes: Mapping[tuple[int, int], int]  # {(height, width), upright: images}, of those looked at
    modes: Mapping[str, int]  # {kind of pixels in the file: images}
    colour: bool  # whether a pixel is not gray
    transparent: bool  # whether a pixel is not opaque
    pictured: tuple[np.ndarray, ...]  # uint8 [h, w, 4] as they are

    @classmethod
    def of(cls, opened: LabelledData) -> "ImageSurvey":
        """The survey of images; raises UserError where none can be read."""
        looked = inspect_examples(opened, cls.noun, _traits)
        return cls(
            **looked.common,
            sizes=dict(collections.Counter(seen.size for seen in looked.found).most_common()),
            modes=dict(collections.Counter(seen.mode for seen in looked.found).most_common()),
            colour=any(seen.colour for seen in looked.found),
            transparent=any(seen.transparent for seen in looked.found),
            pictured=tuple(_decoded(example) for example in looked.spread(opened.data)),
        )

    def rows(self) -> Iterator[tuple[str, str]]:
        """As `Survey`: sizes, and the kinds of pixels in the files."""
        yield "sizes", counted({f"{h} x {w}": n for (h, w), n in self.sizes.items()})
        yield "pixels", counted(self.modes)

    def fit(self, on: Machine) -> Fit:
        """As `Survey`: images are scaled down where a first run would take hours."""
        area, aspect, why = self._wanted(_MOST["cpu" if on.small else "other"])
        if on.small:
            net, batch = (
                (UNet(1, 32, (1, 2), 1), 64)
                if area <= 256
                else (UNet(2, 48, (1, 2), 1), 32)
                if area <= 2304
                else (UNet(2, 48, (1, 2, 2), 1), 16)
            )
            steps = 1000
        else:
            net = UNet(1, 64, (1, 2, 2), 2) if area <= 2304 else UNet(2, 128, (1, 2, 2), 2)
            batch, steps = 64 * on.devices, 20_000
        height, width = self._sides(area, aspect, net.factor)
        batch = batch_within(batch, self.count, on)
        channels = 4 if self.transparent else 3 if self.colour else 1
        kind = {1: "gray", 3: "RGB", 4: "RGB with alpha"}[channels]
        done = (
            "as they are" if list(self.sizes) == [(height, width)] else "scaled to cover that and cropped in the middle"
        )
        return Fit(
            source=self.source,
            shape=(height, width, channels),
            axes="height, width, channels",
            net=net,
            batch_size=batch,
            steps=steps,
            flips=True,
            corrupt_limit=self.corrupt_limit(),
            reasons=(
                f"{height} x {width} pixels: {why}; images are {done}",
                f"{kind}: {self._colours()}",
                f"{in_patches(net, on)}; both sides are divisible by {net.factor}",
                *first_result(self.noun, self.count, batch, steps),
            ),
        )

    def tiles(self, fit: Fit) -> np.ndarray:
        """As `Survey`: scaled, cropped and in the channels that are trained on."""
        height, width, channels = fit.shape
        mode = {1: "L", 3: "RGB", 4: "RGBA"}[channels]
        images = [transforms.to_pixels(Image.fromarray(image), mode) for image in self.pictured]
        return np.stack([transforms.resize_crop(image, height, width) for image in images])

    def _wanted(self, most: int) -> tuple[float, float, str]:
        """(pixels of an image, height / width, the reason)."""
        sizes = [size for size, count in self.sizes.items() for _ in range(count)]
        aspects = [h / w for h, w in sizes]
        same_shape = max(aspects) / min(aspects) < 1.03
        aspect = statistics.median(aspects) if same_shape else 1.0
        area = statistics.median(h * w if same_shape else min(h, w) ** 2 for h, w in sizes)
        if len(self.sizes) == 1:
            why = f"all images are {sizes[0][0]} x {sizes[0][1]}"
        elif same_shape:
            why = f"{len(self.sizes)} sizes of one shape, and their median"
        else:
            why = f"{len(self.sizes)} sizes of several shapes, so a square, of the median shorter side"
        if area > most:
            why += f", scaled down to about {most:,} pixels, for a first run within minutes or hours"
        return min(area, most), aspect, why

    def _sides(self, area: float, aspect: float, factor: int) -> tuple[int, int]:
        """Height and width, divisible by factor."""
        if len(self.sizes) == 1:
            ((h, w),) = self.sizes
            if h * w <= area and h % factor == 0 and w % factor == 0:
                return h, w
        width = (area / aspect) ** 0.5
        return tuple(max(int(side / factor + 0.01), 1) * factor for side in (width * aspect, width))  # type: ignore[return-value]

    def _colours(self) -> str:
        kinds = " and ".join(self.modes)
        if self.transparent:
            return f"files are {kinds}, and some pixels are transparent"
        text = f"files are {kinds}, and {'some pixels have colour' if self.colour else 'no pixel has colour'}"
        return text + ("; 16 bits become 8" if any("16 bits" in kind for kind in self.modes) else "")


def _traits(example: Example) -> _ImageTraits:
    image = _decoded(example)
    with Image.open(io.BytesIO(image_of(example)), formats=transforms.FORMATS) as file:
        mode = _MODES.get(file.mode, file.mode)
    height, width = image.shape[:2]
    colour = bool((image[..., :1] != image[..., 1:3]).any())
    return _ImageTraits((height, width), mode, colour, bool((image[..., 3] < 255).any()))


def _decoded(example: Example) -> np.ndarray:
    """uint8 [h, w, 4]."""
    return transforms.decode(image_of(example), channels=4, name=example["name"])
