"""How soon a command ends after Ctrl-C, in each phase, and how soon --help and a mistake are answered.

    python benchmarks/interrupt_latency.py [--tries=10] [--phases=start,compiling,training,saving,grid,sample]

Each try starts `diffusion-jax` on the digits, waits for the phase and then for a random moment in it, sends SIGINT and
takes the seconds until the process has ended. After the last try of a phase of training the run is resumed for one more
step, which has to succeed. Prints the median and the worst try; ends with status 1 where a process did not end by
itself in 30 s, did not resume, or ended with another status than 130 or, once training has begun and is saved, 0.
"""

import argparse
import dataclasses
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LATEST = 30.0  # seconds after the signal at which a process counts as one that does not end


@dataclasses.dataclass(frozen=True)
class Phase:
    """A command, and the moments of a phase: so many seconds, at least and at most, after a line of output."""

    words: tuple[str, ...]
    after: str  # what the line has; "": from the start of the process
    least: float
    most: float
    cached: bool = True  # whether compiled programs of earlier tries are used


TRAIN = ("train", "--config=digits", "--config.train.steps=1000000", "--config.log_every=5")
NO_GRID = "--config.sample.every=0"

PHASES = {
    "start": Phase((*TRAIN, NO_GRID), "", 0.05, 4.0),
    "compiling": Phase((*TRAIN, NO_GRID), "parameters (", 0.5, 8.0, cached=False),
    "training": Phase((*TRAIN, NO_GRID), "train 1/", 0.1, 4.0),
    "saving": Phase((*TRAIN, NO_GRID, "--config.checkpoint.every=1"), "train 1/", 0.1, 4.0),
    "grid": Phase((*TRAIN, "--config.sample.every=1", "--config.sample.steps=1000"), "train 1/", 0.5, 6.0),
    "sample": Phase(("sample", "--num=8192", "--batch=1024", "--steps=1000"), "", 1.0, 10.0),
}

ANSWERS = {
    "--version": ("--version",),
    "--help": ("--help",),
    "train --help": ("train", "--help"),
    "a mistyped flag": ("train", "--confg=digits"),
    "a mistyped key": ("train", "--config=digits", "--workdir=none", "--config.train.step=1"),
}


def command(words: tuple[str, ...]) -> list[str]:
    return [sys.executable, "-m", "diffusion_jax", *words]


def interrupted(phase: Phase, words: tuple[str, ...], environment: dict[str, str]) -> tuple[float, int]:
    """(seconds from the signal to the end, the exit status) of one try."""
    process = subprocess.Popen(
        command(words), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )
    assert process.stdout is not None
    if phase.after:
        for line in process.stdout:
            if phase.after in line:
                break
        else:
            raise SystemExit(f"{' '.join(words)} ended without a line that has {phase.after!r}")
    time.sleep(random.uniform(phase.least, phase.most))
    if process.poll() is not None:
        raise SystemExit(f"{' '.join(words)} ended before the signal")
    began = time.perf_counter()
    process.send_signal(signal.SIGINT)
    try:
        process.communicate(timeout=LATEST)
    except subprocess.TimeoutExpired:
        process.kill()
    return time.perf_counter() - began, process.wait()


def resumes(root: Path, environment: dict[str, str]) -> bool:
    """Whether the run in root goes on from its newest checkpoint, or from the start where it has none yet."""
    steps = [int(path.name) for path in (root / "checkpoints").glob("*") if re.fullmatch(r"\d+", path.name)]
    words = (*TRAIN[:2], f"--workdir={root}", NO_GRID, f"--config.train.steps={max(steps, default=0) + 1}")
    return subprocess.run(command(words), env=environment, capture_output=True, check=False).returncode == 0


def measured(name: str, tries: int, folder: Path, environment: dict[str, str]) -> bool:
    """Prints the row of a phase; whether all tries ended as they should."""
    phase, seconds, right = PHASES[name], [], True
    trained = folder / "trained"
    if name == "sample" and not trained.exists():
        words = (*TRAIN[:2], f"--workdir={trained}", NO_GRID, "--config.train.steps=2")
        subprocess.run(command(words), env=environment, capture_output=True, check=True)
    for i in range(tries):
        root = folder / f"{name}_{i}"
        where = (f"--workdir={trained}", f"--out={root}") if name == "sample" else (f"--workdir={root}",)
        used = environment if phase.cached else environment | {"JAX_COMPILATION_CACHE_DIR": ""}
        took, status = interrupted(phase, (*phase.words, *where), used)
        seconds.append(took)
        right &= took < LATEST and status in (130, 0 if phase.after else 130)
    resumed = "" if name == "sample" else ", resumes" if (right := right & resumes(root, environment)) else ", FAILS"
    print(f"{name:12} median {statistics.median(seconds):.2f} s, worst {max(seconds):.2f} s of {tries}{resumed}")
    return right


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tries", type=int, default=10)
    parser.add_argument("--phases", default=",".join(PHASES))
    args = parser.parse_args()
    right = True
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(Path(folder) / "compiled")}
        for name in filter(None, args.phases.split(",")):
            right &= measured(name, args.tries, Path(folder), environment)
    for name, words in ANSWERS.items():
        seconds = []
        for _ in range(args.tries):
            began = time.perf_counter()
            subprocess.run(command(words), capture_output=True, check=False)
            seconds.append(time.perf_counter() - began)
        print(f"{name:16} median {statistics.median(seconds):.2f} s, worst {max(seconds):.2f} s of {args.tries}")
    sys.exit(0 if right else 1)


if __name__ == "__main__":
    main()
