"""Runs `diffusion-jax` commands one after another, each in a process that was forked after the imports.

The processes, and what goes between them:

    pytest (gauntlet_test.py)             this driver                      a run, forked from the driver
      JSON list on its stdin  --------->   forks  ----------------------->  `diffusion-jax train ...`,
                                                                            its output in a file
      process number          <---------   prints it
      SIGKILL or SIGTERM  ----------------------------------------------->  dies, or saves and ends
      return code             <---------   waits for the run, prints it
      looks at the workdir, and sends the same command again: the run goes on from its newest checkpoint

The list is the file for the output and the arguments of the command. The return code is negative where a signal ended
the run. The driver itself imports and starts no device, so that a run takes seconds. Some runs are started as a user
does, by `python -m diffusion_jax` without the driver (`Commands` in gauntlet_test.py).
"""

import json
import os
import sys
import warnings

import diffusion_jax.runs.train  # all that training imports, which takes longest; it starts no device
from diffusion_jax.cli.entry import entry

assert diffusion_jax.runs.train
warnings.filterwarnings("ignore", message="os.fork")


def child(output, arguments):
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.argv = ["diffusion-jax", *arguments]
    status = 1
    try:
        entry()
    except SystemExit as ended:
        status = ended.code
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    for line in sys.stdin:
        output, *arguments = json.loads(line)
        number = os.fork()
        if not number:
            child(output, arguments)
        print(number, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(number, 0)[1]), flush=True)
