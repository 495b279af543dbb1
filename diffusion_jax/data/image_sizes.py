"""The sizes of all images of a source, from their headers."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from diffusion_jax.data.classes import Renumbered
from diffusion_jax.data.description import Header, header
from diffusion_jax.data.example import Source, blocks_of, image_of
from diffusion_jax.data.storage import StorageError
from diffusion_jax.errors import UserError

_HEADS = (2**12, 2**17)  # bytes in which a header is looked for: most files' is in the first, cameras' in the second

_AT_ONCE = 16  # images that are read at once
_CHUNK = 4096  # images that are handed to the threads together


def image_ratios(source: Source, unknown: float) -> np.ndarray:
    """The ratio of height to width of each image, upright, float64 [N]; unknown for one that cannot be read.

    Raises StorageError for a disk or a bucket that fails, and UserError for a source that cannot read single images.
    """
    if blocks_of(source) is not None:
        raise UserError(
            "images in buckets are read one by one, and this source reads whole blocks of them; use tar shards "
            "(webdataset:), array_record: or a folder"
        )

    def ratio(index: int) -> float:
        head = image_header(source, index)
        return head.height / head.width if head else unknown

    with ThreadPoolExecutor(_AT_ONCE) as pool:

        def each() -> Iterator[float]:
            for start in range(0, len(source), _CHUNK):
                yield from pool.map(ratio, range(start, min(start + _CHUNK, len(source))))

        return np.fromiter(each(), np.float64, len(source))


def image_header(source: Source, index: int) -> Header | None:
    """The header of one image, of whose file no more is read than it takes, where the source has `read_head`."""
    inner = source.source if isinstance(source, Renumbered) else source
    read_head = getattr(inner, "read_head", None)
    try:
        if read_head is not None:
            for most in _HEADS:
                if (found := header(read_head(index, most))) is not None:
                    return found
        return header(image_of(inner[index]))
    except StorageError:
        raise
    except UserError:  # training names it
        return None
