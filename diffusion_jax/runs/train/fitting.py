"""The training loop of a run, with its hooks."""

import contextlib
from collections.abc import Iterator

import jax

from diffusion_jax import config as configs
from diffusion_jax import experiment
from diffusion_jax.report.metrics import MetricWriter, NullWriter
from diffusion_jax.report.progress import Progress, progress
from diffusion_jax.runs.train.evaluations import Evaluations
from diffusion_jax.runs.train.input_watch import InputWatch
from diffusion_jax.runs.train.loss_curve import LossCurve
from diffusion_jax.runs.train.metric_log import MetricLog
from diffusion_jax.runs.train.parts import Run
from diffusion_jax.runs.train.previews import Previews
from diffusion_jax.runs.train.profiles import Profiles
from diffusion_jax.runs.train.provenance import Provenance
from diffusion_jax.runs.train.records import append_nonfinite, append_start, example_log
from diffusion_jax.runs.train.saving import Saving
from diffusion_jax.runs.train.trace import StepOfBatch, Trace
from diffusion_jax.train import feed, loop, sharding
from diffusion_jax.train.guard import Guard
from diffusion_jax.train.hooks import Hook
from diffusion_jax.train.spikes import Spikes
from diffusion_jax.train.state import TrainState


def fit(run: Run, state: TrainState, resumed: int | None) -> TrainState:
    """Trains from state, of the checkpoint at step resumed (None: a new run), to the last step or a stop."""
    config, task, workdir = run.config, run.task, run.workdir
    text = configs.to_json(config)
    parameters = sum(a.size for a in jax.tree.leaves(state.params))
    seed = jax.jit(lambda: jax.random.key(config.seed), out_shardings=sharding.replicated(run.mesh))()
    writer = MetricWriter(workdir.root, resumed, run.trackers) if run.first else NullWriter()
    bar = progress(config.train.steps, start=resumed or 0, units_per_step=config.train.batch_size, show=run.first)
    run.trackers.config(configs.flat(config.to_dict()), text)
    for line in run.trackers.lines:
        print(line, flush=True)
    with writer, example_log(config, workdir, resumed) as handed, bar as shown, contextlib.ExitStack() as ends:
        guard = Guard(
            config.train.nonfinite_limit,
            _spikes(run),
            lambda event: append_nonfinite(workdir, event, config, task.batches) if run.first else None,
        )
        run.checkpoints.prepare(state)
        saving = Saving(run.checkpoints, text, task.measure, guard)
        watched = InputWatch(config, task.source, task.batches, prints=run.first)
        counters = (guard.drain, saving.drain, watched.counted, lambda: _corrupt(run))
        log = MetricLog(writer.scalars, config.train.batch_size, counters, experiment.learning_rate(config))
        provenance = Provenance(run)
        curve = LossCurve(workdir, draws=run.first)
        hooks = [
            Hook(config.log_every, log.run, at_end=True, phase="save"),
            Hook(config.log_every, watched.run, phase="save"),
            Hook(config.checkpoint.every, saving.run, at_end=True, phase="save"),
            Hook(config.log_every, provenance.run, at_end=True, phase="save"),
            Hook(config.sample.every, curve.run, at_end=True),
            Hook(config.sample.every, Previews(run, writer, shown).run),
        ]
        if run.profiles is not None:
            profiles = Profiles(run.profiles, text, config.ema.every)
            with run.watchdog.phase("save"):
                profiles.resume(state, resumed)
            hooks.append(Hook(config.ema.every, profiles.run, phase="save"))
        if task.evaluation is not None:
            evaluations = Evaluations(run, task.evaluation, writer, shown)
            evaluations.resume(state, resumed)
            hooks.append(Hook(config.evaluate.every, evaluations.run))
        step: StepOfBatch = lambda state, batch: task.step(state, batch, seed)  # noqa: E731
        if (trace := _trace(run, resumed)) is not None:
            hooks, step = [trace.ends, *hooks, trace.begins], trace.traced(step)
            ends.callback(trace.close)
        return loop.fit(
            state,
            step,
            feed.device_batches(
                task.batches, run.mesh, steps_per_dispatch=config.train.steps_per_dispatch, handed=handed
            ),
            hooks,
            steps=config.train.steps,
            stop=run.stop,
            watch=(
                log.watch,
                lambda step, metrics, position: _begun(run, parameters, resumed or 0),
                lambda step, metrics, position: shown.update(step, loss=log.latest["loss"]),
                guard.watch,
            ),
            phase=lambda name: _phase(run, shown, name),
        )


def _trace(run: Run, resumed: int | None) -> Trace | None:
    """What records the steps that are to be traced, if any, in the first process alone."""
    if run.traced is None or not run.first:
        return None
    # A start's first dispatch compiles, so that it is in no trace.
    if run.traced.first - 1 < (resumed or 0) + run.config.train.steps_per_dispatch:
        print(f"no trace of steps {run.traced.first} to {run.traced.last}: this start began after step {resumed}")
        return None
    return Trace(run.workdir.trace, run.traced)


@contextlib.contextmanager
def _phase(run: Run, shown: Progress, name: str) -> Iterator[None]:
    """A phase of the watchdog; the compilation is shown, for it may take minutes."""
    compiling = shown.doing("compiling the training step", once=True) if name == "compile" else contextlib.nullcontext()
    with run.watchdog.phase(name), compiling:
        yield


def _begun(run: Run, parameters: int, start: int) -> None:
    """After a step: notes the start, marks the workdir as begun, so that it stays, and raises a failed save's error."""
    if not run.training.begun and run.first:
        append_start(run, parameters, start)
    run.training.begun = True
    run.checkpoints.raise_failed_save()


def _corrupt(run: Run) -> dict[str, float]:
    """{"corrupt_examples": examples that this process could not read since it started}, or {} for none."""
    count = len(run.task.batches.skipped.found)
    return {"corrupt_examples": count} if count else {}


def _spikes(run: Run) -> Spikes | None:
    options = run.config.train
    if not options.spike_factor:
        return None
    return Spikes(factor=options.spike_factor, window=options.spike_window, limit=options.spike_limit)
