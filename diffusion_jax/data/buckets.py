"""Buckets of images by aspect ratio: the sizes that training batches have, and the size of each image.

All sizes have about the same area, so that each image is scaled to cover the size nearest to its own shape and hardly
anything of it is cropped (NovelAI's aspect ratio bucketing; SDXL, arXiv:2307.01952, section 2.3).
"""

import dataclasses
import functools
import hashlib

import numpy as np

LONGEST = 2
"""The most that one side of a size is times the other, that of `data.shape` aside."""


@dataclasses.dataclass(frozen=True, eq=False)
class Buckets:
    """The sizes of batches, and the bucket of each image of a source; K buckets, N images."""

    sizes: tuple[tuple[int, int], ...]  # height and width in each of the K buckets
    numbers: np.ndarray  # int16 [N]: the bucket of each image, in [0, K)
    least_kept: float = 1.0  # the least share of an image that its size leaves uncropped

    @functools.cached_property
    def counts(self) -> tuple[int, ...]:
        """The number of images in each bucket."""
        return tuple(np.bincount(self.numbers, minlength=len(self.sizes)).tolist())

    @functools.cached_property
    def digest(self) -> str:
        """A hash of the sizes and of the bucket of each image."""
        content = hashlib.sha256(repr(self.sizes).encode())
        content.update(self.numbers.astype("<i2").tobytes())
        return content.hexdigest()[:16]

    def sentence(self) -> str:
        """The sizes, those of the most images first, with their numbers of images."""
        by_count = sorted(zip(self.counts, self.sizes, strict=True), key=lambda each: -each[0])
        listed = ", ".join(f"{height} x {width} ({count:,})" for count, (height, width) in by_count)
        kept = f", at least {self.least_kept:.0%} of each picture" if self.least_kept < 0.995 else ""
        return f"to {len(self.sizes)} size{'s' if len(self.sizes) > 1 else ''} by shape: {listed}{kept}"


def bucket_sizes(height: int, width: int, unit: int) -> tuple[tuple[int, int], ...]:
    """The sizes (height, width) of at most the area of height x width, in the order of their heights.

    Their sides are multiples of unit, as height and width have to be, and neither side of a size can be a unit longer
    within the area. One side is at most LONGEST times the other. height x width itself is among them.
    """
    area = height * width // unit**2
    found = []
    for h in range(1, area + 1):
        w = area // h
        longest = area // w == h  # no height above h has room for this width
        if longest and (max(h, w) <= LONGEST * min(h, w) or (h * unit, w * unit) == (height, width)):
            found.append((h * unit, w * unit))
    return tuple(found)


def bucketed(ratios: np.ndarray, sizes: tuple[tuple[int, int], ...], batch_size: int) -> Buckets:
    """The bucket of each image, from the ratios of its height to its width, float [N], N > 0.

    An image goes to the size whose ratio is nearest, both as logarithms. A size with fewer images than a batch is left
    out, so that no batch has an image twice, and its images go to the nearest of those that stay. Where none has as
    many, the size of the most images takes all.
    """
    shapes = np.log(np.asarray([height / width for height, width in sizes]))
    logs = np.log(ratios)
    counts = np.bincount(_nearest(logs, shapes), minlength=len(sizes))
    stay = np.flatnonzero(counts >= batch_size)
    if not len(stay):
        stay = np.asarray([np.argmax(counts)])
    numbers = _nearest(logs, shapes[stay])
    # An image that covers a size loses the factor between the two ratios.
    least_kept = float(np.exp(-np.abs(logs - shapes[stay][numbers]).max()))
    return Buckets(tuple(sizes[i] for i in stay), numbers, least_kept)


def _nearest(values: np.ndarray, among: np.ndarray) -> np.ndarray:
    """The place of the nearest of among [K], rising, for each of values [N]: int16 [N]; the first of two as near."""
    between = (among[:-1] + among[1:]) / 2
    return np.searchsorted(between, values, side="left").astype(np.int16)
