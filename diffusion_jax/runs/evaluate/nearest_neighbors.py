"""A picture of the samples that lie nearest to training images, each beside these."""

import functools

import numpy as np

from diffusion_jax.evals.sample_metrics import NearestNeighbors
from diffusion_jax.report import pictures
from diffusion_jax.runs.evaluate.measured_samples import SampleSource
from diffusion_jax.runs.evaluate.real_images import RealImages
from diffusion_jax.train.interruptible import interruptible


def png(found: NearestNeighbors, sample_source: SampleSource, seeds: np.ndarray, size: int, real: RealImages) -> bytes:
    """Rows of a sample, with its ratio of distances, and its nearest real images, nearest first.

    The samples are drawn again: sample i depends on seed i and what it is told alone.
    """
    drawn = _draw(found.samples, sample_source, seeds, size)
    near = _images(found.images.ravel(), real)
    near = near.reshape(*found.images.shape, *near.shape[1:])
    rows = [f"seed {seeds[i]}, ratio {ratio:.2f}" for i, ratio in zip(found.samples, found.ratio, strict=True)]
    columns = ["sample", *(f"nearest {k + 1}" for k in range(near.shape[1]))]
    picture = np.concatenate([drawn[:, None], near], axis=1)
    return pictures.encode_png(pictures.labelled_grid(picture, rows=rows, columns=columns))


def _draw(places: np.ndarray, sample_source: SampleSource, seeds: np.ndarray, size: int) -> np.ndarray:
    """Pictures uint8 [n, H, W, C]."""
    told: dict[int, dict[str, np.ndarray]] = {}
    for i, batch in enumerate(sample_source.told(0)):
        for place in places[(places // size) == i]:
            told[int(place)] = {name: a[place % size] for name, a in batch.cond.items()}
    samples = []
    for start in range(0, len(places), size):
        take = places[np.arange(start, start + size).clip(max=len(places) - 1)]
        cond = {name: np.stack([told[int(i)][name] for i in take]) for name in told[int(take[0])]}
        samples.append(interruptible(functools.partial(_drawn, sample_source, seeds[take], cond)))
    kind = sample_source.kind
    return kind.tiles(kind.from_model(np.concatenate(samples)[: len(places)]))


def _drawn(sample_source: SampleSource, seeds: np.ndarray, cond: dict[str, np.ndarray]) -> np.ndarray:
    return np.asarray(sample_source.draw(seeds, cond))


def _images(places: np.ndarray, real: RealImages) -> np.ndarray:
    """Pictures uint8 [n, H, W, C] of the real images at these places of their order."""
    found: dict[int, np.ndarray] = {}
    first = 0
    for take, examples in real.batches():
        for place in np.unique(places[(places >= first) & (places < first + take)]):
            found[int(place)] = examples["x"][place - first]
        first += take
    return real.kind.tiles(real.kind.from_model(np.stack([found[int(place)] for place in places])))
