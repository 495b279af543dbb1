"""Starts N processes of one command on this machine, which find each other on loopback: a cluster to try things on.

    python launch/local.py --processes=2 -- train --config=configs/digits.py --workdir=runs/digits

Each has one CPU device, unless JAX_PLATFORMS says otherwise; lines of output begin with the number of their process.
SIGINT and SIGTERM go to all of them. Ends with 0, or with the first status of a process that is not, once the others
have ended: they get a SIGTERM, and a SIGKILL after --grace seconds.
"""

import argparse
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import IO


def environment(base: dict[str, str], port: int, processes: int, process: int) -> dict[str, str]:
    """What a process is told by: its place among the others, and to make one CPU device, for two may deadlock."""
    flags = re.sub(r"--xla_force_host_platform_device_count=\d+", "", base.get("XLA_FLAGS", ""))
    return base | {
        "JAX_PLATFORMS": base.get("JAX_PLATFORMS", "cpu"),
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": str(processes),
        "JAX_PROCESS_ID": str(process),
        "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count=1".strip(),
    }


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def prefixed(source: IO[str], target: IO[str], prefix: str) -> None:
    """Copies lines until the source ends."""
    for line in source:
        target.write(f"{prefix}{line}" if line.endswith("\n") else f"{prefix}{line}\n")
        target.flush()


def status(returncode: int) -> int:
    """The exit status as a shell gives it: 128 + n for one that signal n ended."""
    return 128 - returncode if returncode < 0 else returncode


def run(command: list[str], processes: int, *, grace: float = 10.0) -> int:
    """Starts that many and waits for them; returns the status to end with."""
    port = free_port()
    started: list[subprocess.Popen[str]] = []
    threads: list[threading.Thread] = []

    def forward(number: int, frame: object) -> None:
        for process in started:
            if process.poll() is None:
                process.send_signal(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, forward)
    for i in range(processes):
        # In a session of its own, or a terminal's Ctrl-C would reach it twice.
        process = subprocess.Popen(
            command,
            env=environment(dict(os.environ), port, processes, i),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        started.append(process)
        for source, target in ((process.stdout, sys.stdout), (process.stderr, sys.stderr)):
            assert source is not None
            threads.append(threading.Thread(target=prefixed, args=(source, target, f"[{i}] "), daemon=True))
            threads[-1].start()
    first_bad, deadline = 0, float("inf")
    while None in [process.poll() for process in started]:
        bad = [process.returncode for process in started if process.returncode]
        if bad and not first_bad:
            first_bad, deadline = status(bad[0]), time.monotonic() + grace
            print(f"local: a process ended with status {first_bad}; ending the others", file=sys.stderr, flush=True)
            forward(signal.SIGTERM, None)
        if time.monotonic() > deadline:
            forward(signal.SIGKILL, None)
        time.sleep(0.05)
    for thread in threads:
        thread.join(timeout=5)
    return first_bad or next((status(process.returncode) for process in started if process.returncode), 0)


def main() -> int:
    """Reads the flags and runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, required=True)
    parser.add_argument("--grace", type=float, default=10.0, help="seconds between a SIGTERM and a SIGKILL")
    parser.add_argument("arguments", nargs="+", help="of `python -m diffusion_jax`, after --")
    options = parser.parse_args()
    if options.processes < 1:
        parser.error(f"--processes={options.processes} is at least 1")
    return run([sys.executable, "-m", "diffusion_jax", *options.arguments], options.processes, grace=options.grace)


if __name__ == "__main__":
    sys.exit(main())
