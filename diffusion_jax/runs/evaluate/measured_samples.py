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

from diffusion_jax.models.features import Features
from diffusion_jax.core import autoencoding
from diffusion_jax.errors import UserError
from diffusion_jax.evals import moments, sample_metrics
from diffusion_jax.evals.gathering import NOTHING, Gathered, Gathering, Wanted
from diffusion_jax.evals.sample_metrics import METRICS, Suspects
from diffusion_jax.report import pictures
from diffusion_jax.report.progress import progress
from diffusion_jax.runs.evaluate.real_images import RealImages
from diffusion_jax.runs.evaluate.feature_extractor import PIXELS, Ruler
from diffusion_jax.runs.evaluate.partial import Unfinished
from diffusion_jax.train import sharding
from diffusion_jax.train.interruptible import Abandoned, interruptible

Phase = Callable[[str], AbstractContextManager[None]]
"""As `train.faults.Watchdog.phase`."""

_NAN = "nan"


def no_phase(name: str) -> AbstractContextManager[None]:
    """Of an evaluation that no watchdog looks after."""
    return contextlib.nullcontext()


@dataclasses.dataclass(frozen=True)
class Told:
    """What samples are made of, beside their seeds; every array leads with B."""

    cond: Mapping[str, np.ndarray]
    originals: np.ndarray | None = None  # [B, H, W, C] in [-1, 1]: what they are to look like
    captions: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Subject:
    """What is measured: a model that draws images of this shape."""

    mesh: Mesh
    shape: tuple[int, int, int]
    draw: Callable[[np.ndarray, Mapping[str, np.ndarray]], Array]
    """(seeds int32 [B], cond) -> images [B, H, W, C] in about [-1, 1], on the devices."""
    told: Callable[[int], Iterator[Told]]
    """The batches from the given one on."""
    record: Any  # what they are told, as the result says it
    restores: bool = False  # whether its images have originals
    reconstructs: bool = False  # whether it draws nothing of its own
    captioned: bool = False  # whether it is told captions


class Interrupted(Exception):
    """The evaluation was asked to stop after so many of its samples; what it has is saved where it can be."""

    def __init__(self, done: int, num: int):
        super().__init__(f"{done:,} of {num:,} samples")


@dataclasses.dataclass(frozen=True)
class Reference:
    """What is gathered of the real images, and which these are."""

    gathered: Gathered | None
    record: Mapping[str, Any] | None


def check(names: Sequence[str], subject: Subject) -> None:
    """Raises UserError for a metric that the model cannot have."""
    for name in names:
        needs = METRICS[name].needs
        if needs == "originals" and not subject.restores:
            raise UserError(
                f"{name} compares an image with its original: it is of an autoencoder, or of a super-resolution or "
                "inpainting model that is told of the data's own images; this model has no originals"
            )
        if needs == "captions" and not subject.captioned:
            raise UserError(f"{name} compares an image with its caption; this model is told none")
        if name == "ssim" and min(subject.shape[:2]) < autoencoding.WINDOW:
            side = autoencoding.WINDOW
            raise UserError(f"ssim looks at {side} x {side} windows; the images are {_size(subject.shape[:2])}")
        if subject.reconstructs and name in ("memorisation", "inception_score"):
            raise UserError(f"{name} is of samples; an autoencoder draws none")


def gather_real(
    names: Sequence[str],
    mesh: Mesh,
    real: RealImages,
    ruler: Ruler,
    unfinished: Unfinished | None = None,
    phase: Phase = no_phase,
    show: bool = True,
) -> Reference:
    """What the metrics take of real images; nothing where none looks at them, or only at a file of statistics."""
    against = [n for n in names if METRICS[n].real and METRICS[n].moments not in ruler.reference]
    if not against:
        return Reference(None, None)
    assert ruler.features is not None
    if unfinished is not None and (found := unfinished.of("real"))[0] is not None:
        return Reference(*found)
    gathered = featurise(ruler.features, mesh, real, sample_metrics.wanted(against), phase, show)
    if unfinished is not None:
        unfinished.write("real", gathered, real.record())
    return Reference(gathered, real.record())


def featurise(
    features: Features, mesh: Mesh, real: RealImages, wanted: Wanted, phase: Phase = no_phase, show: bool = True
) -> Gathered:
    """What is wanted of the features of real images, where show with a bar of progress."""
    gathering = Gathering(wanted, everywhere=sharding.replicated(mesh))
    done = 0
    for take, examples in real.batches("real images" if show else ""):
        with phase("sample"):
            gathering.add(take, _computed(functools.partial(_of_real, features, examples["image"]), done, real.num))
        done += take
    return gathering.so_far()


def _of_real(features: Features, images: np.ndarray) -> Mapping[str, Array]:
    return features.apply(pictures.to_uint8(images))


def gather_samples(
    names: Sequence[str],
    subject: Subject,
    seeds: np.ndarray,
    size: int,
    ruler: Ruler,
    unfinished: Unfinished | None = None,
    stopped: Callable[[], bool] = lambda: False,
    phase: Phase = no_phase,
    show: bool = True,
) -> Gathered:
    """What the metrics take of the samples of seeds, drawn in batches of size; goes on from unfinished.

    Raises Interrupted, what there is being saved, where stopped says so between two batches. phase("sample") is entered
    around each batch.
    """
    start = (unfinished.of("samples")[0] if unfinished else None) or NOTHING
    wanted = sample_metrics.wanted(names)
    wanted = dataclasses.replace(wanted, kept=(*wanted.kept, _NAN))
    gathering = Gathering(wanted, start, everywhere=sharding.replicated(subject.mesh), inspect=_refuse_nan)
    num = len(seeds)
    first = start.count // size  # a batch is taken in as a whole
    with progress(num, start=start.count, description="samples", unit="samples", show=show) as bar:
        for i, told in zip(range(first, -(-num // size)), subject.told(first), strict=False):
            take = np.arange(i * size, (i + 1) * size).clip(max=num - 1)
            done = min((i + 1) * size, num)
            with phase("sample"):
                try:
                    features = _computed(
                        functools.partial(_of_samples, subject, seeds[take], told, ruler), gathering.count, num
                    )
                except Interrupted:
                    if unfinished is not None and gathering.count > start.count:
                        unfinished.write("samples", gathering.so_far())
                    raise
                gathering.add(done - i * size, features)
            bar.update(done)
            halt = stopped()
            if unfinished is not None and done < num and (halt or unfinished.due()):
                unfinished.write("samples", gathering.so_far())
            if halt and done < num:
                raise Interrupted(done, num)
    return gathering.so_far()


def _of_samples(subject: Subject, seeds: np.ndarray, told: Told, ruler: Ruler) -> dict[str, Array]:
    """What is drawn of the seeds as every metric looks at it, by name, each [B, ...]."""
    drawn = _pixels(subject.draw(seeds, told.cond))
    features: dict[str, Array] = {_NAN: drawn[_NAN]}
    if ruler.features is not None:
        features |= ruler.features.apply(drawn["pixels"])
    if told.originals is not None:
        features |= _restoration(drawn["pixels"], told.originals)
    if ruler.score is not None:
        features["clip_score"] = ruler.score.apply(drawn["pixels"], told.captions)
    return features


def _computed(call: Callable[[], Any], done: int, num: int) -> Any:
    """The arrays of call once they are computed; raises Interrupted, of done samples, where a signal came before."""
    try:
        return interruptible(lambda: jax.block_until_ready(call()))
    except Abandoned:
        raise Interrupted(done, num) from None


def scored(
    names: Sequence[str], subject: Subject, samples: Gathered, real: Reference, ruler: Ruler
) -> tuple[dict[str, dict[str, Any]], dict[str, Suspects]]:
    """(each score by name, with its label, spread and how it was taken; the samples that a score picks out)."""
    features = ruler.features
    found: dict[str, dict[str, Any]] = {}
    suspects: dict[str, Suspects] = {}
    for name in names:
        metric = METRICS[name]
        how: dict[str, Any] = {
            "n": samples.count,
            "pixels": PIXELS,
            "shape": list(subject.shape),
            "told": subject.record,
        }
        other, what = _against(name, real, ruler)
        if features is not None and not metric.needs:
            how["features"] = {key: features.record[key] for key in ("sha256", "resize")}
        if ruler.score is not None and metric.needs == "captions":
            how["features"] = {key: ruler.score.record[key] for key in ("sha256", "resize")}
        if metric.real:
            how["real"] = what
        for score, result in metric.scores(samples, other, ruler.options).items():
            published = features is not None and features.published
            label = sample_metrics.label(name, score, features.name if features else "", published=published)
            found[score] = {
                "label": f"reconstruction {label}" if subject.reconstructs and metric.real else label,
                "value": result.value,
                "std": result.std,
                "how": how | dict(result.how),
                "features": dict(features.record) if features is not None and not metric.needs else None,
                "notes": list(result.notes),
            }
            if result.suspects is not None:
                suspects[score] = result.suspects
    return found, suspects


def _against(name: str, real: Reference, ruler: Ruler) -> tuple[Any, Any]:
    """(what the metric compares samples with, which that is)."""
    feature = METRICS[name].moments
    if feature in ruler.reference:
        statistics = ruler.reference[feature]
        return statistics, {"statistics_sha256": ruler.reference_sha256, "n": statistics.count}
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
def _restoration(pixels: Array, originals: Array) -> dict[str, Array]:
    """PSNR and SSIM [B] of pixels against originals, as these are as pixels."""
    x, y = (a.astype(jnp.float32) / 127.5 - 1.0 for a in (_pixels(originals)["pixels"], pixels))
    found = {"psnr": autoencoding.psnr(x, y)}
    return found | ({"ssim": autoencoding.ssim(x, y)} if min(x.shape[1:3]) >= autoencoding.WINDOW else {})


def _refuse_nan(kept: Mapping[str, np.ndarray]) -> None:
    if kept[_NAN].any():
        raise UserError(
            f"{kept[_NAN].mean():.1%} of a batch of samples are NaN or infinite; the network or sampler has diverged"
        )


def _size(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
