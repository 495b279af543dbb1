"""One evaluation of images against real ones, made once and called for many parameters and ways of sampling."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from diffusion_jax import build
from diffusion_jax.data.tokens import Tokenizer
from diffusion_jax.evals.sample_metrics import Suspects
from diffusion_jax.runs import measured_samples, subjects
from diffusion_jax.runs.conditions import SampleRequest
from diffusion_jax.runs.measured_samples import Phase, Reference, Subject
from diffusion_jax.runs.real_images import RealImages, plain
from diffusion_jax.runs.ruler import Judged, Ruler
from diffusion_jax.runs.trained import Trained
from diffusion_jax.runs.unfinished import Unfinished
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
        judged: Judged,
        mesh: Mesh,
        *,
        seeds: np.ndarray,
        batch: int,
        real: int | None = None,
        split: str | None = None,
        model: build.Model | None = None,
        tokenizer: Tokenizer | None = None,
    ):
        num = len(seeds)
        judged.check(names, num, real)
        share = mesh.shape["data"] * mesh.shape["fsdp"]
        self.size = -(-min(batch, num) // share) * share
        self.names, self.seeds, self.mesh = list(names), seeds, mesh
        self.config = plain(config, split, self.size)
        self.own = RealImages(self.config, num, model, tokenizer)
        self.real = self.own if real in (None, num) else RealImages(self.config, real or 0, model, tokenizer)
        self._judged = judged
        self._reference: Reference | None = None

    @functools.cached_property
    def ruler(self) -> Ruler:
        """What measures the images; its weights are read at the first use, where UserError is raised for bad ones."""
        data = self.config.data
        return self._judged.ruler(self.names, self.mesh, (data.height, data.width, data.channels), self.size)

    def samples_of(self, trained: Trained, program: Callable[..., Any], request: SampleRequest) -> Subject:
        """The samples of a model by its `sample_program`."""
        captions = "clip_score" in self.names
        return subjects.of_samples(trained, program, request, self.seeds, self.size, self.own, captions)

    def reconstructions_of(self, program: Callable[..., Any], params: Params) -> Subject:
        """What an autoencoder makes of the real images, by its `reconstruct_program`."""
        return subjects.of_reconstructions(program, params, self.mesh, self.own)

    def measure(
        self,
        subject: Subject,
        *,
        unfinished: Unfinished | None = None,
        stopped: Callable[[], bool] = lambda: False,
        phase: Phase = measured_samples.no_phase,
        show: bool = True,
    ) -> tuple[dict[str, dict[str, Any]], dict[str, Suspects]]:
        """`measured_samples.scored` of the subject: (each score, the samples that a score picks out).

        What is gathered is kept in unfinished, from which a later call goes on. Raises Interrupted where stopped says
        so. phase("sample") is entered around each batch; show draws a bar of progress.
        """
        measured_samples.check(self.names, subject)
        if self._reference is None:
            self._reference = measured_samples.gather_real(
                self.names, self.mesh, self.real, self.ruler, unfinished, phase, show
            )
        samples = measured_samples.gather_samples(
            self.names, subject, self.seeds, self.size, self.ruler, unfinished, stopped, phase, show
        )
        return measured_samples.scored(self.names, subject, samples, self._reference, self.ruler)
