"""`diffusion-jax evaluate`: metrics of a checkpoint, each with everything that is needed to repeat it."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
from ml_collections import ConfigDict

from diffusion_jax import config as configs
from diffusion_jax import experiment
from diffusion_jax.errors import UserError
from diffusion_jax.evals import sample_metrics
from diffusion_jax.evals.moments import sha256
from diffusion_jax.experiment.autoencoder import Reconstruction
from diffusion_jax.modalities import Image
from diffusion_jax.report.atomic import replace_file
from diffusion_jax.runs.evaluate import measured_samples, nearest_neighbors, sample_sources
from diffusion_jax.runs.evaluate.evaluation import Evaluation, EvaluationSettings
from diffusion_jax.runs.evaluate.feature_extractor import MetricRequest
from diffusion_jax.runs.evaluate.likelihood import BITS_PER_DIM, Likelihood, bits_per_dim
from diffusion_jax.runs.evaluate.measured_samples import SampleSource
from diffusion_jax.runs.evaluate.partial import PartialEvaluation
from diffusion_jax.runs.evaluate.real_images import Interrupted
from diffusion_jax.runs.evaluate.results import Measured, Result, Subject, line, result_of, write
from diffusion_jax.runs.sample.conditioning import SampleRequest, record
from diffusion_jax.runs.workdir.output_folder import check_writable
from diffusion_jax.runs.workdir.paths import Workdir
from diffusion_jax.runs.workdir.restored import NO_GUIDES, GuideRequest, Trained, restore, seeds_from, weights_name
from diffusion_jax.train import manifest, sharding
from diffusion_jax.train.faults import stop_on_signal
from diffusion_jax.train.interruptible import Abandoned

METRICS = (BITS_PER_DIM, *sample_metrics.METRICS)

AGAIN = 75
"""The exit status of an evaluation that a signal stopped, EX_TEMPFAIL: the same command goes on."""


@dataclasses.dataclass(frozen=True)
class Request:
    """Which metrics of which checkpoint are computed, and how samples are drawn: what a result depends on."""

    root: Path
    metrics: tuple[str, ...]
    num: int
    seed: int
    batch: int
    sample_request: SampleRequest
    step: int | None
    average: bool | float
    split: str | None
    likelihood: Likelihood
    metric_request: MetricRequest
    overrides: Mapping[str, object]
    data: str | None = None  # real images, as data.source names them; None: the config's
    real: int | None = None  # images that samples are compared with; 0: all, None: num
    guided_by: GuideRequest = NO_GUIDES


def evaluate(request: Request, *, out: Path | None, save_seconds: float = 60.0) -> Path:
    """Measures a checkpoint of a workdir by each metric, prints the results, and writes them.

    Sample i has the seed request.seed + i. Returns the JSON file: out or, for None, a new file in the workdir's
    evaluations/. The features gathered are saved beside it about every save_seconds, and an evaluation that was killed
    goes on from there. A SIGINT or SIGTERM saves them too, and raises SystemExit(AGAIN). Raises UserError, before
    anything is drawn, where the model, the data or the number of samples does not suit a metric.
    """
    if out is not None and (out.exists() or out.suffix != ".json"):
        raise UserError(f"--out={out} is to be a new .json file; give another")
    if not save_seconds >= 0:
        raise UserError(f"--save_seconds is at least 0; got {save_seconds}")
    folder = request.root / "evaluations" if out is None else out.parent
    if request.root.is_dir():  # `Evaluator` raises where root is no workdir
        check_writable(folder)
    with stop_on_signal() as stop:
        try:
            result, picture = Evaluator(request).measure(request, folder, save_seconds, lambda: stop.signal is not None)
        except Interrupted as done:
            print(f"stopped by {stop.signal} after {done}; the same command goes on", flush=True)
            raise SystemExit(AGAIN) from None
    out = write(result, folder, out)
    if picture is not None:
        replace_file(out.with_suffix(".memorisation.png"), picture)
    for entry in result["metrics"].values():
        print(line(entry), *(f"  note: {note}" for note in entry.get("notes", ())), sep="\n")
    print(f"step {result['subject']['checkpoint_step']}, {result['subject']['weights']}: {out}")
    return out


class Evaluator:
    """Measures checkpoints of one workdir by the same metrics.

    Its requests differ in checkpoint, average and sampling alone; they share compiled programs, the feature extractor
    and the features of real images. first is one of them. Raises UserError for values of first that are out of range.
    """

    def __init__(self, first: Request):
        self._names = check_metrics(first.metrics)
        if first.batch < 1:
            raise UserError(f"--batch is at least 1; got {first.batch}")
        if first.real is not None and first.real < 0:
            raise UserError(f"--real is at least 0, all images; got {first.real}")
        self._of_samples = [name for name in self._names if name != BITS_PER_DIM]
        self._seeds = seeds_from(first.seed, first.num)
        first.metric_request.check(self._of_samples, first.num, first.real)
        self._config = _with_data(Workdir(first.root).read_config(), first.data)
        self._sample_programs: dict[experiment.Sampling, Callable[..., jax.Array]] = {}
        self._evaluation: Evaluation | None = None

    def measure(
        self, request: Request, folder: Path, save_seconds: float, stopped: Callable[[], bool]
    ) -> tuple[Result, bytes | None]:
        """(result, PNG of samples that may be copies of training images, or None).

        Features are saved in folder about every save_seconds until the evaluation is complete. Raises Interrupted once
        stopped() is true, and UserError before anything is drawn.
        """
        if self._config.task == "autoencoder":
            return self._measure_autoencoder(request, folder, save_seconds, stopped)
        trained = restore(
            request.root,
            step=request.step,
            average=request.average,
            overrides=request.overrides,
            guided_by=request.guided_by,
        )
        evaluation = self._shared(request, trained)
        sample_source = evaluation.samples_of(trained, self._sample_program(trained), request.sample_request)
        sampling = dataclasses.asdict(trained.how)
        subject = self._subject(request, trained.step, trained.weights, sampling, drawn=bool(self._of_samples))
        measured_samples.check_measurable(self._of_samples, sample_source)
        found: dict[str, Measured] = {}
        if BITS_PER_DIM in self._names:
            images = evaluation.data_images
            if not isinstance(images.kind, Image):
                raise UserError(f"{BITS_PER_DIM} is of 8-bit images, and this model is of {images.kind.noun}")
            found[BITS_PER_DIM] = bits_per_dim(trained, images, request.seed, request.likelihood, stopped)
        result = result_of(request.root, evaluation.config, subject, found)
        return self._scored(result, sample_source, folder, save_seconds, stopped)

    def _measure_autoencoder(
        self, request: Request, folder: Path, save_seconds: float, stopped: Callable[[], bool]
    ) -> tuple[Result, bytes | None]:
        if BITS_PER_DIM in self._names:
            raise UserError(f"{BITS_PER_DIM} is of diffusion models; {request.root} has a run of task autoencoder")
        params, step = sample_sources.restore_autoencoder(self._config, request.root, request.step, request.average)
        evaluation = self._shared(request, None)
        subject = self._subject(request, step, weights_name(request.average), None)
        result = result_of(request.root, evaluation.config, subject, {})
        sample_source = evaluation.reconstructions_of(self._reconstruct_program, params)
        measured_samples.check_measurable(self._of_samples, sample_source)
        return self._scored(result, sample_source, folder, save_seconds, stopped)

    def _scored(
        self,
        result: Result,
        sample_source: SampleSource,
        folder: Path,
        save_seconds: float,
        stopped: Callable[[], bool],
    ) -> tuple[Result, bytes | None]:
        """(the result with the metrics of the samples, a PNG of samples that may be copies of training images)."""
        evaluation, names = self._evaluation, self._of_samples
        if not names or evaluation is None:
            return result, None
        extractor, real = evaluation.extractor, evaluation.real
        key = {**result, "metrics": names, "size": evaluation.size, "told": sample_source.conditions}
        key |= {"config": configs.to_json(evaluation.config), "real": real.num}
        key |= {"features": extractor.features and dict(extractor.features.record)}
        key |= {"score": extractor.score and dict(extractor.score.record), "reference": extractor.reference_sha256}
        key |= {"num": len(self._seeds), "options": dataclasses.asdict(extractor.options)}
        partial = PartialEvaluation(folder, key, seconds=save_seconds)
        scores, nearest = evaluation.measure(sample_source, partial=partial, stopped=stopped)
        result["metrics"] |= scores
        picture = None
        for each in nearest.values():
            try:
                picture = nearest_neighbors.png(each, sample_source, real)
            except Abandoned:
                raise Interrupted(len(self._seeds), len(self._seeds)) from None
        partial.remove()
        return result, picture

    def _shared(self, request: Request, trained: Trained | None) -> Evaluation:
        if self._evaluation is None:
            self._evaluation = Evaluation(
                self._config,
                EvaluationSettings(
                    self._of_samples, request.metric_request, self._seeds, request.batch, request.real, request.split
                ),
                trained.mesh if trained else sharding.mesh(),
                model=trained.model if trained else None,
                tokenizer=trained.tokenizer if trained else None,
            )
        return self._evaluation

    def _sample_program(self, trained: Trained) -> Callable[..., jax.Array]:
        if trained.how not in self._sample_programs:
            program = experiment.sample_program(trained.model, trained.how, trained.mesh, trained.guides)
            self._sample_programs[trained.how] = program
        return self._sample_programs[trained.how]

    @functools.cached_property
    def _reconstruct_program(self) -> Callable[..., Reconstruction]:
        return experiment.autoencoder.reconstruct_program(self._config)

    def _subject(
        self, request: Request, step: int, weights: str, sampling: Mapping[str, object] | None, *, drawn: bool = True
    ) -> Subject:
        """The subject of the result; without drawn samples it says nothing of seeds and sampling."""
        subject: Subject = {
            "checkpoint_step": step,
            "checkpoint_sha256": checkpoint_digest(request.root, step),
            "weights": weights,
            "seed": request.seed,
        }
        if drawn:
            subject["seeds"] = [int(self._seeds[0]), int(self._seeds[-1])]
            subject["guided_by"], subject["sampling"] = record(request.guided_by), sampling
        return subject


def _with_data(config: ConfigDict, source: str | None) -> ConfigDict:
    """The config with other data, as data.source names them; None: with its own."""
    if source is None:
        return config
    config = config.copy_and_resolve_references()
    config.data.source, config.data.precomputed = source, ""
    return config


def check_metrics(metrics: Sequence[str]) -> list[str]:
    """The metrics, each once. Raises UserError for an unknown name, and where there are none."""
    for name in metrics:
        if name == "fid":
            raise UserError("fid is fd with InceptionV3's features; give --metrics=fd --features=inception")
        if name not in METRICS:
            raise UserError(f"unknown metric {name!r}; choose from {', '.join(METRICS)}")
    if not metrics:
        raise UserError(f"give --metrics, one or more of {', '.join(METRICS)}")
    return list(dict.fromkeys(metrics))


def checkpoint_digest(root: Path, step: int) -> str | None:
    """The SHA-256 of the checkpoint's manifest, which lists those of its files; None where it has none."""
    file = Workdir(root).checkpoints / str(step) / manifest.NAME
    return sha256(file) if file.is_file() else None
