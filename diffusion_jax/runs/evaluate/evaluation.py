"""An evaluation: made once, and called for many checkpoints and samplings."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from diffusion_jax import experiment
from diffusion_jax.data.tokens import Tokenizer
from diffusion_jax.evals.sample_metrics import NearestNeighbors
from diffusion_jax.experiment.autoencoder import Reconstruction
from diffusion_jax.runs.evaluate import measured_samples, sample_sources, scoring
from diffusion_jax.runs.evaluate.feature_extractor import FeatureExtractor, MetricRequest
from diffusion_jax.runs.evaluate.measured_samples import Phase, Reference, SampleSource
from diffusion_jax.runs.evaluate.partial import PartialEvaluation
from diffusion_jax.runs.evaluate.real_images import RealImages, plain
from diffusion_jax.runs.evaluate.results import Measured
from diffusion_jax.runs.sample.conditioning import SampleRequest
from diffusion_jax.runs.workdir.restored import Trained
from diffusion_jax.train.state import Params


@dataclasses.dataclass(frozen=True)
class EvaluationSettings:
    """Which metrics are computed, of which samples, against which real images."""

    metrics: Sequence[str]
    metric_request: MetricRequest
    seeds: np.ndarray  # int32 [N]; sample i is drawn from seeds[i]
    batch: int  # samples drawn at once; it is rounded up to a multiple of the mesh's data x fsdp
    real: int | None = None  # real images that samples are compared with; 0: all, None: as many as there are seeds
    split: str | None = None  # of the data; None: the config's


class Evaluation:
    """Computes metrics of samples, or of an autoencoder's reconstructions.

    The real images are those of the config's data, and they are read once, at the first call. model and tokenizer make
    their conditions. Raises UserError where a metric lacks what it needs.
    """

    def __init__(
        self,
        config: ConfigDict,
        settings: EvaluationSettings,
        mesh: Mesh,
        *,
        model: experiment.Model | None = None,
        tokenizer: Tokenizer | None = None,
    ):
        num, real = len(settings.seeds), settings.real
        settings.metric_request.check(settings.metrics, num, real)
        share = mesh.shape["data"] * mesh.shape["fsdp"]
        self.size = -(-min(settings.batch, num) // share) * share
        self.names, self.seeds, self.mesh = list(settings.metrics), settings.seeds, mesh
        self.config = plain(config, settings.split, self.size)
        # As many images as samples: their conditions, and the originals of restorations and reconstructions.
        self.data_images = RealImages(self.config, num, model, tokenizer)
        self.real = self.data_images if real in (None, num) else RealImages(self.config, real or 0, model, tokenizer)
        self._metric_request = settings.metric_request
        self._reference: Reference | None = None

    @functools.cached_property
    def extractor(self) -> FeatureExtractor:
        """The feature extractor of the metrics, whose weights are read at the first use.

        Raises UserError where the weights cannot be read or do not fit the metrics.
        """
        return self._metric_request.extractor(
            self.names, self.mesh, self.data_images.kind, experiment.shape(self.config), self.size
        )

    def samples_of(
        self, trained: Trained, program: Callable[..., jax.Array], sample_request: SampleRequest
    ) -> SampleSource:
        """Samples of a model, drawn by program, its `sample_program`."""
        captions = "clip_score" in self.names
        return sample_sources.of_samples(
            trained, program, sample_request, self.seeds, self.size, self.data_images, captions
        )

    def reconstructions_of(self, program: Callable[..., Reconstruction], params: Params) -> SampleSource:
        """The real images as an autoencoder reconstructs them; program is its `reconstruct_program`."""
        return sample_sources.of_reconstructions(program, params, self.mesh, self.seeds, self.data_images)

    def measure(
        self,
        sample_source: SampleSource,
        *,
        partial: PartialEvaluation | None = None,
        stopped: Callable[[], bool] = lambda: False,
        phase: Phase = measured_samples.no_phase,
        show: bool = True,
    ) -> tuple[dict[str, Measured], dict[str, NearestNeighbors]]:
        """({score: its value and how it was computed}, {score: the samples nearest to real images}).

        With `partial` the features of each batch are saved there, and a later call goes on from them. phase("sample")
        is entered around each batch; show: with a progress bar. Raises `real_images.Interrupted` once stopped() is
        true.
        """
        measured_samples.check_measurable(self.names, sample_source)
        if self._reference is None:
            self._reference = measured_samples.gather_real(
                self.names, self.mesh, self.real, self.extractor, partial, phase, show
            )
        samples = measured_samples.gather_samples(
            self.names, sample_source, self.extractor, partial, stopped, phase, show
        )
        return scoring.scored(self.names, sample_source, samples, self._reference, self.extractor)
