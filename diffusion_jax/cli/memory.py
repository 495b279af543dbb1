"""How the process allocates memory, which can be chosen only when it starts."""

import contextlib
import os
import platform
import signal
import sys

from diffusion_jax.cli.interrupts import ENDING

HUGE_PAGES = "glibc.malloc.hugetlb=1"


def ask_for_huge_pages() -> None:
    """Starts this process again, once, so that glibc's malloc asks the kernel for huge pages.

    On a CPU, XLA allocates the memory of every step again, because glibc returns blocks of that size in between. With
    pages of 4 KiB the kernel then clears and maps them for a fifth of a step.

    It does nothing without glibc, where GLIBC_TUNABLES is set, and where the system does not start the process again.
    It also does nothing in a process that is not a script or this package run with its present arguments: one that
    forks, calls commands itself or reads its program from a pipe could not be started again.

    The process that starts again has `ENDING` blocked, as the interpreter would answer them by a traceback; it is to
    call `interrupts.ending_on_signal`, which takes those that wait.
    """
    as_started = sys.orig_argv[1:] in (sys.argv, ["-m", "diffusion_jax", *sys.argv[1:]]) and os.path.isfile(sys.argv[0])
    if as_started and platform.libc_ver()[0] == "glibc" and "GLIBC_TUNABLES" not in os.environ:
        signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
        # An interpreter that cannot be started again goes on, a bit slower.
        with contextlib.suppress(OSError, TypeError, ValueError):
            os.execve(
                sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, "GLIBC_TUNABLES": HUGE_PAGES}
            )
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
