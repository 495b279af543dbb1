"""Sentences that describe a data set and the processing of its images."""

import collections
import io
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from PIL import Image

from diffusion_jax.data import transforms
from diffusion_jax.data.classes import Renumbered, shown
from diffusion_jax.data.example import Example, Source, blocks_of, image_of
from diffusion_jax.data.labelled_files import LabelledFiles
from diffusion_jax.data.transforms import FORMATS
from diffusion_jax.errors import UserError

LOOKED_AT = 64
"""The most images whose sizes are read to describe a data set."""

DECIDING = 1024
"""The most images whose sizes are read to decide about `data.shape`."""

_LISTED = 6  # sizes in a message

_BLOCKS = 16  # the most that are read to describe a data set

_AT_ONCE = 16  # examples that are read at once

_TURNED = {5, 6, 7, 8}  # orientations that exchange height and width


class Header(NamedTuple):
    """The header of an image."""

    height: int
    width: int
    colour: bool
    transparent: bool


def examples_of(source: Source, most: int = LOOKED_AT) -> list[Example]:
    """At most `most` examples, spread evenly over the source, without those that cannot be read."""

    def read(place: int) -> Example | None:
        try:
            return source[place]
        except UserError:  # training names it
            return None

    with ThreadPoolExecutor(_AT_ONCE) as pool:  # a bucket takes long to answer
        return [example for example in pool.map(read, places(source, most)) if example is not None]


def places(source: Source, most: int) -> list[int]:
    """At most `most` places in the source, evenly spread, and in at most _BLOCKS blocks where it has such."""
    blocks = blocks_of(source)
    if blocks is None:
        return spread(len(source), most)
    chosen = spread(len(blocks.examples), min(_BLOCKS, most))
    starts = np.cumsum([0, *blocks.examples])
    return [int(starts[i]) + place for i in chosen for place in spread(blocks.examples[i], most // len(chosen))]


def spread(count: int, most: int) -> list[int]:
    """At most `most` numbers in range(count), evenly spread."""
    return [int(place) for place in np.unique(np.linspace(0, count - 1, min(most, count)).round())]


def header(data: bytes) -> Header | None:
    """The header of an encoded image, upright; None where it cannot be read."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            height, width = image.height, image.width
            # Without EXIF here, getexif of a PNG would decode all of it to look behind the pixels.
            if image.info.get("exif") and image.getexif().get(0x0112) in _TURNED:
                height, width = width, height
            gray = image.mode in ("1", "L", "LA", "La", "F") or image.mode.startswith("I")
            return Header(height, width, not gray, image.has_transparency_data)
    except Exception:  # broken data makes Pillow raise nearly anything
        return None


def images(
    source: Source, examples: list[Example], height: int, width: int, channels: int, *, resize: str = "crop"
) -> str:
    """The sizes and colours of the images, from examples, and how they get height x width x channels.

    resize is a name of `transforms.RESIZES`.
    """
    heads = [head for head in (header(image_of(example)) for example in examples) if head is not None]
    count = f"{len(source):,} images"
    if not heads:
        return f"{count}, of which none of {len(examples)} could be read"
    sizes = sorted({(head.height, head.width) for head in heads})
    heights, widths = ([size[axis] for size in sizes] for axis in (0, 1))
    size = f"{_range(heights)} x {_range(widths)}"
    colours = {head.colour for head in heads}
    kind = "gray and RGB" if len(colours) > 1 else "RGB" if True in colours else "gray"
    transparent = any(head.transparent for head in heads)
    kind += " with transparency" if transparent else ""
    looked = "" if len(heads) == len(source) else f" (by the headers of {len(heads)})"
    done = _RESIZING[resize](sizes, height, width)
    if True in colours and channels == 1:
        done.append("colours to gray")
    elif colours == {False} and channels > 1:
        done.append("gray to RGB")
    if transparent and channels < 4:
        done.append("transparency to white")
    return f"{count} of {size} {kind}{looked}: {', '.join(done) or 'as they are'}"


def image_shape(source: Source) -> tuple[int, int, int]:
    """(height, width, channels) of the images of a source: of all, or of DECIDING spread evenly over it.

    The channels are 4 where a pixel is transparent, 3 where an image has colour, else 1, so that nothing is lost.
    Raises UserError that lists the sizes where they differ.
    """
    examples = examples_of(source, DECIDING)
    heads = [(head, example) for example in examples if (head := header(image_of(example))) is not None]
    if not heads:
        raise UserError(f"none of {len(examples)} images can be read, so data.shape cannot be taken from them")
    sizes = collections.Counter((head.height, head.width) for head, _ in heads)
    if len(sizes) > 1:
        listed = [f"{h} x {w} ({count:,})" for (h, w), count in sizes.most_common(_LISTED)]
        more = f" and {len(sizes) - _LISTED:,} more" if len(sizes) > _LISTED else ""
        raise UserError(
            f"the images have {len(sizes):,} sizes: {', '.join(listed)}{more}; set data.shape=(HEIGHT, WIDTH, "
            "CHANNELS), to which they are scaled and cropped in the middle"
        )
    transparent = any(head.transparent and _is_transparent(example) for head, example in heads)
    colour = any(head.colour for head, _ in heads)
    ((height, width),) = sizes
    return height, width, 4 if transparent else 3 if colour else 1


def _is_transparent(example: Example) -> bool:
    """Whether a pixel is not opaque; False for an image that cannot be decoded."""
    try:
        return bool((transforms.decode(image_of(example), channels=4, name=example["name"])[..., 3] < 255).any())
    except UserError:  # a corrupt example in training
        return False


def _range(sides: list[int]) -> str:
    low, high = min(sides), max(sides)
    return str(low) if low == high else f"{low}-{high}"


def _resizing(sizes: list[tuple[int, int]], height: int, width: int) -> list[str]:
    """Phrases for the scaling and cropping of images of these sizes by `transforms.resize_crop`."""
    done = []
    scales = [max(height / h, width / w) for h, w in sizes]
    if any((h, w) != (height, width) for h, w in sizes):
        done.append(f"shorter side to {height}" if height == width else f"scaled to cover {height} x {width}")
        if max(scales) > 1:
            done[0] += f" (up to {max(scales):.3g} times larger)"
    visible = min((height / scale) * (width / scale) / (h * w) for scale, (h, w) in zip(scales, sizes, strict=True))
    if visible < 0.999:
        least = "" if len(sizes) == 1 else "at least "
        done.append(f"centre crop to {height} x {width}, {least}{visible:.0%} of the picture")
    return done


def _padding(sizes: list[tuple[int, int]], height: int, width: int) -> list[str]:
    """Phrases for `transforms.resize_pad`."""
    scales = [min(height / h, width / w) for h, w in sizes]
    if all(size == (height, width) for size in sizes):
        return []
    larger = f" (up to {max(scales):.3g} times larger)" if max(scales) > 1 else ""
    filled = min(h * scale * w * scale / (height * width) for scale, (h, w) in zip(scales, sizes, strict=True))
    least = "" if len(sizes) == 1 else "at least "
    white = f", white around {least}{filled:.0%} of the area" if filled < 0.999 else ""
    return [f"scaled to fit {height} x {width}{larger}{white}"]


def _stretching(sizes: list[tuple[int, int]], height: int, width: int) -> list[str]:
    """Phrases for `transforms.resize_stretch`."""
    if all(size == (height, width) for size in sizes):
        return []
    ratios = [max(height * w / (h * width), h * width / (height * w)) for h, w in sizes]
    apart = f", sides up to {max(ratios):.3g} times out of proportion" if max(ratios) > 1.001 else ""
    return [f"stretched to {height} x {width}{apart}"]


def _in_buckets(sizes: list[tuple[int, int]], height: int, width: int) -> list[str]:
    """Phrases for `transforms.resize_crop` to the sizes of buckets, which `Buckets.sentence` lists."""
    return [f"scaled to cover sizes of the area of {height} x {width}"]


_RESIZING = {"crop": _resizing, "pad": _padding, "stretch": _stretching, "buckets": _in_buckets}


class Missing(NamedTuple):
    """The names of examples that are left out of training, or have no caption."""

    left_out: list[str]  # they are not in the file that lists examples
    empty: list[str]  # whose caption is empty
    looked_at: int  # of the captions
    noun: str = "images"


def missing(source: Source, examples: list[Example]) -> Missing:
    """The missing examples and captions: for a folder of all files, for other sources of the given examples."""
    inner = source.source if isinstance(source, Renumbered) else source
    if isinstance(inner, LabelledFiles):
        named = zip(inner.names, inner.captions or (), strict=inner.captions is not None)
        return Missing(list(inner.left_out), [name for name, text in named if not text.strip()], len(inner), inner.noun)
    empty = [example["name"] for example in examples if not example.get("caption", "-").strip()]
    return Missing([], empty, len(examples))


def missing_sentences(found: Missing) -> list[str]:
    """One sentence for files that are left out, one for empty captions; [] where there are none."""
    sentences = []
    if found.left_out:
        sentences.append(
            f"{len(found.left_out):,} {_counted(found.noun, found.left_out)} left out, of which no caption or row is "
            f"given: {shown(found.left_out)}"
        )
    if found.empty:
        sentences.append(
            f"{len(found.empty):,} of {found.looked_at:,} captions empty, as of no caption: {shown(found.empty)}"
        )
    return sentences


def _counted(noun: str, names: list[str]) -> str:
    return noun.removesuffix("s") if len(names) == 1 else noun
