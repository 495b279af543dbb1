"""From batches of images to their features: computed on the devices, handed to the host batch by batch."""

from collections.abc import Callable, Iterable, Iterator, Mapping

import jax
import numpy as np
from jax import Array
from jax.sharding import Sharding

from diffusion_jax.errors import UserError


def extract(
    apply: Callable[[Array], Mapping[str, Array]],
    batches: Iterable[np.ndarray],
    *,
    sharding: Sharding | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """The features of each batch of images, by name, in the images' order: apply [B, ...] -> {name: [B, ...]}.

    `apply` must treat each image by itself, as a jitted `InceptionV3` closed over its params does. Later batches are
    padded to the size of the first, which is rounded up to a multiple of the sharding's devices, and the padding's
    features dropped: one program runs them all, and neither batch size nor devices change a result but by rounding.
    The next batch is under way on the devices while a caller works on one. Raises UserError for a larger batch after
    the first, and for an empty one. Of one process: `sharding` is over devices that it can address.
    """
    size, waiting = 0, None
    for images in batches:
        if not len(images) or (size and len(images) > size):
            raise UserError(f"batches of images hold 1 to {size or 'any number of'} images; got {len(images)}")
        if not size:
            parts = 1 if sharding is None else _parts(sharding, images.ndim)
            size = -(-len(images) // parts) * parts
        padding = [(0, size - len(images))] + [(0, 0)] * (images.ndim - 1)
        coming = len(images), apply(jax.device_put(np.pad(images, padding), sharding))
        if waiting:
            yield _fetched(*waiting)
        waiting = coming
    if waiting:
        yield _fetched(*waiting)


def _parts(sharding: Sharding, rank: int) -> int:
    """Into how many the first axis is split."""
    devices = len(sharding.device_set)
    return devices // sharding.shard_shape((devices,) + (1,) * (rank - 1))[0]


def _fetched(count: int, features: Mapping[str, Array]) -> dict[str, np.ndarray]:
    return {name: np.asarray(value)[:count] for name, value in features.items()}
