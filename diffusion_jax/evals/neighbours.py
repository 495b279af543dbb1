"""Nearest neighbours in feature space: improved precision and recall, and whether samples repeat training images.

Sets of features are [N, D], and distances Euclidean in float64. Memory holds two blocks of rows and one block of
distances at once, whatever the sizes of the sets.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from diffusion_jax.errors import UserError
from diffusion_jax.evals.feature_sets import as_feature_sets

BLOCK = 2048
ROUNDING = 1e-13
"""The rounding error of |x|^2 - 2 x.y + |y|^2 in float64, relative to |x|^2 + |y|^2."""


@dataclass(frozen=True)
class Neighbours:
    """The nearest members of a set to each query, the nearest first."""

    distance: np.ndarray  # [N, k] float64
    index: np.ndarray  # [N, k] int64, into the set


class PrecisionRecall(NamedTuple):
    """Improved precision and recall, fractions in [0, 1]."""

    precision: float
    recall: float


@dataclass(frozen=True)
class Memorisation:
    """How near samples are to training images, relative to how near the training images are to each other."""

    ratio: np.ndarray  # [N] distance to the nearest training image over that image's distance to its nearest other
    neighbours: Neighbours  # of the samples among the training images
    copied: float  # the fraction of samples with ratio below the threshold


def nearest(queries: ArrayLike, points: ArrayLike, k: int = 1, *, block: int = BLOCK) -> Neighbours:
    """The k nearest of points [M, D] to each of queries [N, D]. A query that is itself a point is its nearest.

    They are found by |x|^2 - 2 x.y + |y|^2, and their distances are then computed from the differences, so that the
    distance of a copy is 0. Raises UserError unless 1 <= k <= M.
    """
    x, y = as_feature_sets(queries, points)
    if not 1 <= k <= len(y):
        raise UserError(f"of {len(y)} images there are 1 to {len(y)} nearest ones; got {k}")
    distance, index = np.empty((len(x), k)), np.empty((len(x), k), np.int64)
    centre = y.mean(axis=0, dtype=np.float64)
    for i, rows in _blocks(x, centre, block):
        best, where = np.full((len(rows), 0), np.inf), np.empty((len(rows), 0), np.int64)
        for j, columns in _blocks(y, centre, block):
            square, _ = _squares(rows, columns)
            best = np.concatenate([best, square], axis=1)
            here = np.broadcast_to(np.arange(j, j + len(columns)), square.shape)
            where = np.concatenate([where, here], axis=1)
            if best.shape[1] > k:
                kept = np.argpartition(best, k - 1, axis=1)[:, :k]
                best, where = np.take_along_axis(best, kept, 1), np.take_along_axis(where, kept, 1)
        for n, found in enumerate(where):
            exact = np.linalg.norm(np.asarray(y[found], np.float64) - np.asarray(x[i + n], np.float64), axis=1)  # [k]
            order = np.lexsort((found, exact))
            distance[i + n], index[i + n] = exact[order], found[order]
    return Neighbours(distance, index)


def precision_recall(
    samples: ArrayLike, real: ArrayLike, neighbours: int = 3, *, block: int = BLOCK
) -> PrecisionRecall:
    """Improved precision and recall of samples [N, D] and real images [M, D]: eqs. 1 and 2 of arXiv:1904.06991.

    Precision is the fraction of samples in the ball of some real image, whose radius is the distance to its
    `neighbours`-th neighbour among the real images. Recall exchanges the roles. Raises UserError where a set has too
    few images.
    """
    a, b = as_feature_sets(samples, real)
    if not 1 <= neighbours < min(len(a), len(b)):
        raise UserError(
            f"precision and recall need more images than neighbours: {neighbours} of {len(a)} samples and "
            f"{len(b)} real images"
        )
    return PrecisionRecall(
        _covered(a, b, nearest(b, b, neighbours + 1, block=block).distance[:, -1], block),
        _covered(b, a, nearest(a, a, neighbours + 1, block=block).distance[:, -1], block),
    )


def memorisation(
    samples: ArrayLike, training: ArrayLike, *, k: int = 1, threshold: float = 0.5, block: int = BLOCK
) -> Memorisation:
    """How far samples [N, D] repeat training images [M, D]: by the ratio of two distances for each sample.

    The ratio is d(sample, x_1) / d(x_1, the other training image nearest to x_1), where x_1 is the training image
    nearest to the sample. It is around 1 for a new image of the same distribution and 0 for a copy. Where x_1 occurs
    twice in the training set, it is infinite for all but copies. A ratio below threshold counts as a copy. Raises
    UserError for fewer than 2 training images.
    """
    found = nearest(samples, training, k, block=block)
    _, y = as_feature_sets(samples, training)
    if len(y) < 2:
        raise UserError(f"memorisation compares with distances within the training set; it has {len(y)} image")
    first, place = np.unique(found.index[:, 0], return_inverse=True)
    own = nearest(y[first], y, 2, block=block).distance[place, 1]  # [N]
    near = found.distance[:, 0]
    ratio = np.where(near == 0, 0.0, np.divide(near, own, out=np.full_like(near, np.inf), where=own > 0))
    return Memorisation(ratio, found, float((ratio < threshold).mean()))


def _covered(x: np.ndarray, y: np.ndarray, radius: np.ndarray, block: int) -> float:
    """The fraction of x [N, D] within radius [M] of some y [M, D]; a copy of y counts even for radius 0."""
    inside = np.zeros(len(x), bool)
    centre = y.mean(axis=0, dtype=np.float64)
    for i, rows in _blocks(x, centre, block):
        for j, columns in _blocks(y, centre, block):
            square, size = _squares(rows, columns)
            inside[i : i + block] |= (square <= radius[j : j + block] ** 2 + ROUNDING * size).any(axis=1)
    return float(inside.mean())


def _blocks(x: np.ndarray, centre: np.ndarray, block: int) -> Iterator[tuple[int, np.ndarray]]:
    """Blocks of rows in float64, minus the centre: distances are the same, and round less near 0."""
    for i in range(0, len(x), block):
        yield i, x[i : i + block] - centre


def _squares(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Squared distances of x [n, D] and y [m, D], and |x|^2 + |y|^2: both [n, m]."""
    size = np.sum(x * x, axis=1)[:, None] + np.sum(y * y, axis=1)
    return np.maximum(size - 2 * x @ y.T, 0.0), size
