"""Trains a config in a workdir, from its newest checkpoint on if it has one.

diffusion-jax train --config=configs/digits.py --workdir=runs/digits [--config.KEY=VALUE ...]

Each of several processes runs this line. On a TPU pod, in SLURM and under Open MPI they find each other, elsewhere by
--coordinator, --num_processes and --process_id or JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID.
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import config_flags

NEEDS = ("config=FILE", "workdir=FOLDER")
"""Flags without which the command is an error."""


def define(values: flags.FlagValues, arguments: Sequence[str]) -> None:
    """The command's flags."""
    config_flags.DEFINE_config_file(
        "config", None, "Config file; --config.KEY=VALUE changes a key.", flag_values=values, sys_argv=list(arguments)
    )
    flags.DEFINE_string("workdir", None, "Folder of this run.", flag_values=values)
    flags.DEFINE_string("coordinator", "", "host:port of process 0, where the run has several.", flag_values=values)
    flags.DEFINE_integer("num_processes", None, "How many processes the run has.", flag_values=values)
    flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.", flag_values=values)
    flags.DEFINE_integer(
        "heartbeat_seconds", 20, "A process without a sign of life for so long is taken for dead.", flag_values=values
    )
    flags.DEFINE_string(
        "profile",
        "",
        "FIRST:LAST, such as 100:105: steps that process 0 records in WORKDIR/trace, for XProf and Perfetto.",
        flag_values=values,
    )


def run(values: flags.FlagValues) -> None:
    """Trains."""
    from diffusion_jax.train import processes

    processes.join(
        values.coordinator, values.num_processes, values.process_id, heartbeat_seconds=values.heartbeat_seconds
    )
    from diffusion_jax.runs.train import train
    from diffusion_jax.runs.train.trace import traced_steps

    train(values.config, Path(values.workdir), traced_steps(values.profile) if values.profile else None)
