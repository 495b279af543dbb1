"""`diffusion-jax launch`: writes the job file for a cluster, and submits it."""

import dataclasses
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from diffusion_jax.errors import UserError, did_you_mean
from diffusion_jax.launching.job import Job
from diffusion_jax.launching.render import Cluster, JobSet, Sky, Slurm, TpuVm
from diffusion_jax.report.atomic import replace_file
from diffusion_jax.runs.workdir.paths import Workdir


@dataclasses.dataclass(frozen=True)
class Target:
    """A kind of cluster, its file and the command that takes the file."""

    cluster: type[Cluster]
    suffix: str  # of the file
    submit: tuple[str, ...]  # the command before the file's name


TARGETS = {
    "slurm": Target(Slurm, ".sbatch", ("sbatch",)),
    "tpu_vm": Target(TpuVm, ".sh", ("bash",)),
    "jobset": Target(JobSet, ".yaml", ("kubectl", "apply", "-f")),
    "sky": Target(Sky, ".yaml", ("sky", "jobs", "launch")),
}


def launch(target: str, job: Job, options: Mapping[str, object], *, dry_run: bool, out: Path | None = None) -> int:
    """Writes the file of a job for a target of `TARGETS`, submits it unless dry_run, and returns the exit status.

    options are fields of the target's `Cluster`. The file is `out`, or else NAME with the target's suffix; a dry_run
    without out prints it. Raises UserError, before anything is written, for an unknown target or option, for a value
    that the cluster would refuse, and where its command is not installed.
    """
    chosen = TARGETS.get(target)
    if chosen is None:
        near = did_you_mean(target, [*TARGETS, "worker"])
        raise UserError(
            f"unknown target {target!r}; choose from {', '.join(TARGETS)}, or worker on a cluster's hosts{near}"
        )
    known = [field.name for field in dataclasses.fields(chosen.cluster)]
    if unknown := [name for name in options if name not in known]:
        takes = ", ".join(f"--{name}" for name in known)
        raise UserError(f"launch {target} takes no --{unknown[0]}; it takes {takes}")
    text = chosen.cluster(**options).render(job)
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
    """Whether the run in a workdir has a checkpoint after `steps` steps or later."""
    saved = [int(path.name) for path in Workdir(root).checkpoints.glob("*") if path.name.isdecimal()]
    return max(saved, default=-1) >= steps
