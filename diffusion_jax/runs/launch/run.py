"""`diffusion-jax launch`: a job as the file that a cluster takes, and handed to it."""

import dataclasses
import inspect
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from diffusion_jax.errors import UserError, did_you_mean
from diffusion_jax.launching import render
from diffusion_jax.launching.job import Job
from diffusion_jax.report.atomic import replace_file
from diffusion_jax.runs.workdir.paths import Workdir


@dataclasses.dataclass(frozen=True)
class Target:
    """A kind of cluster."""

    render: Callable[..., str]
    suffix: str  # of the file
    submit: tuple[str, ...]  # what takes the file


TARGETS = {
    "slurm": Target(render.slurm, ".sbatch", ("sbatch",)),
    "tpu_vm": Target(render.tpu_vm, ".sh", ("bash",)),
    "jobset": Target(render.jobset, ".yaml", ("kubectl", "apply", "-f")),
    "sky": Target(render.sky, ".yaml", ("sky", "jobs", "launch")),
}


def launch(target: str, job: Job, options: Mapping[str, Any], *, dry_run: bool, out: Path | None = None) -> int:
    """Renders job for the target with its options, and unless dry_run hands the file to the cluster; its exit status.

    The file is out, or what is printed where dry_run and no out. Raises UserError before anything is written.
    """
    chosen = TARGETS.get(target)
    if chosen is None:
        near = did_you_mean(target, [*TARGETS, "worker"])
        raise UserError(
            f"unknown target {target!r}; choose from {', '.join(TARGETS)}, or worker on a cluster's hosts{near}"
        )
    known = [name for name in inspect.signature(chosen.render).parameters if name != "job"]
    if unknown := [name for name in options if name not in known]:
        takes = ", ".join(f"--{name}" for name in known)
        raise UserError(f"launch {target} takes no --{unknown[0]}; it takes {takes}")
    text = chosen.render(job, **options)
    if not dry_run and shutil.which(chosen.submit[0]) is None:
        raise UserError(f"there is no {chosen.submit[0]} on this machine, which takes the file; --dry-run prints it")
    if out is None and dry_run:
        print(text, end="")
        return 0
    path = out or Path(f"{job.name}{chosen.suffix}")
    replace_file(path, text.encode())
    print(f"launch: {path}", flush=True)
    return 0 if dry_run else subprocess.run([*chosen.submit, str(path)]).returncode


def finished(root: Path, steps: int) -> bool:
    """Whether the run in a workdir has been trained for so many steps, and saved."""
    saved = [int(path.name) for path in Workdir(root).checkpoints.glob("*") if path.name.isdecimal()]
    return max(saved, default=-1) >= steps
