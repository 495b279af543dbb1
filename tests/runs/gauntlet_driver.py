"""Runs `diffusion-jax` commands, each in a process of its own that was forked after the imports.

A line on stdin is a JSON list, the file for its output and the command's arguments. Answers with the process's number,
and once it has ended with its return code, negative where a signal ended it.
"""

import json
import os
import sys
import warnings

import diffusion_jax.runs.train  # all that training imports, which takes longest; it starts no device
from diffusion_jax.cli.main import entry

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
