"""Metrics of samples against real images: samples are drawn and reduced to features on the devices, by batches."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from diffusion_jax.core import similarity
from diffusion_jax.errors import UserError
from diffusion_jax.evals import sample_metrics
from diffusion_jax.evals.gathering import NOTHING, Gathered, Gathering, Wanted
from diffusion_jax.evals.sample_metrics import METRICS
from diffusion_jax.modalities import Image, Modality
from diffusion_jax.models.features import Features
from diffusion_jax.report.progress import progress
from diffusion_jax.runs.evaluate.feature_extractor import FeatureExtractor
from diffusion_jax.runs.evaluate.partial import PartialEvaluation
from diffusion_jax.runs.evaluate.real_images import Interrupted, RealImages
from diffusion_jax.train import sharding
from diffusion_jax.train.interruptible import Abandoned, interruptible

Phase = Callable[[str], AbstractContextManager[None]]
"""name of a phase -> a context that times it, such as `train.faults.Watchdog.phase`."""

Arrays = TypeVar("Arrays", bound=Mapping[str, Array])

_NAN = "nan"


def no_phase(name: str) -> AbstractContextManager[None]:
    """The phase of an evaluation without a watchdog; entering it does nothing."""
    return contextlib.nullcontext()


@dataclasses.dataclass(frozen=True)
class SampleBatch:
    """Conditions and originals of a batch of samples; every array leads with B."""

    cond: Mapping[str, np.ndarray]
    originals: np.ndarray | None = None  # [B, *S, C] in the model's units: the images that samples restore
    captions: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class SampleSource:
    """The samples that are measured: one of shape [*S, C] for each of N seeds, drawn in batches of batch_size."""

    mesh: Mesh
    kind: Modality
    shape: tuple[int, ...]
    seeds: np.ndarray  # int32 [N]
    batch_size: int
    draw: Callable[[np.ndarray, Mapping[str, np.ndarray]], Array]
    """(seeds int32 [B], cond) -> samples [B, *S, C] in the model's units, on the devices."""
    batches: Callable[[int], Iterator[SampleBatch]]
    """number of the first batch -> that batch and all after it."""
    conditions: str | Mapping[str, object]  # of the samples, as the result's "told" has them
    restores: bool = False  # whether its samples have originals
    reconstructs: bool = False  # whether it is an autoencoder, which draws no samples
    captioned: bool = False  # whether its samples have captions


@dataclasses.dataclass(frozen=True)
class Reference:
    """Features gathered of the real images, and the record of which images these are."""

    gathered: Gathered | None
    record: Mapping[str, object] | None


def check_measurable(names: Sequence[str], sample_source: SampleSource) -> None:
    """Raises UserError for a metric that these samples cannot have, such as ssim where they have no originals."""
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
    """The features of real images that the metrics need; none where a file of statistics stands for the images.

    With `partial` the features are read from there or, once computed, saved there. phase("sample") is entered around
    each batch; show: with a progress bar.
    """
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
    """The wanted features of real images. phase("sample") is entered around each batch; show: with a progress bar."""
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
    extractor: FeatureExtractor,
    partial: PartialEvaluation | None = None,
    stopped: Callable[[], bool] = lambda: False,
    phase: Phase = no_phase,
    show: bool = True,
) -> Gathered:
    """The features of the samples that the metrics need.

    With `partial` gathering goes on from the features saved there, and saves there from time to time. phase("sample")
    is entered around each batch; show: with a progress bar. Raises Interrupted, after a save, where stopped() is true
    between two batches or a signal arrives within one, and UserError where a sample is not finite.
    """
    start = (partial.of("samples")[0] if partial else None) or NOTHING
    wanted = sample_metrics.wanted(names)
    wanted = dataclasses.replace(wanted, kept=(*wanted.kept, _NAN))
    gathering = Gathering(wanted, start, everywhere=sharding.replicated(sample_source.mesh), inspect=_refuse_nan)
    seeds, size = sample_source.seeds, sample_source.batch_size
    num = len(seeds)
    first = start.count // size  # batches are gathered whole
    shown = progress(num, start=start.count, description="samples", unit="samples", show=show)
    with shown as bar, _saved_where_interrupted(gathering, partial):
        for i, batch in zip(range(first, -(-num // size)), sample_source.batches(first), strict=False):
            take = np.arange(i * size, (i + 1) * size).clip(max=num - 1)
            done = min((i + 1) * size, num)
            call = functools.partial(_of_samples, sample_source, seeds[take], batch, extractor)
            compiling = "compiling, then " if i == first else ""
            with phase("sample"), bar.doing(f"{compiling}drawing and measuring {size} samples"):
                gathering.add(done - i * size, _computed(call, gathering.count, num))
            bar.update(done)
            if stopped() and done < num:
                raise Interrupted(done, num)
            if partial is not None and done < num and partial.due():
                partial.write("samples", gathering.so_far())
    return gathering.so_far()


@contextlib.contextmanager
def _saved_where_interrupted(gathering: Gathering, partial: PartialEvaluation | None) -> Iterator[None]:
    """A context in which Interrupted saves the features gathered since it was entered, if any, and is raised on."""
    before = gathering.count
    try:
        yield
    except Interrupted:
        if partial is not None and gathering.count > before:
            partial.write("samples", gathering.so_far())
        raise


def _of_samples(
    sample_source: SampleSource, seeds: np.ndarray, batch: SampleBatch, extractor: FeatureExtractor
) -> dict[str, Array]:
    """{feature: its values [B, ...]} of the samples of seeds [B], for all metrics."""
    finished = _pixels if isinstance(sample_source.kind, Image) else _values
    drawn = finished(sample_source.draw(seeds, batch.cond))
    features: dict[str, Array] = {_NAN: drawn[_NAN]}
    if extractor.features is not None:
        features |= extractor.features.apply(drawn["pixels"])
    if batch.originals is not None:
        features |= _restoration(drawn["pixels"], batch.originals)
    if extractor.score is not None:
        features["clip_score"] = extractor.score.apply(drawn["pixels"], batch.captions)
    return features


def _computed(call: Callable[[], Arrays], done: int, num: int) -> Arrays:
    """The arrays of call, once they are computed. Raises Interrupted(done, num) where a signal arrives first."""
    try:
        return interruptible(lambda: jax.block_until_ready(call()))
    except Abandoned:
        raise Interrupted(done, num) from None


@jax.jit
def _pixels(images: Array) -> dict[str, Array]:
    """{"pixels": `report.pictures.to_uint8` of the images, on the devices, "nan": bool [B], images not finite}."""
    axes = tuple(range(1, images.ndim))
    x = jnp.clip(images.astype(jnp.float32), -1.0, 1.0)
    return {"pixels": jnp.rint((x + 1.0) * 127.5).astype(jnp.uint8), _NAN: ~jnp.isfinite(images).all(axis=axes)}


@jax.jit
def _values(x: Array) -> dict[str, Array]:
    """{"pixels": x as float32, which stands for the pixels of other data than images, "nan": bool [B], not finite}."""
    axes = tuple(range(1, x.ndim))
    return {"pixels": x.astype(jnp.float32), _NAN: ~jnp.isfinite(x).all(axis=axes)}


@jax.jit
def _restoration(pixels: Array, originals: Array) -> dict[str, Array]:
    """PSNR and SSIM [B] of pixels against the originals, which are rounded to pixels too."""
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
