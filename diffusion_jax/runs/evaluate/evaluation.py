"""Metrics of images against real ones: made once, called for many checkpoints and ways of sampling."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from diffusion_jax import experiment
from diffusion_jax.data.tokens import Tokenizer
from diffusion_jax.evals.sample_metrics import NearestNeighbors
from diffusion_jax.runs.evaluate import measured_samples, sample_sources
from diffusion_jax.runs.evaluate.feature_extractor import FeatureExtractor, MetricRequest
from diffusion_jax.runs.evaluate.measured_samples import Phase, Reference, SampleSource
from diffusion_jax.runs.evaluate.partial import PartialEvaluation
from diffusion_jax.runs.evaluate.real_images import RealImages, plain
from diffusion_jax.runs.sample.conditions import SampleRequest
from diffusion_jax.runs.workdir.restored import Trained
from diffusion_jax.train.state import Params


class Evaluation:
    """Computes the metrics called `names` of samples or of an autoencoder's reconstructions.

    The real images are those of the config's data, of `split` where given. `real` of them count (0: all; None: as many
    as there are seeds), and they are read once, at the first call. Sample i is drawn from seeds[i]. `batch` samples are
    drawn at once, rounded up to a multiple of the mesh's data x fsdp. Raises UserError where a metric lacks what it
    needs.
    """

    def __init__(
        self,
        config: ConfigDict,
        names: Sequence[str],
        metric_request: MetricRequest,
        mesh: Mesh,
        *,
        seeds: np.ndarray,
        batch: int,
        real: int | None = None,
        split: str | None = None,
        model: experiment.Model | None = None,
        tokenizer: Tokenizer | None = None,
    ):
        num = len(seeds)
        metric_request.check(names, num, real)
        share = mesh.shape["data"] * mesh.shape["fsdp"]
        self.size = -(-min(batch, num) // share) * share
        self.names, self.seeds, self.mesh = list(names), seeds, mesh
        self.config = plain(config, split, self.size)
        self.own = RealImages(self.config, num, model, tokenizer)
        self.real = self.own if real in (None, num) else RealImages(self.config, real or 0, model, tokenizer)
        self._metric_request = metric_request
        self._reference: Reference | None = None

    @functools.cached_property
    def extractor(self) -> FeatureExtractor:
        """Features and scores of images. Its weights are read at the first use; UserError where they are bad."""
        return self._metric_request.extractor(
            self.names, self.mesh, self.own.kind, experiment.shape(self.config), self.size
        )

    def samples_of(self, trained: Trained, program: Callable[..., Any], sample_request: SampleRequest) -> SampleSource:
        """Samples of a model, drawn by program, its `sample_program`."""
        captions = "clip_score" in self.names
        return sample_sources.of_samples(trained, program, sample_request, self.seeds, self.size, self.own, captions)

    def reconstructions_of(self, program: Callable[..., Any], params: Params) -> SampleSource:
        """The real images as an autoencoder reconstructs them; program is its `reconstruct_program`."""
        return sample_sources.of_reconstructions(program, params, self.mesh, self.own)

    def measure(
        self,
        sample_source: SampleSource,
        *,
        partial: PartialEvaluation | None = None,
        stopped: Callable[[], bool] = lambda: False,
        phase: Phase = measured_samples.no_phase,
        show: bool = True,
    ) -> tuple[dict[str, dict[str, Any]], dict[str, NearestNeighbors]]:
        """({metric: its value and how it was computed}, {metric: the samples nearest to real images}).

        With `partial` the features of each batch are saved there, and a later call goes on from them. Raises
        `real_images.Interrupted` once stopped() is true. phase("sample") is entered around each batch; show: with
        a progress bar.
        """
        measured_samples.check(self.names, sample_source)
        if self._reference is None:
            self._reference = measured_samples.gather_real(
                self.names, self.mesh, self.real, self.extractor, partial, phase, show
            )
        samples = measured_samples.gather_samples(
            self.names, sample_source, self.seeds, self.size, self.extractor, partial, stopped, phase, show
        )
        return measured_samples.scored(self.names, sample_source, samples, self._reference, self.extractor)
