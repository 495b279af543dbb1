"""The mean and covariance of features that come in batches in any order, and files of such statistics."""

import hashlib
import io
import os
import secrets
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from diffusion_jax.errors import UserError


@dataclass(frozen=True)
class Moments:
    """The mean [D] of `count` features x [D], and their scatter [D, D], the sum of (x - mean)(x - mean)^T; float64."""

    count: int
    mean: np.ndarray
    scatter: np.ndarray

    @property
    def covariance(self) -> np.ndarray:
        """The unbiased covariance [D, D], as by np.cov. Raises UserError for fewer than two features."""
        if self.count < 2:
            raise UserError(f"a covariance takes 2 or more images; got {self.count}")
        return self.scatter / (self.count - 1)


def moments_of(features: ArrayLike) -> Moments:
    """The moments of features [N, D], N >= 1. Raises UserError for other shapes."""
    x = np.asarray(features, np.float64)
    if x.ndim != 2 or not len(x):
        raise UserError(f"moments are of features [N, D], at least one; got {x.shape}")
    mean = x.mean(axis=0)
    return Moments(len(x), mean, (x - mean).T @ (x - mean))


def merge(a: Moments, b: Moments) -> Moments:
    """The moments of both sets of features together (Chan, Golub, LeVeque 1979), in any order but for rounding.

    Raises UserError where the features have other numbers of dimensions.
    """
    if a.mean.shape != b.mean.shape:
        raise UserError(f"moments of different features cannot be merged: {a.mean.shape} and {b.mean.shape}")
    count = a.count + b.count
    shift = b.mean - a.mean
    scatter = a.scatter + b.scatter + np.outer(shift, shift) * (a.count * b.count / count)
    return Moments(count, a.mean + shift * (b.count / count), scatter)


@dataclass(frozen=True)
class Statistics:
    """The statistics of a data set for a Fréchet distance, float64."""

    mean: np.ndarray  # [D]
    covariance: np.ndarray  # [D, D]
    count: int | None = None  # of images; None where a published file does not give it


def statistics(of: Moments) -> Statistics:
    """The statistics of these moments."""
    return Statistics(of.mean, of.covariance, of.count)


def save_statistics(path: str | Path, pooled: Statistics, spatial: Statistics | None = None) -> None:
    """Writes statistics to an .npz file in ADM's layout, whole or not at all.

    mu and sigma are of the pooled features, mu_s and sigma_s of sFID's spatial features. `count` is added where it is
    known; other programs ignore it. Equal statistics give equal bytes. Raises UserError for another suffix.
    """
    path = Path(path)
    if path.suffix != ".npz":
        raise UserError(f"statistics are written to an .npz file; got {path}")
    arrays = {"mu": pooled.mean, "sigma": pooled.covariance}
    if spatial is not None:
        arrays |= {"mu_s": spatial.mean, "sigma_s": spatial.covariance}
    if pooled.count is not None:
        arrays["count"] = np.asarray(pooled.count, np.int64)
    data = io.BytesIO()
    np.savez(data, allow_pickle=False, **arrays)
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        part.write_bytes(data.getbuffer())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def load_statistics(path: str | Path, *, spatial: bool = False) -> Statistics:
    """The statistics in an .npz file of ADM, EDM or pytorch-fid: mu and sigma or, if spatial, mu_s and sigma_s.

    Raises UserError for a pickle, which could run code as it is read, and for a file that is damaged or holds no
    statistics.
    """
    path = Path(path)
    mu, sigma = ("mu_s", "sigma_s") if spatial else ("mu", "sigma")
    if path.suffix in (".pkl", ".pickle", ".pth", ".pt"):
        raise UserError(
            f"{path} is a pickle, which is not read, as it can run code; where you trust it, write its arrays with "
            "np.savez('statistics.npz', mu=..., sigma=...)"
        )
    if not path.is_file():
        raise UserError(f"no statistics file {path}")
    try:
        with np.load(path, allow_pickle=False) as file:
            if not isinstance(file, np.lib.npyio.NpzFile) or not {mu, sigma} <= set(file.files):
                held = ", ".join(file.files) if isinstance(file, np.lib.npyio.NpzFile) else "one array"
                raise UserError(f"{path} holds {held}; statistics are an .npz with {mu} and {sigma}")
            mean, covariance = np.asarray(file[mu], np.float64), np.asarray(file[sigma], np.float64)
            count = int(file["count"]) if "count" in file.files else None
    except UserError:
        raise
    except (ValueError, TypeError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is no .npz file of numbers that can be read ({error}); fetch it anew") from None
    if mean.ndim != 1 or covariance.shape != 2 * mean.shape:
        raise UserError(f"{path}: {mu} is [D] and {sigma} [D, D]; got {mean.shape} and {covariance.shape}")
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise UserError(f"{path} has values that are not finite; fetch it anew")
    return Statistics(mean, covariance, count)


def sha256(path: str | Path) -> str:
    """The SHA-256 of a file in hexadecimal, by which results name statistics and weights."""
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
