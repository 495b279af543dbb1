"""Metrics of samples by name: the features that each metric gathers, and its scores."""

import dataclasses
import warnings
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

from diffusion_jax.errors import UserError
from diffusion_jax.evals import moments, neighbours, scores
from diffusion_jax.evals.gathering import Gathered, Wanted
from diffusion_jax.evals.moments import Statistics

SHOWN, SHOWN_NEIGHBOURS = 16, 4
"""How many samples nearest to training images memorisation shows, and how many training images beside each."""


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the metrics."""

    kid_size: int = 1000
    kid_subsets: int = 100
    neighbours: int = 3
    splits: int = 10  # of the Inception score
    copied: float = 0.5  # the ratio of distances below which memorisation counts a sample as a copy


@dataclasses.dataclass(frozen=True)
class NearestNeighbors:
    """The samples nearest to training images, the nearest first."""

    samples: np.ndarray  # [n] indices of the samples
    ratio: np.ndarray  # [n] as in `neighbours.Memorisation`
    images: np.ndarray  # [n, k] indices of their nearest training images


@dataclasses.dataclass(frozen=True)
class Score:
    """The value of a metric, with its deviation over subsets or splits of the images where it has one."""

    value: float
    std: float | None = None
    how: Mapping[str, float] = dataclasses.field(default_factory=dict)  # the options it was taken with
    notes: tuple[str, ...] = ()  # sentences for the user
    nearest: NearestNeighbors | None = None  # of memorisation


Compare = Callable[[Gathered, Any, Options], dict[str, Score]]
"""(what is gathered of the samples, what of the real images, options) -> scores by name.

Of the real images there are `Statistics` for a metric with `moments`, `Gathered` features for one with `kept`, and
nothing for one that does not look at them.
"""


@dataclasses.dataclass(frozen=True)
class Metric:
    """One or more scores of samples against real images."""

    label: str  # its name with the features of FID
    other: str  # its name with other features; "": that of the score
    scores: Compare
    least: Callable[[Options], tuple[int, str]] = lambda options: (1, "it")
    """options -> the least number of images of each set, and a word for what needs them."""
    moments: str = ""  # the feature whose moments it takes
    kept: tuple[str, ...] = ()  # features that it takes of each image
    real: bool = True  # whether it compares samples with a set of real images
    needs: str = ""  # originals | captions: what it compares each sample with


def _distance(name: str, feature: str) -> Compare:
    """The Fréchet distance of the moments of a feature."""

    def compare(samples: Gathered, real: Statistics, options: Options) -> dict[str, Score]:
        ours = moments.statistics(samples.moments[feature])
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            value = scores.frechet_distance(ours.mean, ours.covariance, real.mean, real.covariance)
        return {name: Score(value, notes=tuple(str(warning.message) for warning in caught))}

    return compare


def _kid(samples: Gathered, real: Gathered, options: Options) -> dict[str, Score]:
    ours, theirs = samples.kept["pooled"], real.kept["pooled"]
    mean, std = scores.kernel_distance(ours, theirs, size=options.kid_size, subsets=options.kid_subsets)
    how = {"size": options.kid_size, "subsets": options.kid_subsets}
    if options.kid_size == len(ours) == len(theirs):
        return {"kid": Score(mean, None, how, ("every subset is all images: for a spread give a smaller --kid_size",))}
    return {"kid": Score(mean, std, how)}


def _precision_recall(samples: Gathered, real: Gathered, options: Options) -> dict[str, Score]:
    found = neighbours.precision_recall(samples.kept["pooled"], real.kept["pooled"], options.neighbours)
    how = {"neighbours": options.neighbours}
    return {"precision": Score(found.precision, how=how), "recall": Score(found.recall, how=how)}


def _inception_score(samples: Gathered, real: object, options: Options) -> dict[str, Score]:
    mean, std = scores.inception_score(samples.kept["probabilities"], options.splits)
    return {"inception_score": Score(mean, std, {"splits": options.splits})}


def _memorisation(samples: Gathered, real: Gathered, options: Options) -> dict[str, Score]:
    found = neighbours.memorisation(
        samples.kept["pooled"], real.kept["pooled"], k=min(SHOWN_NEIGHBOURS, real.count), threshold=options.copied
    )
    first = np.argsort(found.ratio, kind="stable")[:SHOWN]
    shown = NearestNeighbors(first, found.ratio[first], found.neighbours.index[first])
    how = {"threshold": options.copied}
    return {
        "copied": Score(found.copied, how=how, nearest=shown),
        "median_ratio": Score(float(np.median(found.ratio))),
    }


def _mean_of(name: str) -> Compare:
    """The mean over samples of a number that each sample has."""

    def compare(samples: Gathered, real: object, options: Options) -> dict[str, Score]:
        values = np.asarray(samples.kept[name], np.float64)
        finite = values[np.isfinite(values)]
        if not len(finite):
            raise UserError(f"{name} is infinite: every image is its original to the byte")
        equal = len(values) - len(finite)
        notes = (f"{equal} of {len(values)} images are their originals to the byte and are left out of the mean",)
        return {name: Score(float(finite.mean()), float(finite.std()), notes=notes if equal else ())}

    return compare


METRICS: dict[str, Metric] = {
    # Fréchet distance of the features of samples and of real images; with InceptionV3's it is FID
    "fd": Metric("FID", "FD", _distance("fd", "pooled"), lambda o: (2, "a covariance"), "pooled"),
    # the same of features that keep where things are (sFID)
    "sfd": Metric("sFID", "spatial FD", _distance("sfd", "spatial"), lambda o: (2, "a covariance"), "spatial"),
    # kernel distance, unbiased whatever the number of samples (KID)
    "kid": Metric("KID", "KD", _kid, lambda o: (o.kid_size, "a subset of kid (--kid_size)"), kept=("pooled",)),
    # how many samples look real, and how much of the real images' variety they have
    "precision_recall": Metric(
        "",
        "",
        _precision_recall,
        lambda o: (o.neighbours + 1, "a neighbourhood of precision_recall"),
        kept=("pooled",),
    ),
    # how sure a classifier is of each sample, and how varied they are; looks at no real images
    "inception_score": Metric(
        "Inception score",
        "classifier score",
        _inception_score,
        lambda o: (o.splits, "a split of inception_score"),
        kept=("probabilities",),
        real=False,
    ),
    # the share of samples that lie suspiciously near to a training image, with pictures
    "memorisation": Metric("", "", _memorisation, lambda o: (2, "a distance within the real images"), kept=("pooled",)),
    # of models that restore an image: peak signal-to-noise ratio to the original
    "psnr": Metric("PSNR (dB)", "PSNR (dB)", _mean_of("psnr"), kept=("psnr",), real=False, needs="originals"),
    # of models that restore an image: structural similarity to the original
    "ssim": Metric("SSIM", "SSIM", _mean_of("ssim"), kept=("ssim",), real=False, needs="originals"),
    # how well samples fit their captions, by a CLIP model
    "clip_score": Metric(
        "CLIP score", "CLIP score", _mean_of("clip_score"), kept=("clip_score",), real=False, needs="captions"
    ),
}


SCORES = {"precision_recall": ("precision", "recall"), "memorisation": ("copied", "median_ratio")}
"""The scores of a metric, where they have other names than the metric."""


def score_names(names: Collection[str]) -> list[str]:
    """The names of the scores that these metrics give."""
    return [score for name in names for score in SCORES.get(name, (name,))]


def of_features(names: Collection[str]) -> list[str]:
    """Those of the metrics that compare features of a network."""
    return [name for name in names if not METRICS[name].needs]


def wanted(names: Collection[str]) -> Wanted:
    """The features to gather of samples for these metrics."""
    chosen = [METRICS[name] for name in names]
    kept = dict.fromkeys(feature for metric in chosen for feature in metric.kept)
    return Wanted(tuple(dict.fromkeys(m.moments for m in chosen if m.moments)), tuple(kept))


def check_counts(names: Collection[str], num: int, options: Options) -> None:
    """Raises UserError where `num` images are too few for one of the metrics."""
    if options.kid_size < 2 or options.kid_subsets < 1:
        raise UserError(
            f"kid takes 1 or more subsets of 2 or more images; got {options.kid_subsets} of {options.kid_size}"
        )
    for name in names:
        least, what = METRICS[name].least(options)
        if num < least:
            raise UserError(f"{what} takes {least} images, and --num is {num}; ask for more, or less of each")


def label(name: str, score: str, features: str, *, published: bool) -> str:
    """The label of a score: FID with the features of FID, and "FD (features: ...)" with others."""
    metric = METRICS[name]
    text = (metric.label if published else metric.other) or score
    return text if metric.needs or (published and metric.label) else f"{text} (features: {features})"
