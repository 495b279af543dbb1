"""A picture of the samples that are nearest to training images, each beside these images."""

import functools

import numpy as np

from diffusion_jax.evals.sample_metrics import NearestNeighbors
from diffusion_jax.report import pictures
from diffusion_jax.runs.evaluate.measured_samples import SampleSource
from diffusion_jax.runs.evaluate.real_images import RealImages
from diffusion_jax.train.interruptible import interruptible


def png(nearest: NearestNeighbors, sample_source: SampleSource, real: RealImages) -> bytes:
    """A PNG: each row is a sample with its ratio of distances, then its nearest real images, nearest first.

    The samples are drawn again, since sample i depends on seed i and its conditions alone.
    """
    drawn = _draw(nearest.samples, sample_source)
    images = _images(nearest.images.ravel(), real)
    images = images.reshape(*nearest.images.shape, *images.shape[1:])
    seeds = sample_source.seeds
    rows = [f"seed {seeds[i]}, ratio {ratio:.2f}" for i, ratio in zip(nearest.samples, nearest.ratio, strict=True)]
    columns = ["sample", *(f"nearest {k + 1}" for k in range(images.shape[1]))]
    picture = np.concatenate([drawn[:, None], images], axis=1)
    return pictures.encode_png(pictures.labelled_grid(picture, rows=rows, columns=columns))


def _draw(places: np.ndarray, sample_source: SampleSource) -> np.ndarray:
    """Pictures uint8 [n, H, W, C] of the samples with indices places [n]."""
    size, seeds = sample_source.batch_size, sample_source.seeds
    conditions: dict[int, dict[str, np.ndarray]] = {}
    for i, batch in enumerate(sample_source.batches(0)):
        for place in places[(places // size) == i]:
            conditions[int(place)] = {name: a[place % size] for name, a in batch.cond.items()}
    samples = []
    for start in range(0, len(places), size):
        take = places[np.arange(start, start + size).clip(max=len(places) - 1)]
        cond = {name: np.stack([conditions[int(i)][name] for i in take]) for name in conditions[int(take[0])]}
        samples.append(interruptible(functools.partial(_on_host, sample_source, seeds[take], cond)))
    kind = sample_source.kind
    return kind.tiles(kind.from_model(np.concatenate(samples)[: len(places)]))


def _on_host(sample_source: SampleSource, seeds: np.ndarray, cond: dict[str, np.ndarray]) -> np.ndarray:
    return np.asarray(sample_source.draw(seeds, cond))


def _images(places: np.ndarray, real: RealImages) -> np.ndarray:
    """Pictures uint8 [n, H, W, C] of the real images with indices places [n]."""
    found: dict[int, np.ndarray] = {}
    first = 0
    for take, examples in real.batches():
        for place in np.unique(places[(places >= first) & (places < first + take)]):
            found[int(place)] = examples["x"][place - first]
        first += take
    return real.kind.tiles(real.kind.from_model(np.stack([found[int(place)] for place in places])))
