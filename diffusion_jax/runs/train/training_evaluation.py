"""Evaluations while a model trains: config.evaluate, and what `diffusion-jax evaluate` would say of the average."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from jax.sharding import Mesh
from ml_collections import ConfigDict

from diffusion_jax import experiment
from diffusion_jax.data.tokens import Tokenizer
from diffusion_jax.errors import UserError
from diffusion_jax.evals.sample_metrics import METRICS, score_names
from diffusion_jax.runs.evaluate.evaluation import Evaluation
from diffusion_jax.runs.evaluate.feature_extractor import MetricRequest
from diffusion_jax.runs.evaluate.measured_samples import Phase, SampleSource
from diffusion_jax.runs.evaluate.results import result_of
from diffusion_jax.runs.sample.conditions import SampleRequest
from diffusion_jax.runs.workdir.restored import Trained, seeds_from
from diffusion_jax.train.state import Params

PREFIX = "eval/"
"""Of the names under which metrics.jsonl and TensorBoard have the scores."""

DIRECTIONS = {"min": 1, "max": -1}


class Evaluate(Protocol):
    """(averaged parameters, step) -> the result of an evaluation after that step.

    Raises Interrupted where stopped says so; phase("sample") is entered around each batch.
    """

    def __call__(  # noqa: D102
        self, params: Params, step: int, *, stopped: Callable[[], bool], phase: Phase
    ) -> dict[str, Any]: ...


def of_diffusion(
    config: ConfigDict,
    root: Path,
    mesh: Mesh,
    model: experiment.Model,
    tokenizer: Tokenizer | None,
    pretrained: dict[str, Params],
) -> Evaluate | None:
    """Of samples drawn as config.sample says; None where config asks for none."""
    if not config.evaluate.every:
        return None
    how = experiment.sampling(config)
    program = experiment.sample_program(model, how, mesh)
    evaluation = _evaluation(config, mesh, model, tokenizer)

    def sample_source(params: Params) -> SampleSource:
        trained = Trained(model, how, mesh, params, pretrained, 0, "ema", tokenizer, experiment.Guides(), config)
        return evaluation.samples_of(trained, program, SampleRequest())

    return _evaluate(evaluation, root, sample_source, dataclasses.asdict(how))


def of_autoencoder(config: ConfigDict, root: Path, mesh: Mesh, program: Callable[..., Any]) -> Evaluate | None:
    """Of reconstructions; None where config asks for none."""
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
        check_metrics(options.metrics),
        MetricRequest(options.features, weights, reference, options.kid_size, options.kid_subsets, clip),
        mesh,
        seeds=seeds_from(options.seed, options.num),
        batch=options.batch,
        real=None if options.real < 0 else options.real,
        split=options.split or None,
        model=model,
        tokenizer=tokenizer,
    )
    _ = evaluation.extractor  # raises before the run begins for what does not fit
    return evaluation


def _evaluate(
    evaluation: Evaluation,
    root: Path,
    sample_source: Callable[[Params], SampleSource],
    sampling: Mapping[str, Any] | None,
) -> Evaluate:
    def evaluate(params: Params, step: int, *, stopped: Callable[[], bool], phase: Phase) -> dict[str, Any]:
        found, _ = evaluation.measure(sample_source(params), stopped=stopped, phase=phase, show=False)
        seeds = [int(evaluation.seeds[0]), int(evaluation.seeds[-1])]
        about = {"checkpoint_step": step, "weights": "ema", "seed": seeds[0], "seeds": seeds, "sampling": sampling}
        return result_of(root, evaluation.config, about, found)

    return evaluate


def check_metrics(metrics: tuple[str, ...]) -> list[str]:
    """The metrics, each once; raises UserError for one that training cannot give."""
    for name in metrics:
        if name not in METRICS:
            raise UserError(f"evaluate.metrics has {name!r}; those of training are {', '.join(METRICS)}")
    if not metrics:
        raise UserError(f"evaluate.metrics names one or more of {', '.join(METRICS)}")
    return list(dict.fromkeys(metrics))


def check_intervals(config: ConfigDict) -> None:
    """Raises UserError where config's best checkpoints are not those that are evaluated."""
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


def scores(records: Sequence[Mapping[str, Any]]) -> dict[int, dict[str, float]]:
    """{step: its scores} of the evaluations among the records of metrics.jsonl."""
    found: dict[int, dict[str, float]] = {}
    for record in records:
        if some := {k.removeprefix(PREFIX): v for k, v in record.items() if k.startswith(PREFIX)}:
            found[record["step"]] = found.get(record["step"], {}) | some
    return found


def rate(rating: dict[int, float], config: ConfigDict, found: Mapping[int, Mapping[str, float]]) -> None:
    """Adds to {step: rating}, the lower the better, what the scores of steps say by config.checkpoint's best_metric."""
    options = config.checkpoint
    for step, values in found.items() if options.best else ():
        rating[step] = DIRECTIONS[options.direction] * values.get(options.best_metric, math.nan)
