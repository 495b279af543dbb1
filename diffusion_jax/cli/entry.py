"""The console script: what has to come before the imports of a command, and the status that its process ends with."""

import contextlib
import os
import sys
from types import TracebackType

from diffusion_jax.cli import interrupts
from diffusion_jax.cli.memory import ask_for_huge_pages

UNREAD = 141
"""The status where nothing reads the output any more: that of a program which SIGPIPE ends."""


def entry() -> None:
    """Runs the command of `sys.argv` and ends the process with its status.

    A signal that no command notes itself ends the process within 5 s, with status 128 + its number.
    """
    ask_for_huge_pages()  # before imports, which the process that starts again would repeat
    sys.excepthook = _print_uncaught
    try:
        with interrupts.ending_on_signal():
            status = _run(sys.argv[1:])
    except BrokenPipeError:
        status = _unread()
    except KeyboardInterrupt as interrupt:
        status = interrupts.stopped(interrupt)
    except Exception as error:
        sys.__excepthook__(type(error), error, error.__traceback__)
        status = 1
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    if status and (processes := sys.modules.get("diffusion_jax.train.processes")):
        processes.leave(status)
    interrupts.end(status)


def _run(arguments: list[str]) -> int:
    # Imported here, where a signal already ends the process: these imports take most of the time of `--help`.
    from diffusion_jax.cli import accelerators
    from diffusion_jax.cli.main import main

    accelerators.prepare(arguments)
    status = main(arguments)
    sys.stdout.flush()
    return status


def _print_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """As Python does it, but for what Orbax's threads throw once their event loop is closed, after a failed save."""
    if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
        sys.__excepthook__(kind, error, trace)


def _unread() -> int:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):  # Python writes what is left of them as it ends
        with contextlib.suppress(OSError, ValueError, AttributeError):
            os.dup2(nowhere, stream.fileno())
    return UNREAD
