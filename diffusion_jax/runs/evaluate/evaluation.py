"""One evaluation of images against real ones, made once and called for many parameters and ways of sampling."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from diffusion_jax import experiment
from diffusion_jax.data.tokens import Tokenizer
from diffusion_jax.evals.sample_metrics import NearestNeighbors
from diffusion_jax.runs.evaluate import measured_samples
from diffusion_jax.runs.evaluate import sample_sources as subjects
from diffusion_jax.runs.evaluate.feature_extractor import FeatureExtractor, MetricRequest
from diffusion_jax.runs.evaluate.measured_samples import Phase, Reference, SampleSource
from diffusion_jax.runs.evaluate.partial import PartialEvaluation
from diffusion_jax.runs.evaluate.real_images import RealImages, plain
from diffusion_jax.runs.sample.conditions import SampleRequest
from diffusion_jax.runs.workdir.restored import Trained
from diffusion_jax.train.state import Params


class Evaluation:
    """Measures samples or reconstructions by the metrics names.

    The real images are those of config's data, of split where given, and are gone through once, at the first call:
    `real` of them (0: all, None: as many as there are seeds). Sample i has seeds[i]; batch is how many are drawn at
    once, rounded up to fill the mesh. Raises UserError for metrics that lack what they need.
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
        self._judged = metric_request
        self._reference: Reference | None = None

    @functools.cached_property
    def extractor(self) -> FeatureExtractor:
        """What measures the images; its weights are read at the first use, where UserError is raised for bad ones."""
        data = self.config.data
        return self._judged.extractor(self.names, self.mesh, (data.height, data.width, data.channels), self.size)

    def samples_of(self, trained: Trained, program: Callable[..., Any], sample_request: SampleRequest) -> SampleSource:
        """The samples of a model by its `sample_program`."""
        captions = "clip_score" in self.names
        return subjects.of_samples(trained, program, sample_request, self.seeds, self.size, self.own, captions)

    def reconstructions_of(self, program: Callable[..., Any], params: Params) -> SampleSource:
        """What an autoencoder makes of the real images, by its `reconstruct_program`."""
        return subjects.of_reconstructions(program, params, self.mesh, self.own)

    def measure(
        self,
        sample_source: SampleSource,
        *,
        partial: PartialEvaluation | None = None,
        stopped: Callable[[], bool] = lambda: False,
        phase: Phase = measured_samples.no_phase,
        show: bool = True,
    ) -> tuple[dict[str, dict[str, Any]], dict[str, NearestNeighbors]]:
        """`measured_samples.scored` of the subject: (each score, the samples that a score picks out).

        What is gathered is kept in unfinished, from which a later call goes on. Raises Interrupted where stopped says
        so. phase("sample") is entered around each batch; show draws a bar of progress.
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
