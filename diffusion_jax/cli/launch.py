"""Starts `train` on a cluster, or with --dry-run shows the job file.

diffusion-jax launch slurm --nodes=2 --gpus=8 --time=24:00:00 --dry-run -- train --config=FILE --workdir=FOLDER
diffusion-jax launch tpu_vm --topology=v5e:4x4 --project=P --zone=Z --spot --bucket=B -- train ... --workdir=/runs/x
diffusion-jax launch jobset --topology=v6e:4x4 --image=I --bucket=B -- train --config=FILE --workdir=/runs/x
diffusion-jax launch jobset --nodes=2 --gpus=8 --gpu=nvidia-h100-80gb --image=I --bucket=B -- train ...
diffusion-jax launch sky --topology=v6e:4x4 --spot --bucket=B -- train --config=FILE --workdir=/runs/x
diffusion-jax launch worker -- train ...

After `--` comes the command line of `train` as on one machine. A run that is stopped, preempted or hangs is started
again and goes on. The hosts of a cluster run `worker`: `train`, with status 75 where it ends before its last step.
"""

import re
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from diffusion_jax import shipped_configs
from diffusion_jax.errors import UserError

TAKES_WORDS = True

OPTIONS: dict[str, tuple[Callable[..., object], str]] = {
    "nodes": (flags.DEFINE_integer, "Machines, of GPUs."),
    "gpus": (flags.DEFINE_integer, "GPUs a node."),
    "gpu": (flags.DEFINE_string, "Kind of GPU: nvidia-h100-80gb for jobset, H100 for sky."),
    "cpus": (flags.DEFINE_integer, "CPUs a GPU, of slurm."),
    "time": (flags.DEFINE_string, "Time limit, of slurm; the run is queued again until it is done."),
    "partition": (flags.DEFINE_string, "Partition, of slurm."),
    "account": (flags.DEFINE_string, "Account, of slurm."),
    "topology": (flags.DEFINE_string, "TPU slice, such as v5e:4x4, v6e:16x16 or v5p:2x2x2."),
    "project": (flags.DEFINE_string, "Google Cloud project, of tpu_vm."),
    "zone": (flags.DEFINE_string, "Google Cloud zone, of tpu_vm."),
    "spot": (flags.DEFINE_bool, "Machines that may be preempted, at a lower price."),
    "bucket": (flags.DEFINE_string, "Bucket of Cloud Storage, mounted at /runs; its name without gs://."),
    "image": (flags.DEFINE_string, "Container image with diffusion-jax and the config, of jobset."),
    "setup": (flags.DEFINE_string, "Shell line that comes before, on every host; not of jobset, whose image has all."),
    "restarts": (flags.DEFINE_integer, "Starts again at most so many times, 100 if left out; sky has no limit."),
    "service_account": (flags.DEFINE_string, "Kubernetes service account that may use the bucket, of jobset."),
}
"""The options of all targets. `launching.render` says which target takes which."""


def define(values: flags.FlagValues, arguments: Sequence[str]) -> None:
    """The command's flags."""
    values.set_gnu_getopt(True)  # the target comes first
    for name, (kind, text) in OPTIONS.items():
        kind(name, None, text, flag_values=values)
    flags.DEFINE_string("name", None, "Name of the job; the config's if left out.", flag_values=values)
    flags.DEFINE_bool("dry-run", False, "Show the file, and start nothing.", flag_values=values)
    flags.DEFINE_string("out", None, "File to write; by default NAME and the target's suffix.", flag_values=values)


def run(values: flags.FlagValues, words: Sequence[str] = ()) -> int:
    """Starts the job or shows its file. Returns the exit status."""
    target, line = (words[0], list(words[1:])) if words else ("", [])
    if not target or line[:1] != ["train"]:
        raise UserError(
            "launch is written: diffusion-jax launch TARGET --flags -- train --config=FILE --workdir=FOLDER"
        )
    train = _checked(line)
    if target == "worker":
        return _worker(line, Path(train.workdir), train.config.train.steps)
    from diffusion_jax.launching.job import Job
    from diffusion_jax.runs.launch.run import launch

    config = Path(config_flags.get_config_filename(train["config"]).partition(":")[0]).stem
    job = Job(
        name=values.name or re.sub(r"[^a-z0-9]+", "-", config.lower()).strip("-")[:40].strip("-"),
        arguments=tuple(line[1:]),
        workdir=train.workdir,
        made_by=shlex.join(["diffusion-jax", *_said(values, target), "--", *line]),
    )
    options = {name: values[name].value for name in OPTIONS if values[name].present}
    out = Path(values.out) if values.out else None
    return launch(target, job, options, dry_run=bool(values["dry-run"].value), out=out)


def _checked(line: Sequence[str]) -> flags.FlagValues:
    """The flags of a command line of `train`. Raises UserError for flags that `train` would refuse."""
    from diffusion_jax import config as configs
    from diffusion_jax.cli import main, train

    values = flags.FlagValues()
    here = shipped_configs.with_paths(line[1:], main.CONFIG_FLAGS)  # on the machines, `train` looks for names itself
    train.define(values, here)
    if extra := main.parse(values, "train", here):
        raise UserError(f"unexpected argument {extra[0]!r}; every option is written --flag=value")
    if not values.config or not values.workdir:
        raise UserError("train needs --config=FILE and --workdir=FOLDER")
    configs.check(values.config)
    return values


def _worker(line: Sequence[str], workdir: Path, steps: int) -> int:
    """Runs `train`. Returns its exit status, or `HANG` where the run has not reached its last step."""
    from diffusion_jax.cli.main import main
    from diffusion_jax.runs.launch.run import finished
    from diffusion_jax.train.faults import HANG

    status = main(line)
    if status == 0 and not finished(workdir, steps):
        print("diffusion-jax: saved, and not done yet: start it again", file=sys.stderr, flush=True)
        return HANG
    return status


def _said(values: flags.FlagValues, target: str) -> list[str]:
    """The words of this command with --dry-run, which render the file again."""
    said = ["launch", target]
    for name in (*OPTIONS, "name"):
        flag = values[name]
        if flag.present:
            said.append(f"--{name}" if flag.value is True else f"--{name}={flag.value}")
    return [*said, "--dry-run"]
