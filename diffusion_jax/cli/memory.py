"""How the process gets its memory, which can only be said as it starts."""

import contextlib
import os
import platform
import sys

HUGE_PAGES = "glibc.malloc.hugetlb=1"


def ask_for_huge_pages() -> None:
    """Starts this process anew, once, with glibc's malloc asking the kernel for huge pages; elsewhere does nothing.

    On a CPU, XLA takes the memory of every step anew, and glibc gives blocks of that size back in between: at 4 KiB a
    page, the kernel's clearing and mapping of them is a fifth of a step.

    Who sets GLIBC_TUNABLES, to whatever, keeps it. A process that is not a script or this package run with its present
    words stays as it is: one that forks, calls commands by itself or reads its program from a pipe could not be started
    again. So does one that the system does not start anew, for whatever reason.
    """
    as_started = sys.orig_argv[1:] in (sys.argv, ["-m", "diffusion_jax", *sys.argv[1:]]) and os.path.isfile(sys.argv[0])
    if as_started and platform.libc_ver()[0] == "glibc" and "GLIBC_TUNABLES" not in os.environ:
        with contextlib.suppress(
            OSError, TypeError, ValueError
        ):  # an interpreter that cannot be started anew runs as it is, a bit slower
            os.execve(
                sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, "GLIBC_TUNABLES": HUGE_PAGES}
            )
