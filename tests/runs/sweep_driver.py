"""One sweep process, for another process to kill: its trials are those of sweep_stub.py."""

import functools
import sys
from pathlib import Path

from diffusion_jax.cli.main import main
from diffusion_jax.runs.sweep import local as sweep_local
from diffusion_jax.runs.sweep import trials as sweep_trials

STUB = (sys.executable, str(Path(__file__).with_name("sweep_stub.py")))

if __name__ == "__main__":
    sweep_local.command = functools.partial(sweep_trials.command, program=STUB)
    sys.exit(main(["sweep", *sys.argv[1:]]))
