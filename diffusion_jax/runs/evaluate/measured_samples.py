"""Metrics of samples against real images: drawn, featurised and reduced on the devices, batch by batch."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from diffusion_jax.core import similarity
from diffusion_jax.errors import UserError
from diffusion_jax.evals import moments, sample_metrics
from diffusion_jax.evals.gathering import NOTHING, Gathered, Gathering, Wanted
from diffusion_jax.evals.sample_metrics import METRICS, NearestNeighbors
from diffusion_jax.modalities import Image, Modality
from diffusion_jax.models.features import Features
from diffusion_jax.report.progress import progress
from diffusion_jax.runs.evaluate.feature_extractor import PIXELS, VALUES, FeatureExtractor
from diffusion_jax.runs.evaluate.partial import PartialEvaluation
from diffusion_jax.runs.evaluate.real_images import Interrupted, RealImages
from diffusion_jax.train import sharding
from diffusion_jax.train.interruptible import Abandoned, interruptible

Phase = Callable[[str], AbstractContextManager[None]]
"""As `train.faults.Watchdog.phase`."""

_NAN = "nan"


def no_phase(name: str) -> AbstractContextManager[None]:
    """Of an evaluation that no watchdog looks after."""
    return contextlib.nullcontext()


@dataclasses.dataclass(frozen=True)
class SampleBatch:
    """What samples are made of, beside their seeds; every array leads with B."""

    cond: Mapping[str, np.ndarray]
    originals: np.ndarray | None = None  # [B, *S, C] in the model's units: what they are to look like
    captions: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class SampleSource:
    """What is measured: a model that draws examples of this shape."""

    mesh: Mesh
    kind: Modality
    shape: tuple[int, ...]
    draw: Callable[[np.ndarray, Mapping[str, np.ndarray]], Array]
    """(seeds int32 [B], cond) -> samples [B, *S, C] in the model's units, on the devices."""
    told: Callable[[int], Iterator[SampleBatch]]
    """The batches from the given one on."""
    record: Any  # what they are told, as the result says it
    restores: bool = False  # whether its images have originals
    reconstructs: bool = False  # whether it draws nothing of its own
    captioned: bool = False  # whether it is told captions


@dataclasses.dataclass(frozen=True)
class Reference:
    """What is gathered of the real images, and which these are."""

    gathered: Gathered | None
    record: Mapping[str, Any] | None


def check(names: Sequence[str], sample_source: SampleSource) -> None:
    """Raises UserError for a metric that the model cannot have."""
    for name in names:
        needs = METRICS[name].needs
        if needs == "originals" and not sample_source.restores:
            raise UserError(
                f"{name} compares an image with its original: it is of an autoencoder, or of a super-resolution or "
                "inpainting model that is told of the data's own images; this model has no originals"
            )
        if needs == "captions" and not sample_source.captioned:
            raise UserError(f"{name} compares an image with its caption; this model is told none")
        if needs and not isinstance(sample_source.kind, Image):
            raise UserError(f"{name} is of images, and this model is of {sample_source.kind.noun}")
        if name == "ssim" and min(sample_source.shape[:2]) < similarity.WINDOW:
            side = similarity.WINDOW
            raise UserError(f"ssim looks at {side} x {side} windows; the images are {_size(sample_source.shape[:2])}")
        if sample_source.reconstructs and name in ("memorisation", "inception_score"):
            raise UserError(f"{name} is of samples; an autoencoder draws none")


def gather_real(
    names: Sequence[str],
    mesh: Mesh,
    real: RealImages,
    extractor: FeatureExtractor,
    partial: PartialEvaluation | None = None,
    phase: Phase = no_phase,
    show: bool = True,
) -> Reference:
    """What the metrics take of real images; nothing where none looks at them, or only at a file of statistics."""
    against = [n for n in names if METRICS[n].real and METRICS[n].moments not in extractor.reference]
    if not against:
        return Reference(None, None)
    assert extractor.features is not None
    if partial is not None and (found := partial.of("real"))[0] is not None:
        return Reference(*found)
    gathered = featurise(extractor.features, mesh, real, sample_metrics.wanted(against), phase, show)
    if partial is not None:
        partial.write("real", gathered, real.record())
    return Reference(gathered, real.record())


def featurise(
    features: Features, mesh: Mesh, real: RealImages, wanted: Wanted, phase: Phase = no_phase, show: bool = True
) -> Gathered:
    """What is wanted of the features of real images, where show with a bar of progress."""
    gathering = Gathering(wanted, everywhere=sharding.replicated(mesh))
    done = 0
    for take, examples in real.batches("real images" if show else ""):
        with phase("sample"):
            call = functools.partial(_of_real, features, real.kind, examples["x"])
            gathering.add(take, _computed(call, done, real.num))
        done += take
    return gathering.so_far()


def _of_real(features: Features, kind: Modality, x: np.ndarray) -> Mapping[str, Array]:
    return features.apply(kind.from_model(x) if isinstance(kind, Image) else x)


def gather_samples(
    names: Sequence[str],
    sample_source: SampleSource,
    seeds: np.ndarray,
    size: int,
    extractor: FeatureExtractor,
    partial: PartialEvaluation | None = None,
    stopped: Callable[[], bool] = lambda: False,
    phase: Phase = no_phase,
    show: bool = True,
) -> Gathered:
    """What the metrics take of the samples of seeds, drawn in batches of size; goes on from partial.

    Raises Interrupted, what there is being saved, where stopped says so between two batches. phase("sample") is entered
    around each batch.
    """
    start = (partial.of("samples")[0] if partial else None) or NOTHING
    wanted = sample_metrics.wanted(names)
    wanted = dataclasses.replace(wanted, kept=(*wanted.kept, _NAN))
    gathering = Gathering(wanted, start, everywhere=sharding.replicated(sample_source.mesh), inspect=_refuse_nan)
    num = len(seeds)
    first = start.count // size  # a batch is taken in as a whole
    shown = progress(num, start=start.count, description="samples", unit="samples", show=show)
    with shown as bar, _saved_where_interrupted(gathering, partial):
        for i, told in zip(range(first, -(-num // size)), sample_source.told(first), strict=False):
            take = np.arange(i * size, (i + 1) * size).clip(max=num - 1)
            done = min((i + 1) * size, num)
            call = functools.partial(_of_samples, sample_source, seeds[take], told, extractor)
            with phase("sample"):
                gathering.add(done - i * size, _computed(call, gathering.count, num))
            bar.update(done)
            if stopped() and done < num:
                raise Interrupted(done, num)
            if partial is not None and done < num and partial.due():
                partial.write("samples", gathering.so_far())
    return gathering.so_far()


@contextlib.contextmanager
def _saved_where_interrupted(gathering: Gathering, partial: PartialEvaluation | None) -> Iterator[None]:
    """While entered, Interrupted first saves in partial what was gathered since, if anything."""
    before = gathering.count
    try:
        yield
    except Interrupted:
        if partial is not None and gathering.count > before:
            partial.write("samples", gathering.so_far())
        raise


def _of_samples(
    sample_source: SampleSource, seeds: np.ndarray, told: SampleBatch, extractor: FeatureExtractor
) -> dict[str, Array]:
    """What is drawn of the seeds as every metric looks at it, by name, each [B, ...]."""
    seen = _pixels if isinstance(sample_source.kind, Image) else _values
    drawn = seen(sample_source.draw(seeds, told.cond))
    features: dict[str, Array] = {_NAN: drawn[_NAN]}
    if extractor.features is not None:
        features |= extractor.features.apply(drawn["pixels"])
    if told.originals is not None:
        features |= _restoration(drawn["pixels"], told.originals)
    if extractor.score is not None:
        features["clip_score"] = extractor.score.apply(drawn["pixels"], told.captions)
    return features


def _computed(call: Callable[[], Any], done: int, num: int) -> Any:
    """The arrays of call once they are computed; raises Interrupted, of done samples, where a signal came before."""
    try:
        return interruptible(lambda: jax.block_until_ready(call()))
    except Abandoned:
        raise Interrupted(done, num) from None


def scored(
    names: Sequence[str], sample_source: SampleSource, samples: Gathered, real: Reference, extractor: FeatureExtractor
) -> tuple[dict[str, dict[str, Any]], dict[str, NearestNeighbors]]:
    """({metric: its value, spread, label and how it was computed}, {metric: the samples nearest to real images})."""
    features = extractor.features
    found: dict[str, dict[str, Any]] = {}
    suspects: dict[str, NearestNeighbors] = {}
    for name in names:
        metric = METRICS[name]
        how: dict[str, Any] = {
            "n": samples.count,
            "pixels": PIXELS if isinstance(sample_source.kind, Image) else VALUES,
            "shape": list(sample_source.shape),
            "told": sample_source.record,
        }
        other, what = _against(name, real, extractor)
        if features is not None and not metric.needs:
            how["features"] = {key: features.record[key] for key in ("sha256", "resize")}
        if extractor.score is not None and metric.needs == "captions":
            how["features"] = {key: extractor.score.record[key] for key in ("sha256", "resize")}
        if metric.real:
            how["real"] = what
        for score, result in metric.scores(samples, other, extractor.options).items():
            published = features is not None and features.published
            label = sample_metrics.label(name, score, features.name if features else "", published=published)
            found[score] = {
                "label": f"reconstruction {label}" if sample_source.reconstructs and metric.real else label,
                "value": result.value,
                "std": result.std,
                "how": how | dict(result.how),
                "features": dict(features.record) if features is not None and not metric.needs else None,
                "notes": list(result.notes),
            }
            if result.nearest is not None:
                suspects[score] = result.nearest
    return found, suspects


def _against(name: str, real: Reference, extractor: FeatureExtractor) -> tuple[Any, Any]:
    """(what the metric compares samples with, which that is)."""
    feature = METRICS[name].moments
    if feature in extractor.reference:
        statistics = extractor.reference[feature]
        return statistics, {"statistics_sha256": extractor.reference_sha256, "n": statistics.count}
    if feature and METRICS[name].real:
        assert real.gathered is not None
        return moments.statistics(real.gathered.moments[feature]), real.record
    return real.gathered, real.record


@jax.jit
def _pixels(images: Array) -> dict[str, Array]:
    """`report.pictures.to_uint8` on the devices, and which images [B] are not finite."""
    axes = tuple(range(1, images.ndim))
    x = jnp.clip(images.astype(jnp.float32), -1.0, 1.0)
    return {"pixels": jnp.rint((x + 1.0) * 127.5).astype(jnp.uint8), _NAN: ~jnp.isfinite(images).all(axis=axes)}


@jax.jit
def _values(x: Array) -> dict[str, Array]:
    """What stands for pixels of other data than images, x itself as float32, and which of x [B] are not finite."""
    axes = tuple(range(1, x.ndim))
    return {"pixels": x.astype(jnp.float32), _NAN: ~jnp.isfinite(x).all(axis=axes)}


@jax.jit
def _restoration(pixels: Array, originals: Array) -> dict[str, Array]:
    """PSNR and SSIM [B] of pixels against originals, as these are as pixels."""
    x, y = (a.astype(jnp.float32) / 127.5 - 1.0 for a in (_pixels(originals)["pixels"], pixels))
    found = {"psnr": similarity.psnr(x, y)}
    return found | ({"ssim": similarity.ssim(x, y)} if min(x.shape[1:3]) >= similarity.WINDOW else {})


def _refuse_nan(kept: Mapping[str, np.ndarray]) -> None:
    if kept[_NAN].any():
        raise UserError(
            f"{kept[_NAN].mean():.1%} of a batch of samples are NaN or infinite; the network or sampler has diverged"
        )


def _size(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
