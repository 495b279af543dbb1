"""Metrics of samples against real images: drawn, featurised and reduced batch by batch."""

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from diffusion_jax import build
from diffusion_jax.build import features as build_features
from diffusion_jax.build.features import Features
from diffusion_jax.build.likelihood import own_conditions
from diffusion_jax.errors import UserError
from diffusion_jax.evals import moments, sample_metrics
from diffusion_jax.evals.features import extract
from diffusion_jax.evals.moments import Statistics
from diffusion_jax.evals.sample_metrics import METRICS, Gathered, Options
from diffusion_jax.report import pictures
from diffusion_jax.report.progress import progress
from diffusion_jax.runs import frozen
from diffusion_jax.runs.conditions import Asked, conditions
from diffusion_jax.runs.real_images import RealImages
from diffusion_jax.runs.trained import Trained
from diffusion_jax.runs.workdir import Workdir
from diffusion_jax.train import sharding
from diffusion_jax.train.checkpoint import Checkpoints

Told = dict[str, np.ndarray]

PIXELS = "uint8 rint((x + 1) 127.5), clipped to [0, 255]"


@dataclasses.dataclass(frozen=True)
class Judged:
    """What samples are judged by, as the command's flags say it."""

    features: str = ""  # inception, or the workdir of a classifier
    weights: Path | None = None  # of inception
    reference: Path | None = None  # statistics for fd, instead of real images
    kid_size: int = 1000
    kid_subsets: int = 100

    @property
    def options(self) -> Options:
        """Of the metrics."""
        return Options(self.kid_size, self.kid_subsets)

    def check(self, names: Sequence[str], num: int) -> None:
        """Raises UserError where a metric has no features, or too few images."""
        for flag, value in (("features", self.features), ("reference", self.reference)):
            if value and not names:
                raise UserError(f"--{flag} is of metrics of samples: {', '.join(METRICS)}")
        if not names:
            return
        sample_metrics.check(names, num, self.options)
        self.check_features(names[0])
        if self.reference is not None and "fd" not in names:
            raise UserError("--reference is of fd; add it to --metrics")

    def check_features(self, what: str) -> None:
        """Raises UserError where the features that what needs are not said."""
        if not self.features:
            raise UserError(
                f"{what} needs features: give --features=inception --weights=FILE.safetensors, or "
                "--features=WORKDIR of a classifier trained on this data"
            )
        if self.features == build_features.INCEPTION and self.weights is None:
            raise UserError("--features=inception needs --weights=FILE.safetensors, the weights of FID's InceptionV3")
        if self.features != build_features.INCEPTION and self.weights is not None:
            raise UserError("--weights is of --features=inception; a classifier's are in its workdir")

    def ruler(self, mesh: Mesh, shape: tuple[int, ...], size: int) -> "Ruler":
        """What measures batches of size of images of this shape; raises UserError where it does not fit them."""
        features = self._features(mesh)
        images = jax.ShapeDtypeStruct((size, *shape), np.uint8)
        width = jax.eval_shape(features.apply, images)["pooled"].shape[-1]
        if self.reference is None:
            return Ruler(features, self.options)
        statistics = moments.load_statistics(self.reference)
        if len(statistics.mean) != width:
            raise UserError(
                f"--reference={self.reference} is of {len(statistics.mean)} features, {features.name} has {width}; "
                "give statistics of these features"
            )
        _check_described(self.reference, features, shape)
        return Ruler(features, self.options, statistics, moments.sha256(self.reference))

    def _features(self, mesh: Mesh) -> Features:
        if self.features == build_features.INCEPTION:
            assert self.weights is not None
            return build_features.inception(self.weights, mesh)
        root = Path(self.features)
        workdir = Workdir(root)
        config = workdir.read_config()
        if config.task != "classifier":
            raise UserError(
                f"{root} has a run of task {config.task}; --features is inception or a classifier's workdir"
            )
        network = frozen.read_classifier(root, config.schedule, 1.0)
        with contextlib.closing(Checkpoints(workdir.checkpoints, read_only=True)) as checkpoints:
            name = f"classifier {root}, step {checkpoints.latest()}"
        return build_features.classifier(network, build.schedule(config.schedule), name, mesh)


@dataclasses.dataclass(frozen=True)
class Ruler:
    """What samples are measured with."""

    features: Features
    options: Options
    reference: Statistics | None = None
    reference_sha256: str = ""


def measure_samples(
    names: Sequence[str], trained: Trained, real: RealImages, seeds: np.ndarray, asked: Asked, ruler: Ruler
) -> dict[str, dict[str, Any]]:
    """Each score by name, with its label, spread and how it was taken."""
    model, features = trained.model, ruler.features
    told_own = bool(model.text or model.spatial) and not any(dataclasses.asdict(asked).values())
    told = _own(model, real) if told_own else _asked(conditions(asked, trained, seeds), real.size)

    against = [name for name in names if METRICS[name].real and not (name == "fd" and ruler.reference)]
    theirs = featurise(features, trained.mesh, real_pixels(real), against) if against else None
    images = real.record() if against else None
    ours = featurise(features, trained.mesh, _drawn(trained, seeds, told, real.size), names)
    how = {
        "n": len(seeds),
        "features": {name: features.record[name] for name in ("sha256", "resize")},
        "pixels": PIXELS,
        "shape": list(model.shape),
        "told": "what the real images are told" if told_own else _record(asked),
    }
    found: dict[str, dict[str, Any]] = {}
    for name in names:
        other, what = _reference(name, theirs, images, ruler)
        for score, result in METRICS[name].scores(ours, other, ruler.options).items():
            found[score] = {
                "label": sample_metrics.label(name, score, features.name, published=features.published),
                "value": result.value,
                "std": result.std,
                "how": how | ({"real": what} if METRICS[name].real else {}) | dict(result.how),
                "features": dict(features.record),
                "notes": list(result.notes),
            }
    return found


def _reference(name: str, real: Gathered | None, images: Any, ruler: Ruler) -> tuple[Any, Any]:
    """(what the metric compares samples with, which that is)."""
    if name != "fd":
        return real, images
    if ruler.reference is None:
        assert real is not None
        assert real.moments is not None
        return moments.statistics(real.moments), images
    return ruler.reference, {"statistics_sha256": ruler.reference_sha256, "n": ruler.reference.count}


def featurise(features: Features, mesh: Mesh, images: Iterable[np.ndarray], names: Sequence[str]) -> Gathered:
    """What metrics take of batches of images uint8 [B, H, W, C], one under way on the devices while one is reduced."""
    return sample_metrics.gather(extract(features.apply, images, sharding=sharding.batch_sharding(mesh)), names)


def described(path: Path) -> Path:
    """The file beside statistics that says what they are of; those published elsewhere have none."""
    return path.with_suffix(".json")


def _check_described(path: Path, features: Features, shape: tuple[int, ...]) -> None:
    if not described(path).is_file():
        return
    try:
        said = json.loads(described(path).read_text(encoding="utf-8"))
        other, size = said["features"]["sha256"], tuple(said["shape"])
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{described(path)} does not say what {path} is of; make the statistics anew") from None
    if other != features.record["sha256"]:
        raise UserError(
            f"--reference={path} is of {said['features']['extractor']}, of other weights than {features.name}"
        )
    if size != tuple(shape):
        raise UserError(f"--reference={path} is of images {list(size)}, the model draws {list(shape)}")


def real_pixels(real: RealImages) -> Iterator[np.ndarray]:
    """Their batches, uint8 [B, H, W, C], with a bar of progress."""
    for take, examples in real.batches("real images"):
        yield pictures.to_uint8(examples["image"][:take])


def _drawn(trained: Trained, seeds: np.ndarray, told: Iterator[Told], size: int) -> Iterator[np.ndarray]:
    program: Callable[..., jax.Array] = build.sample_program(trained.model, trained.how, trained.mesh)
    num = len(seeds)
    with progress(num, description="samples", unit="samples") as bar:
        for start in range(0, num, size):
            take = np.arange(start, start + size).clip(max=num - 1)
            images = program(trained.params, trained.frozen, seeds[take], next(told))
            yield pictures.to_uint8(np.asarray(images)[: num - start])
            bar.update(min(start + size, num))


def _asked(cond: Told, size: int) -> Iterator[Told]:
    """Batches of what all samples are told, the last one padded; for ever where they are told nothing."""
    num = min((len(a) for a in cond.values()), default=0)
    start = 0
    while not cond or start < num:
        take = np.arange(start, start + size).clip(max=max(num - 1, 0))
        yield {name: a[take] for name, a in cond.items()}
        start += size


def _own(model: build.Model, real: RealImages) -> Iterator[Told]:
    """Sample i is told what real image i is."""
    for _, examples in real.batches():
        yield own_conditions(model, examples)


def _record(asked: Asked) -> dict[str, Any]:
    return {name: str(v) if isinstance(v, Path) else v for name, v in dataclasses.asdict(asked).items()}
