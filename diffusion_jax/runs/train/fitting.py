"""The training loop of a run, with its hooks."""

import contextlib
from collections.abc import Iterator

import jax

from diffusion_jax import config as configs
from diffusion_jax import experiment
from diffusion_jax.report.metrics import MetricWriter, NullWriter
from diffusion_jax.report.progress import Progress, progress
from diffusion_jax.runs.train.evaluations import Evaluations
from diffusion_jax.runs.train.loss_curve import LossCurve
from diffusion_jax.runs.train.metric_log import MetricLog
from diffusion_jax.runs.train.parts import Run
from diffusion_jax.runs.train.previews import Previews
from diffusion_jax.runs.train.profiles import Profiles
from diffusion_jax.runs.train.provenance import Provenance
from diffusion_jax.runs.train.records import append_nonfinite, append_start, example_log
from diffusion_jax.runs.train.saving import Saving
from diffusion_jax.train import feed, loop, sharding
from diffusion_jax.train.guard import Guard
from diffusion_jax.train.hooks import Hook
from diffusion_jax.train.spikes import Spikes
from diffusion_jax.train.state import TrainState


def fit(run: Run, state: TrainState, resumed: int | None) -> TrainState:
    """Trains from state, of the checkpoint at step resumed (None: a new run), to the last step or a stop."""
    config, task, workdir = run.config, run.task, run.workdir
    text = configs.to_json(config)
    state_size = sum(a.size for a in jax.tree.leaves(state.params))
    seed = jax.jit(lambda: jax.random.key(config.seed), out_shardings=sharding.replicated(run.mesh))()
    writer = MetricWriter(workdir.root, resumed, run.trackers) if run.first else NullWriter()
    bar = progress(config.train.steps, start=resumed or 0, units_per_step=config.train.batch_size, show=run.first)
    run.trackers.config(configs.flat(config.to_dict()), text)
    for line in run.trackers.lines:
        print(line, flush=True)
    with writer, example_log(config, workdir, resumed) as handed, bar as shown:
        guard = Guard(
            config.train.nonfinite_limit,
            _spikes(run),
            lambda event: append_nonfinite(workdir, event, config, len(task.source)) if run.first else None,
        )
        saving = Saving(run.checkpoints, text, task.measure, guard)
        counters = (guard.drain, saving.drain, lambda: _corrupt(run))
        log = MetricLog(writer.scalars, config.train.batch_size, counters, experiment.learning_rate(config))
        provenance = Provenance(run)
        curve = LossCurve(workdir, draws=run.first)
        hooks = [
            Hook(config.log_every, log.run, at_end=True, phase="save"),
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
        return loop.fit(
            state,
            lambda state, batch: task.step(state, batch, seed),
            feed.device_batches(
                task.batches, run.mesh, steps_per_dispatch=config.train.steps_per_dispatch, handed=handed
            ),
            hooks,
            steps=config.train.steps,
            stop=run.stop,
            watch=(
                log.watch,
                lambda step, metrics, position: _begun(run, state_size, resumed or 0),
                lambda step, metrics, position: shown.update(step, loss=log.latest["loss"]),
                guard.watch,
            ),
            phase=lambda name: _phase(run, shown, name),
        )


@contextlib.contextmanager
def _phase(run: Run, shown: Progress, name: str) -> Iterator[None]:
    """A phase of the watchdog; the compilation is shown, for it may take minutes."""
    compiling = shown.doing("compiling the training step") if name == "compile" else contextlib.nullcontext()
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
