"""Mean and covariance of features that come in batches, from anywhere, in any order; and statistics files."""

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
    """Of `count` features [D], float64: their mean [D], and `scatter` [D, D], the sum of (x - mean)(x - mean)^T."""

    count: int
    mean: np.ndarray
    scatter: np.ndarray

    @property
    def covariance(self) -> np.ndarray:
        """The unbiased one, as of np.cov: [D, D]; UserError for fewer than two features."""
        if self.count < 2:
            raise UserError(f"a covariance takes 2 or more images; got {self.count}")
        return self.scatter / (self.count - 1)


def moments_of(features: ArrayLike) -> Moments:
    """Of features [N, D], N >= 1."""
    x = np.asarray(features, np.float64)
    if x.ndim != 2 or not len(x):
        raise UserError(f"moments are of features [N, D], at least one; got {x.shape}")
    mean = x.mean(axis=0)
    return Moments(len(x), mean, (x - mean).T @ (x - mean))


def merge(a: Moments, b: Moments) -> Moments:
    """Those of both sets of features; associative and commutative to rounding (Chan, Golub, LeVeque 1979)."""
    if a.mean.shape != b.mean.shape:
        raise UserError(f"moments of different features cannot be merged: {a.mean.shape} and {b.mean.shape}")
    count = a.count + b.count
    shift = b.mean - a.mean
    scatter = a.scatter + b.scatter + np.outer(shift, shift) * (a.count * b.count / count)
    return Moments(count, a.mean + shift * (b.count / count), scatter)


@dataclass(frozen=True)
class Statistics:
    """What a Fréchet distance takes of a data set, float64."""

    mean: np.ndarray  # [D]
    covariance: np.ndarray  # [D, D]
    count: int | None = None  # of images; published files do not say


def statistics(of: Moments) -> Statistics:
    """Of moments that are complete."""
    return Statistics(of.mean, of.covariance, of.count)


def save_statistics(path: str | Path, pooled: Statistics, spatial: Statistics | None = None) -> None:
    """Writes an .npz of ADM's layout, mu and sigma, mu_s and sigma_s of sFID's features: whole or not at all.

    `count`, where known, is beside them, and other programs do not look at it. Equal statistics give equal bytes.
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
    """From an .npz of ADM's, EDM's or pytorch-fid's, with mu and sigma; mu_s and sigma_s instead if spatial.

    Raises UserError for a pickle, which could run code as it is read, and a file that is damaged or holds none.
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
    """Of a file, in hexadecimal: what a result says of the statistics or weights behind it."""
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
