"""The features of images as metrics need them, gathered batch by batch: moments on the devices, in float64."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Sharding

from diffusion_jax.errors import UserError
from diffusion_jax.evals.moments import Moments

Total = dict[str, tuple[Array, Array, Array]]
"""{feature: (count [], mean [D], scatter [D, D])} as in `Moments`, float64."""


@dataclasses.dataclass(frozen=True)
class Gathered:
    """What has been gathered of the features of `count` images."""

    count: int
    moments: Mapping[str, Moments]  # by feature
    kept: Mapping[str, np.ndarray]  # {feature: its values for each image [count, ...]}


NOTHING = Gathered(0, {}, {})


@dataclasses.dataclass(frozen=True)
class Wanted:
    """Names of features: those of which moments are gathered, and those that are kept for each image."""

    moments: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()


class Gathering:
    """Gathers batches of features {name: [B, ...]} that are on the devices; `so_far` gives the result.

    Moments are merged on the devices in float64 (Chan, Golub, LeVeque 1979). Only features that are kept leave the
    devices, one batch later than they are computed. So batch sizes and devices change a result by rounding alone, and
    going on from `start` gives the same bits as never having stopped.
    """

    def __init__(
        self,
        wanted: Wanted,
        start: Gathered = NOTHING,
        *,
        everywhere: Sharding | None = None,
        inspect: Callable[[Mapping[str, np.ndarray]], None] = lambda kept: None,
    ):
        """Begins with `start`. everywhere is the sharding of arrays that are whole on every device.

        inspect is called with the kept features of each batch.
        """
        self._wanted, self._count, self._inspect = wanted, start.count, inspect
        self._total: Any = {n: (np.float64(m.count), m.mean, m.scatter) for n, m in start.moments.items()}
        self._kept = {name: [a] for name, a in start.kept.items()}
        self._waiting: tuple[int, dict[str, Array]] | None = None
        self._fold = jax.jit(_fold, out_shardings=everywhere, static_argnames=("empty",))

    @property
    def count(self) -> int:
        """The number of images so far."""
        return self._count

    def add(self, count: int, features: Mapping[str, Array]) -> None:
        """Adds the first `count` images of a batch; the others fill it to the size of a program that fits all batches.

        Raises UserError for a feature that the batch lacks, and for a count outside of 1 .. B.
        """
        if missing := set(self._wanted.moments + self._wanted.kept) - set(features):
            raise UserError(f"these features have {', '.join(features)}, and no {', '.join(sorted(missing))}")
        rows = len(next(iter(features.values())))
        if not 1 <= count <= rows:
            raise UserError(f"of a batch of {rows} images 1 to {rows} count; got {count}")
        with jax.enable_x64(True):
            summed = {name: features[name] for name in self._wanted.moments}
            kept = {name: features[name] for name in self._wanted.kept}
            self._total, kept = self._fold(self._total, summed, kept, np.int32(count), empty=not self._total)
        self._receive()
        self._waiting = count, kept
        self._count += count

    def so_far(self) -> Gathered:
        """What has been gathered of all batches until now; waits for them."""
        self._receive()
        total = jax.device_get(self._total)
        return Gathered(
            self._count,
            {
                n: Moments(int(count), np.asarray(mean), np.asarray(scatter))
                for n, (count, mean, scatter) in total.items()
            },
            {name: np.concatenate(parts) for name, parts in self._kept.items()},
        )

    def _receive(self) -> None:
        if self._waiting is None:
            return
        count, arrays = self._waiting
        kept = {name: np.asarray(a)[:count] for name, a in arrays.items()}
        self._inspect(kept)
        for name, a in kept.items():
            self._kept.setdefault(name, []).append(a)
        self._waiting = None


def _fold(
    total: Total, summed: dict[str, Array], kept: dict[str, Array], count: Array, *, empty: bool
) -> tuple[Total, dict[str, Array]]:
    """The total with the first count rows of summed {name: [B, D]} merged into it, and kept as it is."""
    parts = {name: _moments(x, count) for name, x in summed.items()}
    if empty:
        return parts, kept
    return {name: _merge(total[name], parts[name]) for name in parts}, kept


def _moments(x: Array, count: Array) -> tuple[Array, Array, Array]:
    """The count, mean and scatter of the first count rows of x [B, D]."""
    inside = (jnp.arange(len(x)) < count)[:, None]
    x = jnp.where(inside, x.astype(jnp.float64), 0.0)
    n = count.astype(jnp.float64)
    mean = x.sum(axis=0) / n
    away = jnp.where(inside, x - mean, 0.0)
    return n, mean, jnp.matmul(away.T, away, precision=jax.lax.Precision.HIGHEST)


def _merge(a: tuple[Array, Array, Array], b: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
    """`evals.moments.merge`, on the devices."""
    n = a[0] + b[0]
    shift = b[1] - a[1]
    return n, a[1] + shift * (b[0] / n), a[2] + b[2] + jnp.outer(shift, shift) * (a[0] * b[0] / n)
