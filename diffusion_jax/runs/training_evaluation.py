"""Evaluations while a model trains: config.evaluate, and what `diffusion-jax evaluate` would say of the average."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from diffusion_jax import build
from diffusion_jax.data.tokens import Tokenizer
from diffusion_jax.errors import UserError
from diffusion_jax.evals.sample_metrics import METRICS, score_names
from diffusion_jax.runs import measured_samples, subjects
from diffusion_jax.runs.conditions import Asked
from diffusion_jax.runs.measured_samples import Phase, Reference, Subject
from diffusion_jax.runs.real_images import RealImages, plain
from diffusion_jax.runs.results import result_of
from diffusion_jax.runs.ruler import Judged
from diffusion_jax.runs.trained import Trained, seeds_from
from diffusion_jax.train.state import Params

PREFIX = "eval/"
"""Of the names under which metrics.jsonl and TensorBoard have the scores."""

DIRECTIONS = {"min": 1, "max": -1}


class Evaluation:
    """One evaluation, to be made of many parameters; real images are gone through at the first."""

    def __init__(
        self,
        config: ConfigDict,
        root: Path,
        mesh: Mesh,
        subject: Callable[[Params, np.ndarray, int, RealImages], Subject],
        *,
        sampling: Mapping[str, Any] | None,
        model: build.Model | None = None,
        tokenizer: Tokenizer | None = None,
    ):
        options = config.evaluate
        self._root, self._mesh, self._make, self._sampling = root, mesh, subject, sampling
        self._names = check_metrics(options.metrics)
        self._seeds = seeds_from(options.seed, options.num)
        share = mesh.shape["data"] * mesh.shape["fsdp"]
        self._size = -(-min(options.batch, options.num) // share) * share
        weights, reference, clip = (Path(options[k]) if options[k] else None for k in ("weights", "reference", "clip"))
        judged = Judged(options.features, weights, reference, options.kid_size, options.kid_subsets, clip)
        judged.check(self._names, options.num, None if options.real < 0 else options.real)
        self._config = plain(config, options.split or None, self._size)
        self._own = RealImages(self._config, options.num, model, tokenizer)
        self._real = self._own
        if options.real >= 0:
            self._real = RealImages(self._config, options.real, model, tokenizer)
        shape = (config.data.height, config.data.width, config.data.channels)
        self._ruler = judged.ruler(self._names, mesh, shape, self._size)
        self._reference: Reference | None = None

    def __call__(
        self,
        params: Params,
        step: int,
        *,
        stopped: Callable[[], bool],
        phase: Phase,
    ) -> dict[str, Any]:
        """The result for averaged parameters after step steps; raises Interrupted where stopped says so."""
        subject = self._make(params, self._seeds, self._size, self._own)
        measured_samples.check(self._names, subject)
        if self._reference is None:
            self._reference = measured_samples.gather_real(
                self._names, self._mesh, self._real, self._ruler, phase=phase, show=False
            )
        samples = measured_samples.gather_samples(
            self._names, subject, self._seeds, self._size, self._ruler, stopped=stopped, phase=phase, show=False
        )
        found, _ = measured_samples.scored(self._names, subject, samples, self._reference, self._ruler)
        about = {"checkpoint_step": step, "weights": "ema", "seed": int(self._seeds[0])}
        about |= {"seeds": [int(self._seeds[0]), int(self._seeds[-1])], "sampling": self._sampling}
        return result_of(self._root, self._config, about, found)


def of_diffusion(
    config: ConfigDict,
    root: Path,
    mesh: Mesh,
    model: build.Model,
    tokenizer: Tokenizer | None,
    frozen: dict[str, Params],
) -> Evaluation | None:
    """Of samples drawn as config.sample says; None where config asks for none."""
    if not config.evaluate.every:
        return None
    how = build.sampling(config)
    program = build.sample_program(model, how, mesh)

    def subject(params: Params, seeds: np.ndarray, size: int, own: RealImages) -> Subject:
        trained = Trained(model, how, mesh, params, frozen, 0, "ema", tokenizer, build.Guides())
        return subjects.of_samples(trained, program, Asked(), seeds, size, own, "clip_score" in config.evaluate.metrics)

    return Evaluation(config, root, mesh, subject, sampling=dataclasses.asdict(how), model=model, tokenizer=tokenizer)


def of_autoencoder(config: ConfigDict, root: Path, mesh: Mesh, program: Callable[..., Any]) -> Evaluation | None:
    """Of reconstructions; None where config asks for none."""
    if not config.evaluate.every:
        return None

    def subject(params: Params, seeds: np.ndarray, size: int, own: RealImages) -> Subject:
        return subjects.of_reconstructions(program, params, mesh, own)

    return Evaluation(config, root, mesh, subject, sampling=None)


def check_metrics(metrics: tuple[str, ...]) -> list[str]:
    """The metrics, each once; raises UserError for one that training cannot give."""
    for name in metrics:
        if name not in METRICS:
            raise UserError(f"evaluate.metrics has {name!r}; those of training are {', '.join(METRICS)}")
    if not metrics:
        raise UserError(f"evaluate.metrics names one or more of {', '.join(METRICS)}")
    return list(dict.fromkeys(metrics))


def check_intervals(config: ConfigDict) -> None:
    """Raises UserError where config's best checkpoints are not those that are evaluated, or its numbers are none."""
    options, evaluate = config.checkpoint, config.evaluate
    if evaluate.every < 0 or options.best < 0 or evaluate.batch < 1 or evaluate.real < -1:
        raise UserError(
            f"evaluate.every={evaluate.every} and checkpoint.best={options.best} are at least 0, evaluate.batch="
            f"{evaluate.batch} at least 1 and evaluate.real={evaluate.real} at least -1"
        )
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
