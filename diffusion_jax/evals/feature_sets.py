"""The check that every distance between two sets of features makes first."""

import numpy as np
from numpy.typing import ArrayLike

from diffusion_jax.errors import UserError


def as_feature_sets(a: ArrayLike, b: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """a [N, D] and b [M, D] as numpy arrays, N, M >= 1. Raises UserError for other shapes and non-finite values."""
    a, b = np.asarray(a), np.asarray(b)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or not len(a) or not len(b):
        raise UserError(f"two sets of features are [N, D] and [M, D]; got {a.shape} and {b.shape}")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise UserError("the features have values that are not finite; they overflowed or were NaN")
    return a, b
