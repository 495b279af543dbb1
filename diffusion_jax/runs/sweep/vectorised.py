"""Trials that change no shape as one program on one device; each ends as a workdir like any other."""

import contextlib
import dataclasses
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from diffusion_jax import config as configs
from diffusion_jax import experiment
from diffusion_jax.errors import UserError
from diffusion_jax.experiment import vectorised
from diffusion_jax.report import pictures
from diffusion_jax.report.metrics import MetricWriter, read_metrics
from diffusion_jax.report.progress import progress
from diffusion_jax.runs.sweep.trials import FAILED, Outcome, Trial
from diffusion_jax.runs.train import preview_pictures as preview
from diffusion_jax.runs.train import training_data
from diffusion_jax.runs.train.metric_log import MetricLog
from diffusion_jax.runs.workdir import classes, pretrained
from diffusion_jax.runs.workdir.lock import training_in
from diffusion_jax.train import feed, loop, sharding
from diffusion_jax.train.arrays import abstract_like
from diffusion_jax.train.checkpoint import Checkpoints
from diffusion_jax.train.faults import Stop
from diffusion_jax.train.guard import NonFiniteLossError
from diffusion_jax.train.hooks import Hook, Moment
from diffusion_jax.train.interruptible import compiled_first
from diffusion_jax.train.state import TrainState


class _Batches:
    """The batches of trials that have seeds of their own, as arrays [K, B, ...]."""

    def __init__(self, each: Sequence[Any]):
        self._each = each

    def __next__(self) -> Mapping[str, np.ndarray]:
        return jax.tree.map(lambda *arrays: np.stack(arrays), *(dict(next(batches)) for batches in self._each))

    def get_state(self) -> list[Any]:
        return [batches.get_state() for batches in self._each]


def check(trials: Sequence[Trial]) -> None:
    """Raises UserError where the trials cannot be one program, before anything is written."""
    first = trials[0].config
    if first.task != "diffusion":
        raise UserError(f"--vectorised trains diffusion models; task={first.task!r} is swept without it")
    vectorised.values([trial.config for trial in trials], list(trials[0].changes))
    if first.init_from:
        raise UserError("--vectorised starts from random parameters; leave init_from out, or --vectorised")
    experiment.model(first) if not first.latent else None


def train(trials: Sequence[Trial], stop: Stop, on_diverged: Callable[[Trial, Outcome], None]) -> None:
    """Trains the trials together until all are done, or stop says so.

    They go on from the newest checkpoint that all of them have. A trial of which no step of a log interval was finite
    is left behind with on_diverged, and the others go on.
    """
    config, keys = trials[0].config, list(trials[0].changes)
    device = jax.devices()[0]
    mesh = sharding.mesh(devices=[device])
    resumed = _common_step(trials)
    origin = None if resumed is None else trials[0].workdir
    source, known = training_data.opened(config, trials[0].workdir)
    model = dataclasses.replace(pretrained.model(config, origin), classes=known)
    tokenizer = pretrained.tokenizer(model, source, origin)
    weights = jax.device_put(model.pretrained, sharding.replicated(mesh))
    values = vectorised.values([trial.config for trial in trials], keys)
    seeds = jnp.asarray([trial.config.seed for trial in trials], jnp.int32)
    own = "seed" in keys
    with contextlib.ExitStack() as stack:
        for trial in trials:
            stack.enter_context(training_in(trial.workdir.root)).begun = True
        pipelines = [
            experiment.batches(trial.config, source, model, tokenizer) for trial in trials[: None if own else 1]
        ]
        for each in pipelines:
            stack.callback(each.close)
        checkpoints = [stack.enter_context(contextlib.closing(_checkpoints(trial))) for trial in trials]
        if resumed is None:
            states = vectorised.initial_states(config, model, mesh, seeds)
        else:
            states = _restore(config, model, mesh, checkpoints, pipelines, resumed)
            print(f"all {len(trials)} trials go on from step {resumed}", flush=True)
        for trial in trials:
            trial.workdir.write_config(trial.config)
            pretrained.keep(trial.config, trial.workdir, None if resumed is None else trial.workdir, model, tokenizer)
            classes.keep(trial.workdir, known)
        writers = [stack.enter_context(MetricWriter(trial.workdir.root, resumed_step=resumed)) for trial in trials]
        bar = stack.enter_context(progress(config.train.steps, resumed or 0, units_per_step=config.train.batch_size))
        draw = preview.samples(config, model, mesh, source, tokenizer, weights)
        step = compiled_first(_compiled(config, model, mesh, own=own, at_once=device.platform != "cpu"))
        randomness = jax.vmap(jax.random.key)(seeds)
        alive, logged = set(range(len(trials))), resumed or 0

        def on_log(at: int, means: Mapping[str, float]) -> None:
            nonlocal logged
            for k in sorted(alive):
                finite = means[f"{k}/finite"]
                if finite == 0:
                    alive.discard(k)
                    bar.note(f"trial {trials[k].number:03d} failed: its loss is not finite since step {logged + 1}")
                    on_diverged(trials[k], Outcome(FAILED, reason=f"its loss was not finite since step {logged + 1}"))
                    continue
                writers[k].scalars(at, _record(means, k, finite, at - logged))
            logged = at
            if not alive:
                raise NonFiniteLossError(f"the loss of every trial is not finite after {at} steps")

        def save(moment: Moment) -> None:
            for k in sorted(alive):
                text = configs.to_json(trials[k].config)
                at = moment.position[k] if own else moment.position
                checkpoints[k].save(vectorised.one(moment.state, k), position=at, config=text)

        def sample(moment: Moment) -> None:
            for k in sorted(alive):
                image = draw(vectorised.one(moment.state, k).ema)
                pictures.save_png(trials[k].workdir.sample_grid(moment.step), image)
                writers[k].images(moment.step, {"samples": image})

        log = MetricLog(on_log, config.train.batch_size)
        with contextlib.suppress(NonFiniteLossError):  # of every trial: each says so in its outcome
            loop.fit(
                states,
                lambda states, batch: step(states, batch, randomness, values, weights),
                feed.device_batches(
                    _Batches(pipelines) if own else pipelines[0],
                    mesh,
                    steps_per_dispatch=config.train.steps_per_dispatch,
                ),
                [
                    Hook(config.log_every, log.run, at_end=True, phase="save"),
                    Hook(config.checkpoint.every, save, at_end=True, phase="save"),
                    Hook(config.sample.every, sample),
                ],
                steps=config.train.steps,
                stop=stop,
                watch=(log.watch, lambda at, metrics, position: bar.update(at, loss=log.latest["loss"])),
            )
    for trial in trials:
        records = read_metrics(trial.workdir.metrics)
        if any("loss" in record for record in records):
            pictures.curve_png(trial.workdir.loss_curve, records)


def _compiled(config: ConfigDict, model: experiment.Model, mesh: Any, *, own: bool, at_once: bool) -> Any:
    """The step of all trials; its metrics are those of each under "k/", finite always, and the mean "loss"."""

    def step(states: TrainState, batch: Any, seeds: Any, values: Any, weights: Any) -> tuple[TrainState, Any]:
        steps = vectorised.train_steps(config, model, mesh, weights, own_batches=own, at_once=at_once)
        states, metrics = steps(states, batch, seeds, values)
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])  # [K] or [K, n]
        count = finite.sum(axis=0)
        told = {"loss": jnp.where(finite, metrics["loss"], 0).sum(axis=0) / jnp.maximum(count, 1)}
        for k in range(len(seeds)):
            for name in ("loss", "grad_norm"):
                told[f"{k}/{name}"] = jnp.where(finite[k], metrics[name][k], 0)
            told[f"{k}/finite"] = finite[k].astype(jnp.float32)
            told[f"{k}/loss_by_time"] = jax.tree.map(lambda a, k=k: a[k], metrics["loss_by_time"])
        return states, told

    # Replicated as the first states were: else the second step compiles anew.
    return jax.jit(sharding.on_mesh(mesh, step), donate_argnums=0, out_shardings=sharding.replicated(mesh))


def _record(means: Mapping[str, float], k: int, finite: float, steps: int) -> dict[str, float]:
    """What trial k would have logged by itself: finite is the share of its steps that were."""
    own = {name.removeprefix(f"{k}/"): value for name, value in means.items() if name.startswith(f"{k}/")}
    del own["finite"]
    own |= {name: own[name] / finite for name in ("loss", "grad_norm")}
    shared = {name: value for name, value in means.items() if name != "loss" and not name[0].isdigit()}
    return own | shared | ({"nonfinite_steps": round((1 - finite) * steps)} if finite < 1 else {})


def _checkpoints(trial: Trial) -> Checkpoints:
    options = trial.config.checkpoint
    return Checkpoints(trial.workdir.checkpoints, keep=options.keep, keep_every=options.keep_every)


def _common_step(trials: Sequence[Trial]) -> int | None:
    """The newest step that all trials have a checkpoint of; later ones, whole or not, are taken away."""
    each = []
    for trial in trials:
        steps: set[int] = set()
        if trial.workdir.checkpoints.is_dir():
            with contextlib.closing(Checkpoints(trial.workdir.checkpoints, read_only=True)) as checkpoints:
                steps = set(checkpoints.steps())
        each.append(steps)
    common = max(set.intersection(*each), default=None)
    for trial in trials:
        folders = trial.workdir.checkpoints.iterdir() if trial.workdir.checkpoints.is_dir() else ()
        for folder in [path for path in folders if path.name.isdecimal()]:
            if common is None or int(folder.name) > common:
                shutil.rmtree(folder)
    return common


def _restore(
    config: ConfigDict,
    model: experiment.Model,
    mesh: Any,
    checkpoints: Sequence[Checkpoints],
    pipelines: Sequence[Any],
    step: int,
) -> TrainState:
    trainee = experiment.trainee(config, model)
    layout = abstract_like(experiment.abstract_state(config, trainee), experiment.layout(config, trainee, mesh))
    states = []
    for i, each in enumerate(checkpoints):
        state, position = each.restore(layout, step)
        states.append(state)
        if i < len(pipelines):
            pipelines[i].set_state(position)
    return vectorised.together(states, mesh)
