"""What metrics take of the features of images, gathered batch by batch: moments on the devices, in float64."""

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
"""By feature: count [], mean [D] and scatter [D, D] of `Moments`, float64."""


@dataclasses.dataclass(frozen=True)
class Gathered:
    """What is left of the features of count images."""

    count: int
    moments: Mapping[str, Moments]  # by feature
    kept: Mapping[str, np.ndarray]  # by feature: [count, ...]


NOTHING = Gathered(0, {}, {})


@dataclasses.dataclass(frozen=True)
class Wanted:
    """Names of features: of which moments are enough, and which are kept for each image."""

    moments: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()


class Gathering:
    """Takes in batches of features {name: [B, ...]} on the devices; what it has is `so_far`.

    Moments are merged there, in float64 (Chan, Golub, LeVeque 1979): only what is kept for each image leaves the
    devices, a batch behind the one under way. So neither batches nor devices change a result but by rounding, and
    going on from what another has gathered gives the bits that it would have given. everywhere is the sharding of what
    is whole on each device; inspect sees what is kept of each batch.
    """

    def __init__(
        self,
        wanted: Wanted,
        start: Gathered = NOTHING,
        *,
        everywhere: Sharding | None = None,
        inspect: Callable[[Mapping[str, np.ndarray]], None] = lambda kept: None,
    ):
        self._wanted, self._count, self._inspect = wanted, start.count, inspect
        self._total: Any = {n: (np.float64(m.count), m.mean, m.scatter) for n, m in start.moments.items()}
        self._kept = {name: [a] for name, a in start.kept.items()}
        self._waiting: tuple[int, dict[str, Array]] | None = None
        self._fold = jax.jit(_fold, out_shardings=everywhere, static_argnames=("empty",))

    @property
    def count(self) -> int:
        """Of how many images."""
        return self._count

    def add(self, count: int, features: Mapping[str, Array]) -> None:
        """Of a batch the first count images; the others stand there so that one program fits all batches."""
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
        """Of all batches until now; waits for them."""
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
    """(total and the first count rows of summed [B, D], kept)."""
    parts = {name: _moments(x, count) for name, x in summed.items()}
    if empty:
        return parts, kept
    return {name: _merge(total[name], parts[name]) for name in parts}, kept


def _moments(x: Array, count: Array) -> tuple[Array, Array, Array]:
    inside = (jnp.arange(len(x)) < count)[:, None]
    x = jnp.where(inside, x.astype(jnp.float64), 0.0)
    n = count.astype(jnp.float64)
    mean = x.sum(axis=0) / n
    away = jnp.where(inside, x - mean, 0.0)
    return n, mean, jnp.matmul(away.T, away, precision=jax.lax.Precision.HIGHEST)


def _merge(a: tuple[Array, Array, Array], b: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
    """`evals.moments.merge`."""
    n = a[0] + b[0]
    shift = b[1] - a[1]
    return n, a[1] + shift * (b[0] / n), a[2] + b[2] + jnp.outer(shift, shift) * (a[0] * b[0] / n)
