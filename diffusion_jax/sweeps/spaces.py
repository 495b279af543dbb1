"""Spaces: the values that one config key may have."""

import dataclasses
import math

import numpy as np

from diffusion_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Choice:
    """One of several values, of any type that a config holds."""

    values: tuple[object, ...]

    def draw(self, rng: np.random.Generator) -> object:
        """A random value; all are equally likely."""
        return self.values[int(rng.integers(len(self.values)))]


@dataclasses.dataclass(frozen=True)
class Interval:
    """A number in [low, high], uniform in itself or in its logarithm."""

    low: float
    high: float
    log: bool = False

    def draw(self, rng: np.random.Generator) -> float:
        """A random number in the interval."""
        if self.log:
            return float(math.exp(rng.uniform(math.log(self.low), math.log(self.high))))
        return float(rng.uniform(self.low, self.high))


@dataclasses.dataclass(frozen=True)
class Integers:
    """An integer in [low, high], both included."""

    low: int
    high: int

    def draw(self, rng: np.random.Generator) -> int:
        """A random integer; all are equally likely."""
        return int(rng.integers(self.low, self.high + 1))


Space = Choice | Interval | Integers


def choice(*values: object) -> Choice:
    """One of the values, all of which are equally likely. Raises UserError for no value, and for one given twice."""
    if not values:
        raise UserError("choice() is an empty space; give at least one value, as in choice(1e-4, 1e-3)")
    if twice := [value for i, value in enumerate(values) if value in values[:i]]:
        raise UserError(f"choice(...) has {twice[0]!r} twice; give each value once")
    return Choice(values)


def uniform(low: float, high: float) -> Interval:
    """A number in [low, high], uniformly distributed. Raises UserError unless low < high."""
    return Interval(*_ends("uniform", low, high))


def log_uniform(low: float, high: float) -> Interval:
    """A number in [low, high] whose logarithm is uniformly distributed. Raises UserError unless 0 < low < high."""
    low, high = _ends("log_uniform", low, high)
    if low <= 0:
        raise UserError(f"log_uniform({low:g}, {high:g}) begins above 0; got {low:g}")
    return Interval(low, high, log=True)


def integers(low: int, high: int) -> Integers:
    """An integer in [low, high], both included, all equally likely. Raises UserError unless low < high."""
    first, last = _ends("integers", low, high)
    if first != int(first) or last != int(last):
        raise UserError(f"integers({low}, {high}) has integer ends")
    return Integers(int(first), int(last))


def log_grid(low: float, high: float, num: int) -> Choice:
    """`num` values from low to high with equal ratios, rounded to three digits except for both ends.

    Raises UserError unless 0 < low < high and num >= 2.
    """
    low, high = _ends("log_grid", low, high)
    if low <= 0 or num < 2:
        raise UserError(f"log_grid({low:g}, {high:g}, {num}) begins above 0 and has at least 2 values")
    inner = [float(f"{value:.3g}") for value in np.geomspace(low, high, num)[1:-1]]
    return choice(low, *inner, high)


def _ends(name: str, low: float, high: float) -> tuple[float, float]:
    """Both ends, checked: they come from a user's file, and may be of any type."""
    numbers = all(isinstance(end, int | float) and math.isfinite(end) for end in (low, high))
    if not numbers or not low < high:
        raise UserError(f"{name}({low!r}, {high!r}) is an empty space; give two numbers, the lower first")
    return low, high
