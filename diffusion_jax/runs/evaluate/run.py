"""`diffusion-jax evaluate`: numbers about a checkpoint, each with all that it takes to believe it."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from diffusion_jax import config as configs
from diffusion_jax import experiment
from diffusion_jax.errors import UserError
from diffusion_jax.evals import sample_metrics
from diffusion_jax.evals.moments import sha256
from diffusion_jax.modalities import Image
from diffusion_jax.models.likelihood import DRAWS, bits_per_dim_program, conventions, own_conditions
from diffusion_jax.report.atomic import replace_file
from diffusion_jax.runs.evaluate import measured_samples, sample_sources
from diffusion_jax.runs.evaluate import nearest_neighbors as suspects
from diffusion_jax.runs.evaluate.evaluation import Evaluation
from diffusion_jax.runs.evaluate.feature_extractor import MetricRequest
from diffusion_jax.runs.evaluate.measured_samples import SampleSource
from diffusion_jax.runs.evaluate.partial import PartialEvaluation
from diffusion_jax.runs.evaluate.real_images import Interrupted, RealImages
from diffusion_jax.runs.evaluate.results import line, result_of, write
from diffusion_jax.runs.sample.conditions import SampleRequest, record
from diffusion_jax.runs.workdir.output_folder import check_writable
from diffusion_jax.runs.workdir.paths import Workdir
from diffusion_jax.runs.workdir.restored import NO_GUIDES, GuideRequest, Trained, restore, seeds_from, weights_name
from diffusion_jax.train import manifest, sharding
from diffusion_jax.train.faults import stop_on_signal
from diffusion_jax.train.interruptible import Abandoned, interruptible

BITS_PER_DIM = "bits_per_dim"

METRICS = (BITS_PER_DIM, *sample_metrics.METRICS)

AGAIN = 75
"""The exit status of an evaluation that a signal stopped, EX_TEMPFAIL: the same command goes on."""

_METHODS = {"bound": "variational bound", "ode": "probability-flow ODE"}


@dataclasses.dataclass(frozen=True)
class Likelihood:
    """How bits per dimension are found."""

    method: str = "bound"
    steps: int = 0  # 0: all that the method knows


@dataclasses.dataclass(frozen=True)
class Request:
    """Which numbers, of which checkpoint and how: all that a result depends on, but the machine."""

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
    real: int | None = None  # images that samples are compared with; 0: all, None: num
    guided_by: GuideRequest = NO_GUIDES


def evaluate(request: Request, *, out: Path | None, save_seconds: float = 60.0) -> Path:
    """Measures a checkpoint of a workdir by each metric, prints the results, and writes them.

    Returns the JSON file: out or, where None, one of its own in the workdir's evaluations/. Sample i has seed `seed` +
    i; the real images are those of the config's data, of split where given. What is gathered is saved beside the result
    about every save_seconds, and an evaluation that was killed goes on from there; a SIGINT or SIGTERM saves too, and
    raises SystemExit(AGAIN). Raises UserError before anything is drawn for what the model, the data or num cannot give.
    """
    if out is not None and (out.exists() or out.suffix != ".json"):
        raise UserError(f"--out={out} is to be a new .json file; give another")
    if not save_seconds >= 0:
        raise UserError(f"--save_seconds is at least 0; got {save_seconds}")
    folder = request.root / "evaluations" if out is None else out.parent
    if request.root.is_dir():  # what is no workdir is said below
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
    """Measures checkpoints of one workdir: requests that differ in checkpoint, average and sampling alone share
    programs, features and what is gathered of real images.

    first is one of these requests. Raises UserError for what a request cannot ask for.
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
        self._config = Workdir(first.root).read_config()
        self._programs: dict[experiment.Sampling | None, Callable[..., Any]] = {}  # None: of an autoencoder
        self._evaluation: Evaluation | None = None

    def measure(
        self, request: Request, folder: Path, save_seconds: float, stopped: Callable[[], bool]
    ) -> tuple[dict[str, Any], bytes | None]:
        """(result, PNG of samples that may be copies of training images); an unfinished evaluation is kept in folder.

        Raises Interrupted where stopped says so, and UserError before anything is drawn.
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
        program = self._program(
            trained.how, lambda: experiment.sample_program(trained.model, trained.how, trained.mesh, trained.guides)
        )
        sample_source = evaluation.samples_of(trained, program, request.sample_request)
        about = self._about(request, trained.step, trained.weights)
        if self._of_samples:
            about |= {"seeds": [int(self._seeds[0]), int(self._seeds[-1])]}
            about |= {"guided_by": record(request.guided_by), "sampling": dataclasses.asdict(trained.how)}
        measured_samples.check(self._of_samples, sample_source)
        found: dict[str, dict[str, Any]] = {}
        if BITS_PER_DIM in self._names:
            if not isinstance(evaluation.own.kind, Image):
                raise UserError(f"{BITS_PER_DIM} is of 8-bit images, and this model is of {evaluation.own.kind.noun}")
            found[BITS_PER_DIM] = _bits_per_dim(trained, evaluation.own, request.seed, request.likelihood, stopped)
        result = result_of(request.root, evaluation.config, about, found)
        return self._scored(result, sample_source, folder, save_seconds, stopped)

    def _measure_autoencoder(
        self, request: Request, folder: Path, save_seconds: float, stopped: Callable[[], bool]
    ) -> tuple[dict[str, Any], bytes | None]:
        if BITS_PER_DIM in self._names:
            raise UserError(f"{BITS_PER_DIM} is of diffusion models; {request.root} has a run of task autoencoder")
        params, step = sample_sources.restore_autoencoder(self._config, request.root, request.step, request.average)
        evaluation = self._shared(request, None)
        program = self._program(None, lambda: experiment.autoencoder.reconstruct_program(self._config))
        about = self._about(request, step, weights_name(request.average))
        about |= {"seeds": [int(self._seeds[0]), int(self._seeds[-1])]}
        about |= {"guided_by": record(request.guided_by), "sampling": None}
        result = result_of(request.root, evaluation.config, about, {})
        sample_source = evaluation.reconstructions_of(program, params)
        measured_samples.check(self._of_samples, sample_source)
        return self._scored(result, sample_source, folder, save_seconds, stopped)

    def _scored(
        self,
        result: dict[str, Any],
        sample_source: SampleSource,
        folder: Path,
        save_seconds: float,
        stopped: Callable[[], bool],
    ) -> tuple[dict[str, Any], bytes | None]:
        """The result with the metrics of the samples, and a PNG of those that may be copies of training images."""
        evaluation, names = self._evaluation, self._of_samples
        if not names or evaluation is None:
            return result, None
        extractor, real = evaluation.extractor, evaluation.real
        key = {**result, "metrics": names, "size": evaluation.size, "told": sample_source.record}
        key |= {"config": configs.to_json(evaluation.config), "real": real.num}
        key |= {"features": extractor.features and dict(extractor.features.record)}
        key |= {"score": extractor.score and dict(extractor.score.record), "reference": extractor.reference_sha256}
        key |= {"num": len(self._seeds), "options": dataclasses.asdict(extractor.options)}
        partial = PartialEvaluation(folder, key, seconds=save_seconds)
        scores, suspected = evaluation.measure(sample_source, partial=partial, stopped=stopped)
        result["metrics"] |= scores
        picture = None
        for each in suspected.values():
            try:
                picture = suspects.png(each, sample_source, self._seeds, evaluation.size, real)
            except Abandoned:
                raise Interrupted(len(self._seeds), len(self._seeds)) from None
        partial.remove()
        return result, picture

    def _shared(self, request: Request, trained: Trained | None) -> Evaluation:
        if self._evaluation is None:
            self._evaluation = Evaluation(
                self._config,
                self._of_samples,
                request.metric_request,
                trained.mesh if trained else sharding.mesh(),
                seeds=self._seeds,
                batch=request.batch,
                real=request.real,
                split=request.split,
                model=trained.model if trained else None,
                tokenizer=trained.tokenizer if trained else None,
            )
        return self._evaluation

    def _program(
        self, sampling: experiment.Sampling | None, make: Callable[[], Callable[..., Any]]
    ) -> Callable[..., Any]:
        if sampling not in self._programs:
            self._programs[sampling] = make()
        return self._programs[sampling]

    def _about(self, request: Request, step: int, weights: str) -> dict[str, Any]:
        return {
            "checkpoint_step": step,
            "checkpoint_sha256": checkpoint_digest(request.root, step),
            "weights": weights,
            "seed": request.seed,
        }


def check_metrics(metrics: Sequence[str]) -> list[str]:
    """The metrics asked for, each once; raises UserError for one that there is not."""
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


def _bits_per_dim(
    trained: Trained, real: RealImages, seed: int, likelihood: Likelihood, stopped: Callable[[], bool]
) -> dict[str, Any]:
    program = bits_per_dim_program(trained.model, trained.how, trained.mesh, likelihood.method, likelihood.steps)
    batches: list[dict[str, np.ndarray]] = []
    done = 0
    for take, examples in real.batches("bits/dim"):
        cond = own_conditions(trained.model, examples)
        index = examples["index"].astype(np.int32)
        call = functools.partial(program, trained.params, trained.pretrained)
        try:
            parts = interruptible(functools.partial(_computed, call, examples["x"], np.int32(seed), index, cond))
        except Abandoned:
            raise Interrupted(done, real.num) from None
        batches.append({name: np.asarray(a, np.float64)[:take] for name, a in parts.items()})
        done += take
        if stopped() and done < real.num:
            raise Interrupted(done, real.num)
    parts = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    total = parts.pop("total")
    if lost := int((~np.isfinite(total)).sum()):
        raise UserError(
            f"bits_per_dim of {lost} of {len(total)} images is not finite; for method ode give --likelihood_steps=200"
        )
    return {
        "label": f"bits/dim ({_METHODS[likelihood.method]})",
        "value": float(total.mean()),
        "standard_error": _standard_error(total),
        "parts": {name: float(a.mean()) for name, a in parts.items()},
        "standard_errors": {name: _standard_error(a) for name, a in parts.items()},
        "how": {
            "n": real.num,
            "method": likelihood.method,
            "steps": likelihood.steps or _all_steps(trained.model, likelihood.method),
            **conventions(trained.model, likelihood.method),
            "conditions": "each image's own",
            "real": real.record(),
        },
    }


def _standard_error(a: np.ndarray) -> float | None:
    """Of the mean over the images, what chance the draws of each add included; None of one image."""
    return float(a.std(ddof=1) / np.sqrt(len(a))) if len(a) > 1 else None


def _computed(program: Callable[..., Any], *arguments: Any) -> Any:
    return jax.device_get(program(*arguments))


def _all_steps(model: experiment.Model, method: str) -> int | str:
    return "adaptive" if method == "ode" else model.schedule.steps or DRAWS
