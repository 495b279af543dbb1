"""The feature extractor of an evaluation: a network's features, and statistics that stand for real images."""

import contextlib
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
from jax.sharding import Mesh

from diffusion_jax import experiment
from diffusion_jax.errors import UserError
from diffusion_jax.evals import moments, sample_metrics
from diffusion_jax.evals.moments import Statistics
from diffusion_jax.evals.sample_metrics import METRICS, Options
from diffusion_jax.modalities import Image, Modality
from diffusion_jax.models import clip
from diffusion_jax.models import features as build_features
from diffusion_jax.models.clip import ClipScore
from diffusion_jax.models.features import Features
from diffusion_jax.runs.workdir import pretrained
from diffusion_jax.runs.workdir.paths import Workdir
from diffusion_jax.train.checkpoint import Checkpoints

PIXELS = "uint8 rint((x + 1) 127.5), clipped to [0, 255]"
"""How a sample of an image becomes pixels, as results record it."""

VALUES = "float32, in the model's units"
"""The same for other data than images, whose values are measured as they are."""

WEIGHTS = {
    build_features.INCEPTION: "FILE.safetensors, the weights of FID's InceptionV3",
    clip.CLIP: "FOLDER, a CLIP model as transformers saves it",
}
"""{name of features that no workdir has: what --weights is for them}."""


@dataclasses.dataclass(frozen=True)
class MetricRequest:
    """Features and options of the metrics, as the command's flags."""

    features: str = ""  # inception, clip, values, or the workdir of a classifier
    weights: Path | None = None  # of inception or clip
    reference: Path | None = None  # statistics for fd and sfd, instead of real images
    kid_size: int = 1000
    kid_subsets: int = 100
    clip: Path | None = None  # the model of clip_score

    @property
    def options(self) -> Options:
        """The options of the metrics."""
        return Options(self.kid_size, self.kid_subsets)

    def check(self, names: Sequence[str], num: int, real: int | None = None) -> None:
        """Raises UserError where a flag does not suit the metrics, or they need features or more images.

        num is the number of samples, real that of real images; 0: all, None: num.
        """
        of_features = sample_metrics.of_features(names)
        if self.clip is None and "clip_score" in names:
            raise UserError(f"clip_score needs --clip={WEIGHTS[clip.CLIP]}, such as openai/clip-vit-base-patch32's")
        if self.clip is not None and "clip_score" not in names:
            raise UserError("--clip is of clip_score; add it to --metrics")
        for flag, value in (("features", self.features), ("reference", self.reference)):
            if value and not of_features:
                raise UserError(
                    f"--{flag} is of {', '.join(sample_metrics.of_features(METRICS))}; add one to --metrics"
                )
        if not names:
            return
        sample_metrics.check_counts(names, min(num, real or num), self.options)
        if of_features:
            self.check_features(of_features[0])
        if self.reference is not None and not any(METRICS[name].moments for name in names):
            raise UserError("--reference is of fd and sfd; add one to --metrics")

    def check_features(self, metric: str) -> None:
        """Raises UserError where there are no features, which the metric called metric needs, or not their weights."""
        if not self.features:
            raise UserError(
                f"{metric} needs features: give --features=inception --weights=FILE.safetensors, "
                "--features=WORKDIR of a classifier trained on this data, or --features=values for small arrays"
            )
        if self.features in WEIGHTS and self.weights is None:
            raise UserError(f"--features={self.features} needs --weights={WEIGHTS[self.features]}")
        if self.features not in WEIGHTS and self.weights is not None:
            raise UserError(f"--weights is of --features={' or '.join(WEIGHTS)}; a classifier's are in its workdir")

    def extractor(
        self, names: Sequence[str], mesh: Mesh, kind: Modality, shape: tuple[int, ...], size: int
    ) -> "FeatureExtractor":
        """The extractor for batches of size examples of this shape [*S, C].

        Raises UserError where the features, the weights or the reference do not fit the examples or the metrics.
        """
        if not isinstance(kind, Image) and (self.features in WEIGHTS or self.clip is not None):
            network = self.features if self.features in WEIGHTS else "clip_score"
            raise UserError(
                f"{network} looks at images, and these are {kind.noun}; give --features=values, or the workdir of a "
                "classifier trained on this data"
            )
        score = clip.score(self.clip, mesh) if self.clip is not None else None
        if not sample_metrics.of_features(names):
            return FeatureExtractor(None, self.options, score=score)
        features = self._features(mesh)
        images = jax.ShapeDtypeStruct((size, *shape), kind.dtype)
        widths = {name: a.shape[-1] for name, a in jax.eval_shape(features.apply, images).items()}
        wanted = sample_metrics.wanted(sample_metrics.of_features(names))
        if lacking := sorted(set(wanted.moments + wanted.kept) - set(widths)):
            bad = next(n for n in names if {METRICS[n].moments, *METRICS[n].kept} & set(lacking))
            raise UserError(
                f"{bad} takes {lacking[0]} features, which --features=inception has; {features.name} has none"
            )
        if self.reference is None:
            return FeatureExtractor(features, self.options, score=score)
        reference = {}
        for feature in wanted.moments:
            statistics = moments.load_statistics(self.reference, spatial=feature == "spatial")
            if len(statistics.mean) != widths[feature]:
                raise UserError(
                    f"--reference={self.reference} is of {len(statistics.mean)} features, {features.name} has "
                    f"{widths[feature]}; give statistics of these features"
                )
            reference[feature] = statistics
        _check_described(self.reference, features, shape)
        return FeatureExtractor(features, self.options, reference, moments.sha256(self.reference), score)

    def _features(self, mesh: Mesh) -> Features:
        if self.features == build_features.INCEPTION:
            assert self.weights is not None
            return build_features.inception(self.weights, mesh)
        if self.features == clip.CLIP:
            assert self.weights is not None
            return clip.features(self.weights, mesh)
        if self.features == build_features.VALUES:
            return build_features.values(mesh)
        root = Path(self.features)
        workdir = Workdir(root)
        config = workdir.read_config()
        if config.task != "classifier":
            raise UserError(
                f"{root} has a run of task {config.task}; --features is inception, clip, values or the workdir of a "
                "classifier"
            )
        network = pretrained.read_classifier(root, config.schedule, 1.0)
        with contextlib.closing(Checkpoints(workdir.checkpoints, read_only=True)) as checkpoints:
            name = f"classifier {root}, step {checkpoints.latest()}"
        return build_features.classifier(network, experiment.schedule(config.schedule), name, mesh)


@dataclasses.dataclass(frozen=True)
class FeatureExtractor:
    """Features and scores of batches of images, on every device of the mesh."""

    features: Features | None  # None: no metric needs them
    options: Options
    reference: Mapping[str, Statistics] = dataclasses.field(default_factory=dict)  # by feature
    reference_sha256: str = ""
    score: ClipScore | None = None


def described(path: Path) -> Path:
    """The JSON beside a file of statistics, with features and shape; published statistics have no such file."""
    return path.with_suffix(".json")


def _check_described(path: Path, features: Features, shape: tuple[int, ...]) -> None:
    """Raises UserError where the statistics of path are of other features or of images of another shape."""
    if not described(path).is_file():
        return
    try:
        record = json.loads(described(path).read_text(encoding="utf-8"))
        other, size = record["features"]["sha256"], tuple(record["shape"])
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{described(path)} does not say what {path} is of; make the statistics anew") from None
    if other != features.record["sha256"]:
        raise UserError(
            f"--reference={path} is of {record['features']['extractor']}, of other weights than {features.name}"
        )
    if size != tuple(shape):
        raise UserError(f"--reference={path} is of images {list(size)}, the model draws {list(shape)}")
