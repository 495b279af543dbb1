"""Distances between two sets of features, and scores of one set, in float64. N, M are images, D features."""

import warnings
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from diffusion_jax.errors import UserError
from diffusion_jax.evals.feature_sets import as_feature_sets

SEED = 2020
"""The seed of torch-fidelity, which draws the same subsets and the same order with it."""


class Spread(NamedTuple):
    """A score over n subsets of the images: its mean, and its standard deviation with division by n."""

    mean: float
    std: float


def frechet_distance(mean_a: ArrayLike, cov_a: ArrayLike, mean_b: ArrayLike, cov_b: ArrayLike) -> float:
    """|mean_a - mean_b|^2 + tr(cov_a + cov_b - 2 (cov_a cov_b)^1/2), of means [D] and covariances [D, D].

    Eq. 6 of arXiv:1706.08500. The last trace is the sum of the singular values of A^T B, where cov_a = A A^T and
    cov_b = B B^T: it is exact where a covariance has no inverse, and never complex. A covariance without inverse, as of
    n <= D images, gives a warning: the distance is then biased upwards. Raises UserError for statistics of different
    features, for other shapes, and for a matrix that is no covariance.
    """
    mean_a, cov_a, mean_b, cov_b = (np.asarray(x, np.float64) for x in (mean_a, cov_a, mean_b, cov_b))
    if mean_a.shape != mean_b.shape:
        raise UserError(
            f"the two statistics are of different features: {mean_a.shape} and {mean_b.shape}; take both from one "
            "extractor and layer"
        )
    for mean, cov in ((mean_a, cov_a), (mean_b, cov_b)):
        if mean.ndim != 1 or cov.shape != 2 * mean.shape:
            raise UserError(f"statistics are a mean [D] and a covariance [D, D]; got {mean.shape} and {cov.shape}")
    root_a, root_b = _root(cov_a, "first"), _root(cov_b, "second")  # [D, r_a], [D, r_b]
    cross = np.linalg.svd(root_a.T @ root_b, compute_uv=False).sum() if root_a.size and root_b.size else 0.0
    distance = np.sum((mean_a - mean_b) ** 2) + np.trace(cov_a) + np.trace(cov_b) - 2 * cross
    return max(float(distance), 0.0)  # rounding may give equal statistics a negative distance


def kernel_distance(a: ArrayLike, b: ArrayLike, *, subsets: int = 100, size: int = 1000, seed: int = SEED) -> Spread:
    """KID (arXiv:1801.01401, section 4): unbiased MMD^2 with k(x, y) = (x.y / D + 1)^3 over random subsets of each set.

    a is [N, D] and b [M, D]. The unbiased estimate may be negative. torch-fidelity draws the same subsets with the same
    seed. Raises UserError where a set has fewer than `size` images.
    """
    a, b = as_feature_sets(a, b)
    if not 2 <= size <= min(len(a), len(b)):
        raise UserError(
            f"KID takes subsets of 2 or more images of each set, here of {len(a)} and {len(b)}; got size {size}"
        )
    if subsets < 1:
        raise UserError(f"KID takes 1 or more subsets; got {subsets}")
    rng = np.random.RandomState(seed)  # numpy keeps its stream for ever, unlike that of default_rng
    distances = []
    for _ in range(subsets):
        x, y = (s[rng.choice(len(s), size, replace=False)].astype(np.float64) for s in (a, b))  # [size, D]
        distances.append(_unbiased_mmd2(x, y))
    return Spread(float(np.mean(distances)), float(np.std(distances)))


def inception_score(probabilities: ArrayLike, splits: int = 10, *, seed: int | None = SEED) -> Spread:
    """exp(E_x KL(p(y|x) || p(y))) over each split of probabilities [N, classes], where p(y) is the mean of the split.

    Section 4 of arXiv:1606.03498. The images are first shuffled, as torch-fidelity does, because samples may be in the
    order of their classes; seed None does not shuffle. Raises UserError for rows that are no probabilities, and for
    more splits than images.
    """
    p = np.asarray(probabilities, np.float64)
    if p.ndim != 2 or not (p >= 0).all() or not np.allclose(p.sum(axis=1), 1, atol=1e-3):
        raise UserError("the Inception score takes probabilities [N, classes], each row at least 0 and of sum 1")
    if not 1 <= splits <= len(p):
        raise UserError(f"the Inception score takes 1 to {len(p)} splits of {len(p)} images; got {splits}")
    if seed is not None:
        p = p[np.random.RandomState(seed).permutation(len(p))]
    scores = []
    for k in range(splits):
        chunk = p[k * len(p) // splits : (k + 1) * len(p) // splits]  # [n, classes]
        scores.append(np.exp(_plogp(chunk).sum(axis=1).mean() - _plogp(chunk.mean(axis=0)).sum()))
    return Spread(float(np.mean(scores)), float(np.std(scores)))


def _plogp(p: np.ndarray) -> np.ndarray:
    """p log p, 0 at 0."""
    return p * np.log(np.where(p > 0, p, 1.0))


def _unbiased_mmd2(x: np.ndarray, y: np.ndarray) -> float:
    """The unbiased estimate of arXiv:1801.01401 for x and y [n, D], without the products of an image with itself."""
    n, features = x.shape
    xx, yy, xy = ((u @ v.T / features + 1) ** 3 for u, v in ((x, x), (y, y), (x, y)))  # [n, n]
    within = xx.sum() - np.trace(xx) + yy.sum() - np.trace(yy)
    return within / (n * (n - 1)) - 2 * xy.mean()


def _root(cov: np.ndarray, which: str) -> np.ndarray:
    """A [D, r] with A A^T = cov [D, D], whose rank is r. Warns where r < D."""
    if not np.isfinite(cov).all():
        raise UserError(f"the {which} covariance has values that are not finite; its features overflowed or were NaN")
    values, vectors = np.linalg.eigh((cov + cov.T) / 2)
    tolerance = max(abs(values[-1]), abs(values[0])) * len(cov) * np.finfo(np.float64).eps
    if values[0] < -max(tolerance, 1e-6 * values[-1]):
        raise UserError(f"the {which} matrix is no covariance: it has the negative eigenvalue {values[0]:.3g}")
    large = values > tolerance
    if not large.all():
        warnings.warn(
            f"the {which} covariance is of rank {large.sum()} of {len(cov)}, as {len(cov)} or fewer images give: the "
            f"distance is biased upwards, and comparable only at an equal number of images; take more than {len(cov)}",
            stacklevel=3,
        )
    return vectors[:, large] * np.sqrt(values[large])
