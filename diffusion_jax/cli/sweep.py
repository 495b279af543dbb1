"""Sweeps hyperparameters: runs trials of a config, each in an ordinary workdir, and writes a report that ranks them.

diffusion-jax sweep --config=configs/digits.py --sweep=configs/sweeps/digits_lr.py --workdir=runs/sweep --jobs=2
diffusion-jax sweep --config=configs/digits.py --sweep=configs/sweeps/digits_lr8.py --workdir=runs/lr8 --vectorised
diffusion-jax sweep --config=configs/digits.py --sweep=... --workdir=... --launcher=slurm --slurm=partition=gpu
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import config_flags

NEEDS = ("config=FILE", "sweep=FILE", "workdir=FOLDER")
"""Flags without which the command is an error."""

SOME_FAILED = 4
"""The exit status of a complete sweep of which some trials failed."""


def define(values: flags.FlagValues, arguments: Sequence[str]) -> None:
    """The command's flags."""
    config_flags.DEFINE_config_file(
        "config", None, "Config file; --config.KEY=VALUE changes a key.", flag_values=values, sys_argv=list(arguments)
    )
    flags.DEFINE_string("sweep", None, "Python file with get_sweep().", flag_values=values)
    flags.DEFINE_string("workdir", None, "Folder of the sweep; each trial is a workdir in it.", flag_values=values)
    flags.DEFINE_string("launcher", "local", "local, slurm, or manifest: a file of commands.", flag_values=values)
    flags.DEFINE_integer("jobs", 1, "Trials at once, which share the devices.", flag_values=values)
    flags.DEFINE_bool("vectorised", False, "All trials as one program.", flag_values=values)
    flags.DEFINE_string("storage", "", "URL of Optuna's database; a file in the workdir if not.", flag_values=values)
    flags.DEFINE_bool("retry", False, "Run trials that failed again.", flag_values=values)
    flags.DEFINE_string("slurm", "", "For --launcher=slurm: partition=gpu,timeout_min=60.", flag_values=values)
    flags.DEFINE_integer("worker", None, "Of a job that --launcher=slurm started: its trial.", flag_values=values)


def run(values: flags.FlagValues) -> int:
    """Sweeps; returns the exit status."""
    from diffusion_jax.runs.sweep.run import LaunchOptions, sweep

    options = LaunchOptions(
        values.launcher,
        values.jobs,
        values.vectorised,
        values.storage,
        values.retry,
        values.worker,
        values.slurm,
    )
    failed = sweep(
        values.config,
        config_flags.get_config_filename(values["config"]),
        dict(config_flags.get_override_values(values["config"])),
        Path(values.sweep),
        Path(values.workdir),
        options,
    )
    return SOME_FAILED if failed else 0
