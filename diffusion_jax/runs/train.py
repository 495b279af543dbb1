"""`diffusion-jax train`: a config and a workdir to a trained model."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from clu import parameter_overview
from jax.sharding import Mesh
from ml_collections import ConfigDict

from diffusion_jax import build
from diffusion_jax import config as configs
from diffusion_jax.errors import UserError
from diffusion_jax.report import pictures
from diffusion_jax.report.atomic import replace_file
from diffusion_jax.report.metrics import MetricWriter, NullWriter, read_metrics
from diffusion_jax.report.progress import progress
from diffusion_jax.runs.workdir import Workdir
from diffusion_jax.train import feed, loop, sharding
from diffusion_jax.train.checkpoint import Checkpoints, abstract_like
from diffusion_jax.train.state import TrainState


def train(config: ConfigDict, root: Path) -> None:
    """Trains config in the workdir root, going on from its newest checkpoint if it has one.

    What a user can get wrong raises UserError before the workdir is touched.
    """
    config = configs.check(config)
    _check_intervals(config)
    workdir = Workdir(root)
    mesh = build.mesh(config)
    model = build.model(config)
    source = build.source(config)
    draw_grid = _grid_sampler(config, model, mesh, source.class_names)
    batches = build.batches(config, source)
    step = build.compiled_step(config, model, mesh)
    abstract = build.abstract_state(config, model)
    with contextlib.closing(batches), contextlib.closing(_checkpoints(workdir, config)) as checkpoints:
        resumed = checkpoints.latest()
        if resumed is None:
            state = build.initial_state(config, model, mesh)
        else:
            layout = sharding.tree_sharding(abstract, mesh)
            state, position = checkpoints.restore(abstract_like(abstract, layout), resumed)
            batches.set_state(position)
            _print_changes(workdir, config, resumed)
        if resumed is not None and resumed >= config.train.steps:
            print(f"already trained for {resumed} steps; raise train.steps={config.train.steps} to go on")
            return
        workdir.write_config(config)
        _print_summary(workdir, mesh, state)

        seed = jax.device_put(jax.random.key(config.seed), sharding.replicated(mesh))
        text = configs.to_json(config)
        first = jax.process_index() == 0
        writer = MetricWriter(root, resumed_step=resumed) if first else NullWriter()
        with (
            writer,
            progress(config.train.steps, start=resumed or 0, units_per_step=config.train.batch_size, show=first) as bar,
        ):

            def draw_loss_curve() -> None:
                if first:
                    pictures.curve_png(workdir.loss_curve, read_metrics(workdir.metrics))

            def on_sample(state: TrainState) -> None:
                at, image = int(state.step), draw_grid(state)
                if first:
                    pictures.save_png(workdir.sample_grid(at), image)
                writer.images(at, {"samples": image})
                draw_loss_curve()
                bar.note(f"samples after {at} steps: {workdir.sample_grid(at)}")

            loop.fit(
                state,
                lambda state, batch: step(state, batch, seed),
                feed.device_batches(batches, mesh, steps_per_dispatch=config.train.steps_per_dispatch),
                steps=config.train.steps,
                batch_size=config.train.batch_size,
                log_every=config.log_every,
                save_every=config.checkpoint.every,
                sample_every=config.sample.every,
                on_step=lambda at, metrics: bar.update(at, loss=metrics["loss"]),
                on_log=writer.scalars,
                save=lambda state, position: checkpoints.save(state, position=position, config=text),
                sample=on_sample,
            )
            draw_loss_curve()


def _checkpoints(workdir: Workdir, config: ConfigDict) -> Checkpoints:
    return Checkpoints(workdir.checkpoints, keep=config.checkpoint.keep, keep_every=config.checkpoint.keep_every)


def _check_intervals(config: ConfigDict) -> None:
    """Raises unless every interval ends where a dispatch of several steps does, and there is a step to do."""
    n = config.train.steps_per_dispatch
    if n < 1 or config.train.steps < 1:
        raise UserError(f"train.steps={config.train.steps} and train.steps_per_dispatch={n} are at least 1")
    intervals = {
        "train.steps": config.train.steps,
        "log_every": config.log_every,
        "checkpoint.every": config.checkpoint.every,
        "sample.every": config.sample.every,
    }
    for name, value in intervals.items():
        if value < 0 or value % n:
            raise UserError(f"{name}={value} is not a multiple of train.steps_per_dispatch={n}")


def _print_changes(workdir: Workdir, config: ConfigDict, resumed: int) -> None:
    """Says where the run goes on, and with what other settings than before."""
    before, now = (_flat(c.to_dict()) for c in (workdir.read_config(), config))
    changed = [f"{key}: {before[key]!r} -> {now[key]!r}" for key in now if before[key] != now[key]]
    print(f"resuming from step {resumed} in {workdir.root}" + (f"; changed: {', '.join(changed)}" if changed else ""))


def _print_summary(workdir: Workdir, mesh: Mesh, state: TrainState) -> None:
    """The size of the network and the mesh; the table of every array goes to a file."""
    table = parameter_overview.get_parameter_overview(state.params, include_stats="sharding")
    replace_file(workdir.parameters, table.encode())
    count = sum(a.size for a in jax.tree.leaves(state.params))
    shape = " x ".join(f"{size} {axis}" for axis, size in mesh.shape.items())
    print(f"{count:,} parameters ({workdir.parameters}) on {shape} {mesh.devices.flat[0].device_kind}", flush=True)


def _flat(tree: Mapping, prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _grid_sampler(
    config: ConfigDict, model: build.Model, mesh: Mesh, class_names: Sequence[str] | None
) -> Callable[[TrainState], np.ndarray]:
    """Draws the same seeds' samples from any state's average as one picture, a row a class where there are classes."""
    program = build.sample_program(model, build.sampling(config), mesh)
    rows = max(model.num_classes, 1)
    columns = max(config.sample.num // rows, 1)
    share = mesh.shape["data"] * mesh.shape["fsdp"]
    seeds = np.arange(-(-rows * columns // share) * share, dtype=np.int32)
    labels = np.minimum(seeds // columns, rows - 1)

    def draw(state: TrainState) -> np.ndarray:
        images = np.asarray(program(state.ema, seeds, labels))[: rows * columns]
        pixels = pictures.to_uint8(images)
        if rows == 1:
            return pictures.grid(pixels)
        names = class_names or [str(label) for label in range(rows)]
        return pictures.labelled_grid(pixels.reshape(rows, columns, *model.shape), rows=names)

    return draw
