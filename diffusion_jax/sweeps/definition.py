"""A sweep: a space over config keys, a method of search in it, and the objective that ranks its trials."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from diffusion_jax.errors import UserError
from diffusion_jax.spec import from_spec
from diffusion_jax.sweeps.spaces import Choice, Space

Changes = dict[str, object]
"""{dotted key of the config: value} of one trial."""


@dataclasses.dataclass(frozen=True)
class Objective:
    """The mean of the last `last` logged values of a metric of metrics.jsonl, which a sweep minimizes or maximizes."""

    metric: str = "loss"
    direction: str = "minimize"
    last: int = 4

    def __post_init__(self):
        if self.direction not in ("minimize", "maximize"):
            raise UserError(f"an objective's direction is minimize or maximize; got {self.direction!r}")
        if self.last < 1:
            raise UserError(f"an objective is the mean of at least 1 logged value; got last={self.last}")

    def course(self, records: Sequence[Mapping[str, float]]) -> list[tuple[int, float]]:
        """(step, objective at that step) of every record that has the metric, in their order."""
        steps = [int(record["step"]) for record in records if self.metric in record]
        values = [float(record[self.metric]) for record in records if self.metric in record]
        return [(step, float(np.mean(values[max(0, i + 1 - self.last) : i + 1]))) for i, step in enumerate(steps)]

    def better(self, value: float) -> float:
        """A key by which the best value sorts first."""
        return value if self.direction == "minimize" else -value


@dataclasses.dataclass(frozen=True)
class Grid:
    """All combinations of the values, of which the last key varies fastest."""


@dataclasses.dataclass(frozen=True)
class Random:
    """Independent random trials. Trial n depends on (seed, n) alone."""

    trials: int
    seed: int


@dataclasses.dataclass(frozen=True)
class Tpe:
    """Optuna's tree-structured Parzen estimator (Bergstra et al. 2011), after `startup` random trials."""

    trials: int
    seed: int
    startup: int


@dataclasses.dataclass(frozen=True)
class Hyperband:
    """Optuna's Hyperband (arXiv:1603.06560): the resource is training steps, with min_steps at the first rung."""

    min_steps: int
    reduction: int


@dataclasses.dataclass(frozen=True)
class Median:
    """Prunes a trial that is worse than the median of earlier trials, from trial `startup` and step `min_steps` on."""

    startup: int
    min_steps: int


METHODS: dict[str, Callable[..., Grid | Random | Tpe]] = {
    "grid": lambda: Grid(),
    "random": lambda trials=10, seed=0: Random(trials, seed),
    "tpe": lambda trials=20, seed=0, startup=10: Tpe(trials, seed, startup),
}

PRUNERS: dict[str, Callable[..., Hyperband | Median | None]] = {
    "none": lambda: None,
    "hyperband": lambda min_steps=10, reduction=3: Hyperband(min_steps, reduction),
    "median": lambda startup=4, min_steps=0: Median(startup, min_steps),
}


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What get_sweep() of a sweep file returns. method and pruner are specs; `fixed` are changes of every trial.

    Raises UserError for a space, method or pruner that do not fit together.
    """

    space: Mapping[str, Space]
    objective: Objective = Objective()
    method: str = "grid"  # grid | random(trials=10, seed=0) | tpe(trials=20, seed=0, startup=10)
    pruner: str = "none"  # none | hyperband(min_steps=10, reduction=3) | median(startup=4, min_steps=0)
    fixed: Mapping[str, object] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if not self.space:
            raise UserError("a sweep's space is empty; give it a config key, as in {'seed': choice(0, 1, 2)}")
        for key, space in self.space.items():
            if not isinstance(space, Space):
                raise UserError(f"the space of {key} is choice(...), uniform(...) or the like; got {space!r}")
        if both := sorted(set(self.space) & set(self.fixed)):
            raise UserError(f"{both[0]} is both swept and fixed; leave one of them out")
        method = self.search
        if isinstance(method, Random | Tpe) and method.trials < 1:
            raise UserError(f"a sweep has at least 1 trial; got method={self.method!r}")
        intervals = [key for key, space in self.space.items() if not isinstance(space, Choice)]
        if intervals and isinstance(method, Grid):
            raise UserError(
                f"a grid takes choice(...) or log_grid(...) of {intervals[0]}; "
                "for an interval give method='random(trials=10)'"
            )
        if isinstance(self.pruning, Hyperband) and (self.pruning.min_steps < 1 or self.pruning.reduction < 2):
            raise UserError(f"hyperband has min_steps of at least 1 and a reduction of at least 2; got {self.pruner!r}")

    @property
    def search(self) -> Grid | Random | Tpe:
        """The method of search that the spec `method` names."""
        return from_spec(self.method, METHODS, "method of a sweep")

    @property
    def pruning(self) -> Hyperband | Median | None:
        """The pruner that the spec `pruner` names; None for none."""
        return from_spec(self.pruner, PRUNERS, "pruner")

    def check_steps(self, steps: int) -> None:
        """Raises UserError where the pruner does not fit trials of `steps` steps."""
        if isinstance(self.pruning, Hyperband) and self.pruning.min_steps > steps:
            raise UserError(f"hyperband's min_steps={self.pruning.min_steps} is more than train.steps={steps}")

    @property
    def adaptive(self) -> bool:
        """Whether the trials depend on results, which needs Optuna."""
        return isinstance(self.search, Tpe) or self.pruning is not None

    @property
    def trials(self) -> int:
        """The number of trials."""
        method = self.search
        if isinstance(method, Grid):
            return math.prod(len(space.values) for space in self.space.values() if isinstance(space, Choice))
        return method.trials

    def listed(self) -> list[Changes]:
        """The changes of all trials in order, for a grid or random trials. ValueError for tpe."""
        method = self.search
        if isinstance(method, Grid):
            values = [space.values for space in self.space.values() if isinstance(space, Choice)]
            return [dict(zip(self.space, combination, strict=True)) for combination in itertools.product(*values)]
        if isinstance(method, Random):
            rngs = [np.random.default_rng((method.seed, number)) for number in range(method.trials)]
            return [{key: space.draw(rng) for key, space in self.space.items()} for rng in rngs]
        raise ValueError("the trials of tpe depend on results")

    def identity(self) -> dict[str, object]:
        """What distinguishes the sweep from others, for JSON. The objective is in it only where trials depend on it."""
        parts: dict[str, object] = {"space": {key: repr(space) for key, space in self.space.items()}}
        parts |= {"method": repr(self.search), "pruner": repr(self.pruning)}
        return parts | ({"objective": repr(self.objective)} if self.adaptive else {})
