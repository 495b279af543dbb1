"""Trials that change no shape, trained as one program on one device. Each ends as an ordinary workdir."""

import contextlib
import dataclasses
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from ml_collections import ConfigDict

from diffusion_jax import config as configs
from diffusion_jax import experiment
from diffusion_jax.data.classes import Classes
from diffusion_jax.data.pipeline import TrainBatches
from diffusion_jax.data.sources import Source
from diffusion_jax.data.tokens import Tokenizer
from diffusion_jax.errors import UserError
from diffusion_jax.experiment import vectorised
from diffusion_jax.report import pictures
from diffusion_jax.report.metrics import MetricWriter, read_metrics
from diffusion_jax.report.progress import Progress, progress
from diffusion_jax.report.trackers import Trackers, check
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
from diffusion_jax.train.state import Params, Position, TrainState
from diffusion_jax.train.step import Batch, Metrics


@dataclasses.dataclass(frozen=True)
class _Shared:
    """What all trials of one program have in common."""

    config: ConfigDict  # of the first trial; the others differ in `vectorised.KEYS` alone
    model: experiment.Model
    mesh: Mesh  # of one device
    source: Source
    tokenizer: Tokenizer | None
    weights: Mapping[str, Params]  # those that are not trained, on the device
    resumed: int | None  # the step that all trials go on from; None: they are new
    own_batches: bool  # whether each trial has batches of its own, by its own seed


class _Batches:
    """The batches of trials that have seeds of their own, as arrays [K, B, ...]."""

    def __init__(self, pipelines: Sequence[TrainBatches]):
        self._pipelines = pipelines

    def __next__(self) -> Mapping[str, np.ndarray]:
        return jax.tree.map(lambda *arrays: np.stack(arrays), *(dict(next(batches)) for batches in self._pipelines))

    def get_state(self) -> list[Position]:
        return [batches.get_state() for batches in self._pipelines]


class _Outputs:
    """What each trial writes: metrics, checkpoints and sample grids. A trial that diverged writes nothing more."""

    def __init__(
        self,
        trials: Sequence[Trial],
        checkpoints: Sequence[Checkpoints],
        writers: Sequence[MetricWriter],
        shared: _Shared,
        bar: Progress,
        on_diverged: Callable[[Trial, Outcome], None],
    ):
        self._trials, self._checkpoints, self._writers = trials, checkpoints, writers
        self._own_batches, self._bar, self._on_diverged = shared.own_batches, bar, on_diverged
        self._draw = preview.samples(
            shared.config, shared.model, shared.mesh, shared.source, shared.tokenizer, shared.weights
        )
        self._alive = set(range(len(trials)))
        self._logged = shared.resumed or 0  # step of the last log

    def log(self, step: int, means: Mapping[str, float]) -> None:
        """Writes the means of each trial since the last log. A trial without a finite step since then has diverged.

        Raises NonFiniteLossError once all trials have diverged.
        """
        for k in sorted(self._alive):
            finite = means[f"{k}/finite"]
            if finite == 0:
                self._alive.discard(k)
                self._bar.note(
                    f"trial {self._trials[k].number:03d} failed: its loss is not finite since step {self._logged + 1}"
                )
                reason = f"its loss was not finite since step {self._logged + 1}"
                self._on_diverged(self._trials[k], Outcome(FAILED, reason=reason))
                continue
            self._writers[k].scalars(step, _record(means, k, finite, step - self._logged))
        self._logged = step
        if not self._alive:
            raise NonFiniteLossError(f"the loss of every trial is not finite after {step} steps")

    def save(self, moment: Moment) -> None:
        """Starts to save a checkpoint of each trial."""
        for k in sorted(self._alive):
            text = configs.to_json(self._trials[k].config)
            position = moment.position[k] if self._own_batches else moment.position
            self._checkpoints[k].save(vectorised.one(moment.state, k), position=position, config=text)

    def sample(self, moment: Moment) -> None:
        """Draws a grid of samples of each trial."""
        for k in sorted(self._alive):
            picture = self._draw(vectorised.one(moment.state, k).ema).picture
            pictures.save_png(self._trials[k].workdir.sample_grid(moment.step), picture)
            self._writers[k].images(moment.step, {"samples": picture})


def _writer(trial: Trial, resumed: int | None, stack: contextlib.ExitStack) -> MetricWriter:
    """The metrics of a trial, in its workdir and at its own trackers; stack closes them."""
    config, root = trial.config, trial.workdir.root
    trackers = stack.enter_context(contextlib.closing(Trackers(config.log.to, root, config.log.project)))
    writer = stack.enter_context(MetricWriter(root, resumed, trackers))
    trackers.config(configs.flat(config.to_dict()), configs.to_json(config))
    return writer


def check_trials(trials: Sequence[Trial]) -> None:
    """Raises UserError where the trials cannot be one program. Nothing is written."""
    first = trials[0].config
    if first.task != "diffusion":
        raise UserError(f"--vectorised trains diffusion models; task={first.task!r} is swept without it")
    vectorised.values([trial.config for trial in trials], list(trials[0].changes))
    if first.teacher:
        raise UserError("--vectorised trains without a teacher; sweep this config without --vectorised")
    if experiment.modality(first).in_buckets:
        raise UserError(
            f"--vectorised trains on batches of one size, and data.modality={first.data.modality} has several; sweep "
            "this config without --vectorised"
        )
    check(first.log.to)
    if first.init_from:
        raise UserError("--vectorised starts from random parameters; leave init_from out, or --vectorised")
    if not first.latent:
        experiment.model(first)  # raises where the sizes do not fit together


def train(trials: Sequence[Trial], stop: Stop, on_diverged: Callable[[Trial, Outcome], None]) -> None:
    """Trains the trials together until all are done, or until stop asks to end.

    They go on from the newest checkpoint that all of them have. on_diverged is called with a trial of which no step of
    a log interval was finite; the other trials go on.
    """
    shared, known = _shared(trials)
    config, resumed = shared.config, shared.resumed
    values = vectorised.values([trial.config for trial in trials], list(trials[0].changes))
    seeds = jnp.asarray([trial.config.seed for trial in trials], jnp.int32)
    with contextlib.ExitStack() as stack:
        for trial in trials:
            stack.enter_context(training_in(trial.workdir.root)).begun = True
        with_batches = trials if shared.own_batches else trials[:1]
        pipelines = [
            stack.enter_context(
                contextlib.closing(experiment.batches(trial.config, shared.source, shared.model, shared.tokenizer))
            )
            for trial in with_batches
        ]
        checkpoints = [stack.enter_context(contextlib.closing(_checkpoints(trial))) for trial in trials]
        states = _first_states(shared, seeds, checkpoints, pipelines)
        for trial in trials:
            _write_model(trial, shared, known)
        writers = [_writer(trial, resumed, stack) for trial in trials]
        bar = stack.enter_context(progress(config.train.steps, resumed or 0, units_per_step=config.train.batch_size))
        outputs = _Outputs(trials, checkpoints, writers, shared, bar, on_diverged)
        log = MetricLog(outputs.log, config.train.batch_size)
        step = compiled_first(_compiled(shared))
        keys = jax.vmap(jax.random.key)(seeds)
        batches = _Batches(pipelines) if shared.own_batches else pipelines[0]
        with contextlib.suppress(NonFiniteLossError):  # of all trials, whose outcomes say so
            loop.fit(
                states,
                lambda states, batch: step(states, batch, keys, values, shared.weights),
                feed.device_batches(batches, shared.mesh, steps_per_dispatch=config.train.steps_per_dispatch),
                [
                    Hook(config.log_every, log.run, at_end=True, phase="save"),
                    Hook(config.checkpoint.every, outputs.save, at_end=True, phase="save"),
                    Hook(config.sample.every, outputs.sample),
                ],
                steps=config.train.steps,
                stop=stop,
                watch=(log.watch, lambda at, metrics, position: bar.update(at, loss=log.latest["loss"])),
            )
    for trial in trials:
        records = read_metrics(trial.workdir.metrics)
        if any("loss" in record for record in records):
            pictures.curve_png(trial.workdir.loss_curve, records)


def _shared(trials: Sequence[Trial]) -> tuple[_Shared, Classes | None]:
    """What the trials have in common, and their classes. Checkpoints that not all trials have are deleted."""
    first = trials[0]
    mesh = sharding.mesh(devices=jax.devices()[:1])
    resumed = _common_step(trials)
    origin = None if resumed is None else first.workdir
    source, known = training_data.opened(first.config, first.workdir)
    model = dataclasses.replace(pretrained.model(first.config, origin), classes=known)
    tokenizer = pretrained.tokenizer(model, source, origin)
    weights = jax.device_put(model.pretrained, sharding.replicated(mesh))
    return _Shared(first.config, model, mesh, source, tokenizer, weights, resumed, "seed" in first.changes), known


def _first_states(
    shared: _Shared, seeds: Array, checkpoints: Sequence[Checkpoints], pipelines: Sequence[TrainBatches]
) -> TrainState:
    """The first states: those of the common checkpoint, to which the pipelines are set too, or random ones."""
    config, mesh = shared.config, shared.mesh
    if shared.resumed is None:
        return vectorised.initial_states(config, shared.model, mesh, seeds)
    trainee = experiment.trainee(config, shared.model)
    layout = abstract_like(experiment.abstract_state(config, trainee), experiment.layout(config, trainee, mesh))
    states = []
    for i, each in enumerate(checkpoints):
        state, position = each.restore(layout, shared.resumed)
        states.append(state)
        if i < len(pipelines):
            pipelines[i].set_state(position)
    print(f"all {len(checkpoints)} trials go on from step {shared.resumed}", flush=True)
    return vectorised.together(states, mesh)


def _write_model(trial: Trial, shared: _Shared, known: Classes | None) -> None:
    """Writes into the workdir of a trial its config and all that its model needs beside its parameters."""
    trial.workdir.write_config(trial.config)
    origin = None if shared.resumed is None else trial.workdir
    pretrained.keep(trial.config, trial.workdir, origin, shared.model, shared.tokenizer)
    classes.keep(trial.workdir, known)


Step = Callable[[TrainState, Batch, Array, Mapping[str, Array], Mapping[str, Params]], tuple[TrainState, Metrics]]
"""(states, batch, seed keys [K], {key: [K]}, weights that are not trained) -> (states, metrics)."""


def _compiled(shared: _Shared) -> Step:
    """The step of all trials, compiled.

    Its metrics are those of each trial k under "k/", always finite, with the share "k/finite" of its finite steps, and
    the mean "loss" of all trials.
    """
    at_once = shared.mesh.devices.flat[0].platform != "cpu"

    def step(
        states: TrainState,
        batch: Batch,
        seeds: Array,
        values: Mapping[str, Array],
        weights: Mapping[str, Params],
    ) -> tuple[TrainState, Metrics]:
        steps = vectorised.train_steps(
            shared.config, shared.model, shared.mesh, weights, own_batches=shared.own_batches, at_once=at_once
        )
        states, metrics = steps(states, batch, seeds, values)
        scalars = {name: cast(Array, metrics[name]) for name in ("loss", "grad_norm")}  # [K] or [K, n]
        loss, norm = scalars.values()
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        count = finite.sum(axis=0)
        named: Metrics = {"loss": jnp.where(finite, loss, 0).sum(axis=0) / jnp.maximum(count, 1)}
        for k in range(len(seeds)):
            for name, values_of in scalars.items():
                named[f"{k}/{name}"] = jnp.where(finite[k], values_of[k], 0)
            named[f"{k}/finite"] = finite[k].astype(jnp.float32)
            named[f"{k}/loss_by_time"] = jax.tree.map(lambda a, k=k: a[k], metrics["loss_by_time"])
        return states, named

    # Replicated as the first states were, or the second step would compile again.
    return jax.jit(
        sharding.on_mesh(shared.mesh, step), donate_argnums=0, out_shardings=sharding.replicated(shared.mesh)
    )


def _record(means: Mapping[str, float], k: int, finite: float, steps: int) -> dict[str, float]:
    """The metrics of trial k as it would have logged them alone. finite is the share of its finite steps."""
    own = {name.removeprefix(f"{k}/"): value for name, value in means.items() if name.startswith(f"{k}/")}
    del own["finite"]
    own |= {name: own[name] / finite for name in ("loss", "grad_norm")}
    shared = {name: value for name, value in means.items() if name != "loss" and not name[0].isdigit()}
    return own | shared | ({"nonfinite_steps": round((1 - finite) * steps)} if finite < 1 else {})


def _checkpoints(trial: Trial) -> Checkpoints:
    options = trial.config.checkpoint
    return Checkpoints(trial.workdir.checkpoints, keep=options.keep, keep_every=options.keep_every)


def _common_step(trials: Sequence[Trial]) -> int | None:
    """The newest step of which all trials have a checkpoint; None if there is none. Later ones are deleted."""
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
