"""Evaluations of the averaged parameters while a model trains, as config.evaluate describes them."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from jax.sharding import Mesh
from ml_collections import ConfigDict

from diffusion_jax import experiment
from diffusion_jax.data.tokens import Tokenizer
from diffusion_jax.errors import UserError
from diffusion_jax.evals.sample_metrics import METRICS, score_names
from diffusion_jax.experiment.autoencoder import Reconstruction
from diffusion_jax.runs.evaluate.evaluation import Evaluation, EvaluationSettings
from diffusion_jax.runs.evaluate.feature_extractor import MetricRequest
from diffusion_jax.runs.evaluate.measured_samples import Phase, SampleSource
from diffusion_jax.runs.evaluate.results import Result, Subject, result_of
from diffusion_jax.runs.sample.conditioning import SampleRequest
from diffusion_jax.runs.workdir.restored import Trained, seeds_from
from diffusion_jax.train.state import Params

PREFIX = "eval/"
"""The prefix of scores in metrics.jsonl and TensorBoard."""

DIRECTIONS = {"min": 1, "max": -1}
"""{checkpoint.direction: the factor that makes a lower score the better one}."""


class Evaluate(Protocol):
    """(averaged parameters, step) -> the result of an evaluation after that step.

    phase("sample") is entered around each batch. Raises Interrupted once stopped() is true.
    """

    def __call__(  # noqa: D102
        self, params: Params, step: int, *, stopped: Callable[[], bool], phase: Phase
    ) -> Result: ...


def of_diffusion(
    config: ConfigDict,
    root: Path,
    mesh: Mesh,
    model: experiment.Model,
    tokenizer: Tokenizer | None,
    pretrained: dict[str, Params],
) -> Evaluate | None:
    """The evaluation of samples drawn by config.sample; None where config.evaluate.every is 0."""
    if not config.evaluate.every:
        return None
    sampling = experiment.sampling(config)
    program = experiment.sample_program(model, sampling, mesh)
    evaluation = _evaluation(config, mesh, model, tokenizer)

    def sample_source(params: Params) -> SampleSource:
        trained = Trained(model, sampling, mesh, params, pretrained, 0, "ema", tokenizer, experiment.Guides(), config)
        return evaluation.samples_of(trained, program, SampleRequest())

    return _evaluate(evaluation, root, sample_source, dataclasses.asdict(sampling))


def of_autoencoder(
    config: ConfigDict, root: Path, mesh: Mesh, program: Callable[..., Reconstruction]
) -> Evaluate | None:
    """The evaluation of reconstructions; None where config.evaluate.every is 0."""
    if not config.evaluate.every:
        return None
    evaluation = _evaluation(config, mesh)
    return _evaluate(evaluation, root, lambda params: evaluation.reconstructions_of(program, params), None)


def _evaluation(
    config: ConfigDict, mesh: Mesh, model: experiment.Model | None = None, tokenizer: Tokenizer | None = None
) -> Evaluation:
    """The evaluation that config.evaluate describes."""
    options = config.evaluate
    weights, reference, clip = (Path(options[k]) if options[k] else None for k in ("weights", "reference", "clip"))
    evaluation = Evaluation(
        config,
        EvaluationSettings(
            check_metrics(options.metrics),
            MetricRequest(options.features, weights, reference, options.kid_size, options.kid_subsets, clip),
            seeds_from(options.seed, options.num),
            options.batch,
            real=None if options.real < 0 else options.real,
            split=options.split or None,
        ),
        mesh,
        model=model,
        tokenizer=tokenizer,
    )
    _ = evaluation.extractor  # raises, before the run begins, where the features do not fit
    return evaluation


def _evaluate(
    evaluation: Evaluation,
    root: Path,
    sample_source: Callable[[Params], SampleSource],
    sampling: Mapping[str, object] | None,
) -> Evaluate:
    def evaluate(params: Params, step: int, *, stopped: Callable[[], bool], phase: Phase) -> Result:
        found, _ = evaluation.measure(sample_source(params), stopped=stopped, phase=phase, show=False)
        seeds = [int(evaluation.seeds[0]), int(evaluation.seeds[-1])]
        subject: Subject = {
            "checkpoint_step": step,
            "weights": "ema",
            "seed": seeds[0],
            "seeds": seeds,
            "sampling": sampling,
        }
        return result_of(root, evaluation.config, subject, found)

    return evaluate


def check_metrics(metrics: tuple[str, ...]) -> list[str]:
    """The metrics, each once. Raises UserError for an unknown name, and where there are none."""
    for name in metrics:
        if name not in METRICS:
            raise UserError(f"evaluate.metrics has {name!r}; those of training are {', '.join(METRICS)}")
    if not metrics:
        raise UserError(f"evaluate.metrics names one or more of {', '.join(METRICS)}")
    return list(dict.fromkeys(metrics))


def check_intervals(config: ConfigDict) -> None:
    """Raises UserError where config keeps the best checkpoints by a score, or at steps, that are not evaluated."""
    options, evaluate = config.checkpoint, config.evaluate
    if evaluate.every and config.task not in ("diffusion", "autoencoder"):
        raise UserError(f"evaluate.every={evaluate.every} is of tasks diffusion and autoencoder, not {config.task}")
    if not options.best:
        return
    if options.best_metric not in (known := score_names(check_metrics(evaluate.metrics))):
        raise UserError(
            f"checkpoint.best_metric={options.best_metric!r} is a score of evaluate.metrics: {', '.join(known)}"
        )
    if options.direction not in DIRECTIONS:
        raise UserError(f"checkpoint.direction={options.direction!r} is min or max")
    if not evaluate.every or not options.every or evaluate.every % options.every:
        raise UserError(
            f"checkpoint.best={options.best} keeps checkpoints that are evaluated: evaluate.every={evaluate.every} is "
            f"to be a multiple of checkpoint.every={options.every}"
        )


def scores(records: Sequence[Mapping[str, float]]) -> dict[int, dict[str, float]]:
    """{step: {score: value}} of the evaluations among the records of metrics.jsonl."""
    found: dict[int, dict[str, float]] = {}
    for record in records:
        if some := {k.removeprefix(PREFIX): v for k, v in record.items() if k.startswith(PREFIX)}:
            step = int(record["step"])
            found[step] = found.get(step, {}) | some
    return found


def rate(rating: dict[int, float], config: ConfigDict, found: Mapping[int, Mapping[str, float]]) -> None:
    """Adds to rating {step: rating, the lower the better} the best_metric of config.checkpoint at the steps of found.

    found is {step: {score: value}}; a step without the score is rated NaN.
    """
    options = config.checkpoint
    for step, values in found.items() if options.best else ():
        rating[step] = DIRECTIONS[options.direction] * values.get(options.best_metric, math.nan)
