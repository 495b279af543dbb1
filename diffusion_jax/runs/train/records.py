"""Records of a training run beside its checkpoints and metrics: steps that are not finite, examples, summaries."""

import contextlib
import json
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from diffusion_jax import config as configs
from diffusion_jax.data.pipeline import TrainBatches
from diffusion_jax.report.atomic import replace_file
from diffusion_jax.report.examples import ExampleLog
from diffusion_jax.runs.train.parameter_table import parameter_table
from diffusion_jax.runs.train.parts import Run
from diffusion_jax.runs.workdir import events
from diffusion_jax.runs.workdir.paths import Workdir
from diffusion_jax.train.guard import NonFinite
from diffusion_jax.train.provenance import source_commit, versions
from diffusion_jax.train.state import TrainState


def append_nonfinite(workdir: Workdir, event: NonFinite, config: ConfigDict, batches: TrainBatches) -> None:
    """Appends to nonfinite.jsonl everything that the step depended on except the state: its examples and its seed."""
    n = config.train.batch_size
    start = event.position["position"] - (event.after + 1) * n
    record = {
        "step": event.step,
        "positions": [start, start + n],  # in the stream of examples, the last one excluded
        "examples": batches.examples(start).tolist(),  # their places in the source
        "seed": config.seed,  # times and noise are drawn with fold_in(key(seed), step - 1)
        **{name: str(value) for name, value in event.metrics.items()},
    }
    with (workdir.root / "nonfinite.jsonl").open("a") as file:
        file.write(json.dumps(record) + "\n")


def append_start(run: Run, parameters: int, step: int) -> None:
    """Notes in events.jsonl that the run of so many parameters has made its first step after `step`."""
    device = run.mesh.devices.flat[0]
    events.append(
        run.workdir,
        events.START,
        step,
        **events.command(),
        parameters=parameters,
        examples=len(run.task.source),
        devices=run.mesh.devices.size,
        device=device.device_kind,
        processes=jax.process_count(),
        mesh={axis: size for axis, size in run.mesh.shape.items() if size > 1},
        commit=source_commit(),
        versions=versions(),
    )


@contextlib.contextmanager
def example_log(
    config: ConfigDict, workdir: Workdir, resumed: int | None
) -> Iterator[Callable[[np.ndarray], None] | None]:
    """Yields the function that logs the indices of each dispatch's examples; None unless data.log_examples."""
    if not config.data.log_examples:
        yield None
        return
    log = ExampleLog(
        workdir.examples,
        process=jax.process_index(),
        processes=jax.process_count(),
        resumed_step=resumed,
        steps_per_dispatch=config.train.steps_per_dispatch,
    )
    with contextlib.closing(log):
        yield lambda index: log.append(index.tolist())


def print_changes(workdir: Workdir, config: ConfigDict, resumed: int) -> None:
    """Prints the step from which the run goes on, and the config keys that have changed."""
    before, now = (configs.flat(c.to_dict()) for c in (workdir.read_config(), config))
    changed = [f"{key}: {before[key]!r} -> {now[key]!r}" for key in now if before[key] != now[key]]
    print(f"resuming from step {resumed} in {workdir.root}" + (f"; changed: {', '.join(changed)}" if changed else ""))


def print_summary(workdir: Workdir, mesh: Mesh, state: TrainState) -> None:
    """Prints the size of the network and the mesh, and writes the table of every array to a file."""
    replace_file(workdir.parameters, parameter_table(state.params).encode())
    count = sum(a.size for a in jax.tree.leaves(state.params))
    shape = " x ".join(f"{size} {axis}" for axis, size in mesh.shape.items())
    print(f"{count:,} parameters ({workdir.parameters}) on {shape} {mesh.devices.flat[0].device_kind}", flush=True)
