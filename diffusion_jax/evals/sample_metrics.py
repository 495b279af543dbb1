"""Metrics of samples by name: what each gathers of the features as they come in batches, and what it says of them."""

import dataclasses
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import numpy as np

from diffusion_jax.errors import UserError
from diffusion_jax.evals import moments, neighbours, scores
from diffusion_jax.evals.moments import Moments, Statistics


@dataclasses.dataclass(frozen=True)
class Options:
    """How the metrics are taken, beside the features."""

    kid_size: int = 1000
    kid_subsets: int = 100
    neighbours: int = 3
    splits: int = 10  # of the Inception score


@dataclasses.dataclass(frozen=True)
class Gathered:
    """What is left of the features of N images: no more than the metrics take."""

    count: int
    moments: Moments | None
    pooled: np.ndarray | None  # [N, D]
    probabilities: np.ndarray | None  # [N, classes]


@dataclasses.dataclass(frozen=True)
class Score:
    """A metric's value and, where it has one, its spread over subsets or splits of the images."""

    value: float
    std: float | None = None
    how: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Metric:
    """One or more scores of samples against real images."""

    label: str  # with the features of FID
    other: str  # with other features
    real: bool  # whether it looks at real images
    gathers: str  # moments | pooled | probabilities
    least: Callable[[Options], tuple[int, str]]  # the fewest images of each set, and what asks for them
    scores: Callable[[Gathered, Any, Options], dict[str, Score]]


def _fd(samples: Gathered, real: Statistics, options: Options) -> dict[str, Score]:
    assert samples.moments is not None
    ours = moments.statistics(samples.moments)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        value = scores.frechet_distance(ours.mean, ours.covariance, real.mean, real.covariance)
    return {"fd": Score(value, notes=tuple(str(warning.message) for warning in caught))}


def _kid(samples: Gathered, real: Gathered, options: Options) -> dict[str, Score]:
    assert samples.pooled is not None
    assert real.pooled is not None
    mean, std = scores.kernel_distance(samples.pooled, real.pooled, size=options.kid_size, subsets=options.kid_subsets)
    return {"kid": Score(mean, std, {"size": options.kid_size, "subsets": options.kid_subsets})}


def _precision_recall(samples: Gathered, real: Gathered, options: Options) -> dict[str, Score]:
    assert samples.pooled is not None
    assert real.pooled is not None
    found = neighbours.precision_recall(samples.pooled, real.pooled, options.neighbours)
    how = {"neighbours": options.neighbours}
    return {"precision": Score(found.precision, how=how), "recall": Score(found.recall, how=how)}


def _inception_score(samples: Gathered, real: object, options: Options) -> dict[str, Score]:
    assert samples.probabilities is not None
    mean, std = scores.inception_score(samples.probabilities, options.splits)
    return {"inception_score": Score(mean, std, {"splits": options.splits})}


METRICS: dict[str, Metric] = {
    "fd": Metric("FID", "FD", True, "moments", lambda o: (2, "a covariance"), _fd),
    "kid": Metric("KID", "KD", True, "pooled", lambda o: (o.kid_size, "a subset of kid (--kid_size)"), _kid),
    "precision_recall": Metric(
        "", "", True, "pooled", lambda o: (o.neighbours + 1, "a neighbourhood of precision_recall"), _precision_recall
    ),
    "inception_score": Metric(
        "Inception score",
        "classifier score",
        False,
        "probabilities",
        lambda o: (o.splits, "a split of inception_score"),
        _inception_score,
    ),
}


def check(names: Collection[str], num: int, options: Options) -> None:
    """Raises UserError where num images are too few for a metric, before any is drawn."""
    if options.kid_size < 2 or options.kid_subsets < 1:
        raise UserError(
            f"kid takes 1 or more subsets of 2 or more images; got {options.kid_subsets} of {options.kid_size}"
        )
    for name in names:
        least, what = METRICS[name].least(options)
        if num < least:
            raise UserError(f"{what} takes {least} images, and --num is {num}; ask for more, or less of each")


def gather(batches: Iterable[Mapping[str, np.ndarray]], names: Collection[str]) -> Gathered:
    """Reduces features as they come, "pooled" [b, D] and "probabilities" [b, classes], to what the metrics take."""
    wanted = {METRICS[name].gathers for name in names}
    count = 0
    whole: Moments | None = None
    pooled, probabilities = [], []
    for batch in batches:
        count += len(batch["pooled"])
        if "moments" in wanted:
            part = moments.moments(batch["pooled"])
            whole = part if whole is None else moments.merge(whole, part)
        if "pooled" in wanted:
            pooled.append(batch["pooled"])
        if "probabilities" in wanted:
            probabilities.append(batch["probabilities"])
    return Gathered(
        count,
        whole,
        np.concatenate(pooled) if pooled else None,
        np.concatenate(probabilities) if probabilities else None,
    )


def label(name: str, score: str, features: str, *, published: bool) -> str:
    """What a score is called: FID with the features of FID alone, "FD (features: ...)" with others."""
    metric = METRICS[name]
    text = (metric.label if published else metric.other) or score
    return text if published and metric.label else f"{text} (features: {features})"
