"""`diffusion-jax train`: a config and a workdir to a trained model."""

import contextlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from diffusion_jax import build
from diffusion_jax import config as configs
from diffusion_jax.errors import UserError
from diffusion_jax.report import pictures
from diffusion_jax.report.metrics import MetricWriter, NullWriter, read_metrics
from diffusion_jax.report.progress import progress
from diffusion_jax.runs import preflight, results, snapshots, tasks, training_evaluation
from diffusion_jax.runs.measured_samples import Interrupted
from diffusion_jax.runs.mirror import Mirror
from diffusion_jax.runs.train_records import append_nonfinite, example_log, print_changes, print_summary
from diffusion_jax.runs.workdir import Workdir
from diffusion_jax.runs.workdir_lock import Training, training_in
from diffusion_jax.train import agreement, feed, loop, processes, sharding
from diffusion_jax.train.checkpoint import Checkpoints, abstract_like, source_commit, versions
from diffusion_jax.train.faults import Stop, Watchdog, stop_on_signal
from diffusion_jax.train.interruptible import Abandoned, interruptible
from diffusion_jax.train.spikes import Spikes
from diffusion_jax.train.state import TrainState

_OWN = ("data.threads", "data.workers", "data.data_dir")
"""What of a config may be a machine's own: it changes nothing of what is trained on."""


def train(config: ConfigDict, root: Path) -> None:
    """Trains config in the workdir root, going on from its newest verified checkpoint if it has one.

    What a user can get wrong raises UserError before the workdir is touched. A SIGINT or SIGTERM saves and returns.
    """
    config = configs.check(config)
    _check_numbers(config)
    with stop_on_signal() as stop, Watchdog(config.train.hang_seconds, root / "stacks.txt") as watchdog:
        try:
            with training_in(root) as training:
                _train(config, Workdir(root), stop, watchdog, training)
        except Abandoned:
            print(f"stopped by {stop.signal} before the first step; the same command begins anew", flush=True)


def _train(config: ConfigDict, workdir: Workdir, stop: Stop, watchdog: Watchdog, training: Training) -> None:
    mirror = Mirror(config.checkpoint.mirror, workdir.root) if config.checkpoint.mirror else None
    with watchdog.phase("restore"), processes.leaving_with_the_others():
        if mirror and jax.process_index() == 0:
            mirror.catch_up()
        code = {"code": " ".join(f"{name} {version}" for name, version in versions().items())}
        alike = {key: value for key, value in configs.flat(config.to_dict()).items() if key not in _OWN}
        agreement.check({"commit": source_commit(), **code, **alike})
    first = jax.process_index() == 0
    mesh = build.mesh(config)
    task = interruptible(lambda: tasks.task(config, workdir, mesh))
    batches = task.batches
    layout = abstract_like(task.abstract, build.layout(config, task.abstract, mesh))
    preflight.check_memory(config, task.model, layout, mesh)
    rating: dict[int, float] = {}
    with (
        contextlib.closing(batches),
        contextlib.closing(_checkpoints(workdir, config, rating, mirror)) as checkpoints,
        _closing(snapshots.writable(workdir, config)) as kept,
        processes.leaving_with_the_others(),
    ):
        with watchdog.phase("restore"):
            data = {"data": task.source.fingerprint, "examples": len(task.source)}
            agreement.check(data | {"global batch": config.train.batch_size, "workdir": str(workdir.root)})
            resumed = checkpoints.latest()
            if resumed is None:
                state = interruptible(lambda: _initial_state(config, task, mesh))
            else:
                step = resumed
                state, position = interruptible(lambda: checkpoints.restore(layout, step))
                batches.set_state(position)
                if first:
                    print_changes(workdir, config, resumed)
        if resumed is not None and resumed >= config.train.steps:
            print(f"already trained for {resumed} steps; raise train.steps={config.train.steps} to go on")
            if mirror and first:
                mirror.begin()  # whose last copy may have been cut short
            return
        if first:
            workdir.write_config(config)
            task.keep()
            print_summary(workdir, mesh, state)
            if mirror:
                with watchdog.phase("save"):
                    mirror.begin()

        seed = jax.jit(lambda: jax.random.key(config.seed), out_shardings=sharding.replicated(mesh))()
        text = configs.to_json(config)

        def write_nonfinite(event: loop.NonFinite) -> None:
            if first:
                append_nonfinite(workdir, event, config, len(task.source))

        def fit(state: TrainState, resumed: int | None) -> TrainState:
            writer = MetricWriter(workdir.root, resumed_step=resumed) if first else NullWriter()
            with (
                writer,
                example_log(config, workdir, resumed) as handed,
                progress(
                    config.train.steps, start=resumed or 0, units_per_step=config.train.batch_size, show=first
                ) as bar,
            ):

                def draw_loss_curve() -> None:
                    records = read_metrics(workdir.metrics) if first and workdir.metrics.is_file() else []
                    if any("loss" in record for record in records):
                        pictures.curve_png(workdir.loss_curve, records)

                def on_step(at: int, metrics: Mapping[str, float]) -> None:
                    training.begun = True
                    checkpoints.check()
                    bar.update(at, loss=metrics["loss"])

                def on_log(at: int, metrics: Mapping[str, float]) -> None:
                    corrupt = len(batches.skipped.found)  # of this process, since it started
                    writer.scalars(at, {**metrics, "corrupt_examples": corrupt} if corrupt else metrics)

                def on_sample(state: TrainState) -> None:
                    at = int(state.step)
                    draw_loss_curve()
                    if measures := task.measure(state.ema):
                        writer.scalars(at, measures)
                        bar.note(f"after {at} steps: " + ", ".join(f"{k} {v:.4g}" for k, v in measures.items()))
                    if task.draw is None:
                        return
                    how = config.sample
                    with bar.doing(f"drawing a grid: {how.num} samples, {how.sampler}, {how.steps:,} steps"):
                        image = task.draw(state.ema)
                    if first:
                        pictures.save_png(workdir.sample_grid(at), image)
                    writer.images(at, {"samples": image})
                    bar.note(f"samples after {at} steps: {workdir.sample_grid(at)}")

                def save(state: TrainState, position: Any) -> None:
                    measured = task.measure(state.ema)
                    checkpoints.save(state, position=position, config=text, measured=measured)

                def on_evaluate(state: TrainState) -> None:
                    at = int(state.step)
                    assert task.evaluation is not None
                    try:
                        asked = lambda: stop.signal is not None and jax.process_count() == 1  # noqa: E731
                        with bar.doing(f"evaluating {', '.join(config.evaluate.metrics)}"):
                            result = task.evaluation(state.ema, at, stopped=asked, phase=watchdog.phase)
                    except Interrupted as done:
                        bar.note(f"evaluation after {at} steps: stopped by {stop.signal} after {done}")
                        return
                    scores = {name: entry["value"] for name, entry in result["metrics"].items()}
                    training_evaluation.rate(rating, config, {at: scores})
                    writer.scalars(at, {f"{training_evaluation.PREFIX}{k}": v for k, v in scores.items()})
                    if first:
                        results.write(result, workdir.root / "evaluations")
                    for entry in result["metrics"].values():
                        bar.note(f"after {at} steps: {results.line(entry)}")

                def on_snapshot(state: TrainState) -> None:
                    assert kept is not None
                    with watchdog.phase("save"):
                        snapshots.save(kept, state, text)

                events = [(config.evaluate.every, on_evaluate)] if task.evaluation else []
                if kept is not None:
                    events.append((config.ema.every, on_snapshot))
                    kept.drop_after(resumed or 0)
                    if resumed and resumed % config.ema.every == 0 and resumed not in kept.steps():
                        on_snapshot(state)  # a signal came before it
                if task.evaluation and resumed is not None:
                    known = training_evaluation.scores(read_metrics(workdir.metrics) if first else [])
                    training_evaluation.rate(rating, config, known)
                    if resumed % config.evaluate.every == 0 and resumed not in known and jax.process_count() == 1:
                        on_evaluate(state)  # a signal had stopped it

                state = loop.fit(
                    state,
                    lambda state, batch: task.step(state, batch, seed),
                    feed.device_batches(
                        batches, mesh, steps_per_dispatch=config.train.steps_per_dispatch, handed=handed
                    ),
                    steps=config.train.steps,
                    batch_size=config.train.batch_size,
                    log_every=config.log_every,
                    save_every=config.checkpoint.every,
                    sample_every=config.sample.every,
                    on_step=on_step,
                    on_log=on_log,
                    on_nonfinite=write_nonfinite,
                    save=save,
                    sample=on_sample,
                    stop=stop,
                    nonfinite_limit=config.train.nonfinite_limit,
                    spikes=_spikes(config),
                    events=events,
                    phase=watchdog.phase,
                )
                draw_loss_curve()
                return state

        rollbacks = 0
        while True:
            try:
                state = fit(state, resumed)
                break
            except loop.DivergedError as error:
                with watchdog.phase("restore"):
                    resumed = checkpoints.latest()
                if resumed is None or rollbacks == config.train.nonfinite_rollbacks:
                    raise
                failed, position = str(error), error.position
            # Here, where the error no longer holds the arrays of the state that failed.
            rollbacks += 1
            of = f"{rollbacks} of {config.train.nonfinite_rollbacks}"
            print(
                f"diffusion-jax: {failed}; roll-back {of} to step {resumed}, with the data that follows",
                file=sys.stderr,
                flush=True,
            )
            with watchdog.phase("restore"):
                state, _ = checkpoints.restore(layout, resumed)
            batches.set_state(position)
        with watchdog.phase("save"):
            checkpoints.wait()
            if kept is not None:
                kept.wait()
            if mirror and first:
                mirror.push()  # what was written since the last save
        if (done := int(state.step)) < config.train.steps:
            print(
                f"stopped by {stop.signal} after {done} steps, all of them saved; the same command goes on", flush=True
            )


def _spikes(config: ConfigDict) -> Spikes | None:
    options = config.train
    if not options.spike_factor:
        return None
    return Spikes(factor=options.spike_factor, window=options.spike_window, limit=options.spike_limit)


def _closing(checkpoints: Checkpoints | None) -> contextlib.AbstractContextManager[Checkpoints | None]:
    return contextlib.nullcontext() if checkpoints is None else contextlib.closing(checkpoints)


def _checkpoints(workdir: Workdir, config: ConfigDict, rating: dict[int, float], mirror: Mirror | None) -> Checkpoints:
    options = config.checkpoint
    return Checkpoints(
        workdir.checkpoints,
        keep=options.keep,
        keep_every=options.keep_every,
        best=options.best,
        rating=rating,
        on_saved=mirror.push if mirror else None,
    )


def _check_numbers(config: ConfigDict) -> None:
    """Raises unless every interval ends where a dispatch of several steps does, and there is a step to do."""
    n = config.train.steps_per_dispatch
    if n < 1 or config.train.steps < 1:
        raise UserError(f"train.steps={config.train.steps} and train.steps_per_dispatch={n} are at least 1")
    intervals = {
        "train.steps": config.train.steps,
        "log_every": config.log_every,
        "checkpoint.every": config.checkpoint.every,
        "sample.every": config.sample.every,
        "evaluate.every": config.evaluate.every,
        "ema.every": config.ema.every,
    }
    training_evaluation.check_intervals(config)
    snapshots.check(config)
    for name, value in intervals.items():
        if value < 0 or value % n:
            raise UserError(f"{name}={value} is not a multiple of train.steps_per_dispatch={n}")
    least = {"nonfinite_limit": 1, "nonfinite_rollbacks": 0, "hang_seconds": 0, "spike_window": 1, "spike_limit": 1}
    for name, minimum in least.items():
        if config.train[name] < minimum:
            raise UserError(f"train.{name}={config.train[name]} is at least {minimum}")
    if config.train.spike_factor and config.train.spike_factor <= 1:
        raise UserError(f"train.spike_factor={config.train.spike_factor} is greater than 1, or 0 for no such check")


def _initial_state(config: ConfigDict, task: tasks.Task, mesh: Mesh) -> TrainState:
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
        layout = build.layout(config, task.abstract, mesh)
        params = checkpoints.restore_tree("ema", abstract_like(task.abstract.ema, layout.ema), step)
    print(f"starting with the averaged parameters of step {step} in {other.root}")
    return state._replace(params=params, ema=jax.tree.map(jnp.copy, params))
