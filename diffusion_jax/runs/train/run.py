"""One training run from its config to its last checkpoint."""

import contextlib
import functools
import itertools
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from diffusion_jax import config as configs
from diffusion_jax import experiment
from diffusion_jax.errors import UserError
from diffusion_jax.report import trackers
from diffusion_jax.report.trackers import NO_TRACKERS, Trackers
from diffusion_jax.runs.plan import preflight
from diffusion_jax.runs.train import tasks, training_evaluation
from diffusion_jax.runs.train.fitting import fit
from diffusion_jax.runs.train.parts import Run
from diffusion_jax.runs.train.provenance import Provenance
from diffusion_jax.runs.train.records import print_changes, print_summary
from diffusion_jax.runs.train.trace import TracedSteps
from diffusion_jax.runs.workdir import events, snapshots
from diffusion_jax.runs.workdir.lock import Training, training_in
from diffusion_jax.runs.workdir.mirror import Mirror
from diffusion_jax.runs.workdir.paths import Workdir, as_trained
from diffusion_jax.train import agreement, processes
from diffusion_jax.train.checkpoint import Checkpoints
from diffusion_jax.train.faults import Stop, Watchdog, stop_on_signal
from diffusion_jax.train.guard import DivergedError
from diffusion_jax.train.interruptible import Abandoned, interruptible
from diffusion_jax.train.provenance import source_commit, versions
from diffusion_jax.train.state import TrainState

_OF_THE_MACHINE = ("data.threads", "data.workers", "data.data_dir")
"""Config keys that may differ between the processes of one run, since no batch depends on them."""


def train(config: ConfigDict, root: Path, traced: TracedSteps | None = None) -> None:
    """Trains config in the workdir root, going on from its newest verified checkpoint if it has one.

    traced are steps to record in a trace, unless the run is beyond them.

    A SIGINT or SIGTERM saves and returns. Raises UserError, before the workdir is touched, where config, data or the
    workdir do not fit.
    """
    config = configs.check(config)
    _check_intervals(config)
    if traced is not None:
        traced.check(config.train.steps, config.train.steps_per_dispatch)
    with stop_on_signal() as stop, Watchdog(config.train.hang_seconds, root / "stacks.txt") as watchdog:
        try:
            with training_in(root) as training:
                _train(config, Workdir(root), stop, watchdog, training, traced)
        except Abandoned:
            print(f"stopped by {stop.signal} before the first step; the same command begins anew", flush=True)


def _train(
    config: ConfigDict,
    workdir: Workdir,
    stop: Stop,
    watchdog: Watchdog,
    training: Training,
    traced: TracedSteps | None,
) -> None:
    trackers.check(config.log.to)
    mirror = Mirror(config.checkpoint.mirror, workdir.root) if config.checkpoint.mirror else None
    with watchdog.phase("restore"), processes.leaving_with_the_others():
        if mirror and jax.process_index() == 0:
            mirror.catch_up()
        config = interruptible(functools.partial(experiment.resolved, as_trained(config, workdir)))
        _agree_on_config(config)
    mesh = experiment.mesh(config)
    task = interruptible(lambda: tasks.task(config, workdir, mesh))
    preflight.check_memory(config, task.model, task.abstract, mesh)
    rating: dict[int, float] = {}
    with (
        contextlib.closing(task.batches),
        contextlib.closing(_checkpoints(workdir, config, rating, mirror)) as checkpoints,
        _closing(snapshots.writable(workdir, config)) as profiles,
        contextlib.closing(_trackers(config, workdir)) as given,
        processes.leaving_with_the_others(),
    ):
        run = Run(config, workdir, task, mesh, checkpoints, profiles, rating, stop, watchdog, training, given, traced)
        with watchdog.phase("restore"):
            state, resumed = _start(run)
        if resumed is not None and resumed >= config.train.steps:
            print(f"already trained for {resumed} steps; raise train.steps={config.train.steps} to go on")
            if mirror and run.first:
                mirror.begin()  # the last copy may be incomplete
            return
        if run.first:
            workdir.write_config(config)
            task.keep()
            print_summary(workdir, mesh, state)
            if mirror:
                with watchdog.phase("save"):
                    mirror.begin()
        state = _fit_with_rollbacks(run, state, resumed)
        with watchdog.phase("save"):
            checkpoints.wait()
            if profiles is not None:
                profiles.wait()
            Provenance(run).tell()
            if mirror and run.first:
                mirror.push()  # what was written since the last save
        done = int(state.step)
        if run.first:
            events.append(workdir, events.END, done, **({"stopped": stop.signal} if done < config.train.steps else {}))
        if done < config.train.steps:
            print(
                f"stopped by {stop.signal} after {done} steps, all of them saved; the same command goes on", flush=True
            )


def _start(run: Run) -> tuple[TrainState, int | None]:
    """(the state to train from, the step of the checkpoint that it is of); (a new state, None) without a checkpoint."""
    source = run.task.source
    data = {"data": source.fingerprint, "examples": len(source)}
    batch = {"global batch": run.config.train.batch_size, "buckets": run.task.batches.get_state().get("buckets")}
    agreement.check_agreement(data | batch | {"workdir": str(run.workdir.root)})
    resumed = run.checkpoints.latest()
    if resumed is None:
        return interruptible(lambda: _initial_state(run.config, run.task)), None
    step = resumed
    state, position = interruptible(lambda: run.checkpoints.restore(run.task.abstract, step))
    run.task.batches.set_state(position)
    if run.first:
        print_changes(run.workdir, run.config, resumed)
    return state, resumed


def _fit_with_rollbacks(run: Run, state: TrainState, resumed: int | None) -> TrainState:
    """`fit`, and again from the newest checkpoint where training diverged, with the data that follows."""
    most = run.config.train.nonfinite_rollbacks
    for rollback in itertools.count(1):
        try:
            return fit(run, state, resumed)
        except DivergedError as error:
            with run.watchdog.phase("restore"):
                resumed = run.checkpoints.latest()
            failed, position = f"{error}; the last checkpoint is of step {resumed or 0}", error.position
            if resumed is None or rollback > most:
                if run.first:
                    events.append(run.workdir, events.END, resumed or 0, stopped="a loss that diverged", reason=failed)
                raise type(error)(failed, position) from error
        if run.first:
            events.append(run.workdir, events.ROLL_BACK, resumed, reason=failed)
        # Here, where the error no longer holds the arrays of the state that failed.
        print(
            f"diffusion-jax: {failed}; roll-back {rollback} of {most} to step {resumed}, with the data that follows",
            file=sys.stderr,
            flush=True,
        )
        with run.watchdog.phase("restore"):
            state, _ = run.checkpoints.restore(run.task.abstract, resumed)
        run.task.batches.set_state(position)
    raise AssertionError("unreachable: the count has no end")


def _agree_on_config(config: ConfigDict) -> None:
    """Raises UserError unless all processes of the run have the same config, code and versions."""
    code = {"code": " ".join(f"{name} {version}" for name, version in versions().items())}
    same = {key: value for key, value in configs.flat(config.to_dict()).items() if key not in _OF_THE_MACHINE}
    agreement.check_agreement({"commit": source_commit(), **code, **same})


def _closing(checkpoints: Checkpoints | None) -> contextlib.AbstractContextManager[Checkpoints | None]:
    return contextlib.nullcontext() if checkpoints is None else contextlib.closing(checkpoints)


def _trackers(config: ConfigDict, workdir: Workdir) -> Trackers:
    """The trackers of config.log.to in the first process, and none in the others."""
    return Trackers(config.log.to, workdir.root, config.log.project) if jax.process_index() == 0 else NO_TRACKERS


def _checkpoints(workdir: Workdir, config: ConfigDict, rating: dict[int, float], mirror: Mirror | None) -> Checkpoints:
    options = config.checkpoint
    return Checkpoints(
        workdir.checkpoints,
        keep=options.keep,
        keep_every=options.keep_every,
        best=options.best,
        rating=rating,
        on_saved=mirror.push if mirror else None,
        copy=options.copy,
    )


def _check_intervals(config: ConfigDict) -> None:
    """Raises unless every interval ends where a dispatch of several steps does."""
    n = config.train.steps_per_dispatch
    intervals = {
        "train.steps": config.train.steps,
        "log_every": config.log_every,
        "checkpoint.every": config.checkpoint.every,
        "sample.every": config.sample.every,
        "evaluate.every": config.evaluate.every,
        "ema.every": config.ema.every,
    }
    training_evaluation.check_intervals(config)
    snapshots.check_profiles(config)
    for name, value in intervals.items():
        if value % n:
            raise UserError(f"{name}={value} is not a multiple of train.steps_per_dispatch={n}")


def _initial_state(config: ConfigDict, task: tasks.Task) -> TrainState:
    """The state before the first step; its parameters are those of the run that config.init_from names, if any."""
    state = task.init()
    if not config.init_from:
        return state
    other = Workdir(Path(config.init_from))
    other.read_config()  # raises where it is no workdir
    with contextlib.closing(Checkpoints(other.checkpoints, read_only=True)) as checkpoints:
        step = checkpoints.latest()
        if step is None:
            raise UserError(f"no checkpoint in {other.checkpoints}; init_from is the workdir of a run")
        params = checkpoints.restore_tree("ema", task.abstract.ema, step)
    print(f"starting with the averaged parameters of step {step} in {other.root}")
    return state._replace(params=params, ema=jax.tree.map(jnp.copy, params))
