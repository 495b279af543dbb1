"""From the features of samples and of real images to scores, each with the choices that it depends on."""

from collections.abc import Mapping, Sequence

from diffusion_jax.evals import moments, sample_metrics
from diffusion_jax.evals.gathering import Gathered
from diffusion_jax.evals.moments import Statistics
from diffusion_jax.evals.sample_metrics import METRICS, NearestNeighbors
from diffusion_jax.modalities import Image
from diffusion_jax.runs.evaluate.feature_extractor import PIXELS, VALUES, FeatureExtractor
from diffusion_jax.runs.evaluate.measured_samples import Reference, SampleSource
from diffusion_jax.runs.evaluate.results import Measured


def scored(
    names: Sequence[str], sample_source: SampleSource, samples: Gathered, real: Reference, extractor: FeatureExtractor
) -> tuple[dict[str, Measured], dict[str, NearestNeighbors]]:
    """({score: its value and how it was computed}, {score: the samples nearest to real images})."""
    features = extractor.features
    found: dict[str, Measured] = {}
    nearest: dict[str, NearestNeighbors] = {}
    for name in names:
        metric = METRICS[name]
        how: dict[str, object] = {
            "n": samples.count,
            "pixels": PIXELS if isinstance(sample_source.kind, Image) else VALUES,
            "shape": list(sample_source.shape),
            "told": sample_source.conditions,
        }
        other, record = _reference_of(name, real, extractor)
        if features is not None and not metric.needs:
            how["features"] = {key: features.record[key] for key in ("sha256", "resize")}
        if extractor.score is not None and metric.needs == "captions":
            how["features"] = {key: extractor.score.record[key] for key in ("sha256", "resize")}
        if metric.real:
            how["real"] = record
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
                nearest[score] = result.nearest
    return found, nearest


def _reference_of(
    name: str, real: Reference, extractor: FeatureExtractor
) -> tuple[Statistics | Gathered | None, Mapping[str, object] | None]:
    """(the statistics or features that the metric compares samples with, the record of their images)."""
    feature = METRICS[name].moments
    if feature in extractor.reference:
        statistics = extractor.reference[feature]
        return statistics, {"statistics_sha256": extractor.reference_sha256, "n": statistics.count}
    if feature and METRICS[name].real:
        assert real.gathered is not None
        return moments.statistics(real.gathered.moments[feature]), real.record
    return real.gathered, real.record
