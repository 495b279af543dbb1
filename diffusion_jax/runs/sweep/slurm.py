"""The trials of a sweep as an array of SLURM jobs, through submitit."""

import ast
import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

from diffusion_jax.errors import UserError
from diffusion_jax.train.faults import Stop

_POLL = 1.0  # seconds

Parameters = dict[str, object]
"""{name of a parameter of submitit: value}."""


def parameters(text: str) -> Parameters:
    """{"partition": "gpu", "timeout_min": 60} from "partition=gpu,timeout_min=60".

    Raises UserError for other text, where submitit is not installed, and where this machine has no SLURM.
    """
    found: Parameters = {}
    for part in filter(None, text.split(",")):
        name, equals, value = part.partition("=")
        if not equals or not name.strip().isidentifier():
            raise UserError(f"--slurm is name=value,..., as in partition=gpu,timeout_min=60; got {part!r}")
        try:
            found[name.strip()] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            found[name.strip()] = value
    submitit = _submitit()
    cluster = found.get("cluster", "slurm")
    if cluster not in ("slurm", "local"):
        raise UserError(f"--slurm has cluster=slurm, or cluster=local for this machine; got {cluster!r}")
    if cluster == "slurm" and submitit.AutoExecutor.which() != "slurm":
        raise UserError("there is no SLURM here (no srun); --slurm=cluster=local runs the array on this machine")
    return found


def _submitit() -> ModuleType:
    """The package submitit. Raises UserError where it is not installed."""
    os.environ.setdefault("SUBMITIT_LOG_LEVEL", "NOCONFIG")  # otherwise its import closes the handlers of all loggers
    try:
        import submitit
    except ImportError:
        raise UserError("--launcher=slurm needs submitit; pip install 'diffusion-jax[slurm]'") from None
    return submitit


def run(
    words: list[str],
    numbers: list[int] | None,
    *,
    workers: int,
    folder: Path,
    options: Mapping[str, object],
    stop: Stop,
) -> None:
    """Submits a job for each of the trial numbers, or `workers` jobs for None, and waits for all of them.

    words are the command line of a worker without its --worker, folder is for submitit's files, and options are those
    of `parameters`. numbers is None where trials depend on results. A job ends at once where another process runs its
    trial or has run it, so a trial may be submitted twice. On a signal the jobs are cancelled, which makes them save.
    """
    submitit = _submitit()
    options = dict(options)
    cluster = options.pop("cluster", "slurm")
    executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
    if cluster == "slurm" and numbers is not None:
        options.setdefault("slurm_array_parallelism", max(workers, 1))
    known = (*_SHARED, *(name for name in options if name.startswith("slurm_")))
    named = {name if name in known else f"slurm_{name}": value for name, value in options.items()}
    try:
        executor.update_parameters(name="sweep", **named)
    except (NameError, ValueError, TypeError) as error:
        raise UserError(f"--slurm has a parameter that submitit does not take: {error}") from error
    every = [[*words, f"--worker={number}"] for number in (numbers if numbers is not None else range(workers))]
    if not every:
        return
    cwd = os.getcwd()
    with executor.batch():
        jobs = [executor.submit(submitit.helpers.CommandFunction(each, cwd=cwd)) for each in every]
    print(f"submitted {len(jobs)} jobs, {jobs[0].job_id} ...; their output is in {folder}", flush=True)
    while not all(job.done() for job in jobs):
        if stop.signal is not None:
            for job in jobs:
                job.cancel()
            return
        time.sleep(_POLL)
    for job in jobs:
        if (failure := job.exception()) is not None:
            print(f"job {job.job_id} failed: {' '.join(str(failure).split())[-300:]}", flush=True)


_SHARED = ("timeout_min", "mem_gb", "nodes", "cpus_per_task", "gpus_per_node", "tasks_per_node")
