"""Trials as processes on this machine, several at a time, which share its devices."""

import contextlib
import dataclasses
import math
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator

from diffusion_jax.errors import UserError
from diffusion_jax.runs.sweep.reporting import not_finite
from diffusion_jax.runs.sweep.trial_source import TrialSource
from diffusion_jax.runs.sweep.trials import DONE, FAILED, PRUNED, Lock, Outcome, Trial, command
from diffusion_jax.sweeps.definition import Changes, Objective
from diffusion_jax.train.faults import Stop

_POLL = 0.2  # seconds


@dataclasses.dataclass(frozen=True)
class Share:
    """The part of the machine that one of the trials gets which run at once."""

    environment: dict[str, str]
    cores: frozenset[int]  # numbers of cores; empty: all


def shares(jobs: int) -> list[Share]:
    """The machine in `jobs` parts: its GPUs or, where there are none, the processor's cores.

    Raises UserError for less than 1 job, and for more jobs than GPUs: two trials on one GPU would compete for memory.
    """
    if jobs < 1:
        raise UserError(f"--jobs is at least 1; got {jobs}")
    gpus = _gpus()
    if not gpus:
        every = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        split = jobs > 1 and len(every) >= jobs
        return [Share({}, frozenset(every[i::jobs]) if split else frozenset()) for i in range(jobs)]
    if jobs > len(gpus):
        raise UserError(f"--jobs={jobs} is more than the {len(gpus)} GPUs here; give at most {len(gpus)}")
    return [Share({"CUDA_VISIBLE_DEVICES": ",".join(gpus[i::jobs])}, frozenset()) for i in range(jobs)]


def _gpus() -> list[str]:
    """The names of the GPUs that jax would use. They are found without jax, which would take their memory."""
    if os.environ.get("JAX_PLATFORMS", "").startswith("cpu"):
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name.strip() and name != "-1"]
    if shutil.which("nvidia-smi") is None:
        return []
    listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    lines = listing.stdout.splitlines() if listing.returncode == 0 else []
    return [str(i) for i, _ in enumerate(line for line in lines if line.startswith("GPU "))]


@contextlib.contextmanager
def _on_cores(cores: frozenset[int]) -> Iterator[None]:
    """While entered, this thread and the processes that it starts run on these cores alone (empty: on all).

    A process inherits them as it starts. Set later, they could come after the process has counted its cores.
    """
    if not cores:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class _Running:
    """The process of a trial. It is in a session of its own: Ctrl-C reaches it through `terminate` alone."""

    def __init__(self, trial: Trial, lock: Lock, share: Share, words: list[str], seen: int):
        self.trial, self.lock, self.share, self.seen = trial, lock, share, seen
        self.started, self.pruned, self._asked = time.monotonic(), False, False
        self._log = trial.log.open("ab")
        self._log_begin = self._log.tell()
        with _on_cores(share.cores):
            self.process = subprocess.Popen(
                words,
                stdout=self._log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=os.environ | share.environment,
                pass_fds=(lock.child,),
                start_new_session=True,
            )
        lock.note(self.process.pid)

    def terminate(self) -> None:
        """Asks the process to save and end, at the first call only: a second SIGTERM would kill it."""
        if not self._asked and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        self._asked = True

    def close(self) -> str:
        """Releases the lock and closes the log. Returns the last line that the process printed."""
        self._log.close()
        self.lock.release()
        with self.trial.log.open("rb") as file:
            file.seek(self._log_begin)
            said = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
        return said[-1].removeprefix("diffusion-jax: ") if said else "it said nothing"


def run(
    source: TrialSource,
    *,
    objective: Objective,
    config_file: str,
    overrides: Changes,
    jobs: int,
    stop: Stop,
    passed_over: frozenset[int] = frozenset(),
) -> None:
    """Runs all trials that no other process runs, and waits for those that others run. On a signal it stops its trials.

    Trials whose numbers are passed_over are left to others. A trial that is stopped saves first. Raises UserError where
    a finished trial has not logged the objective, after its trials have been stopped.
    """

    def words(trial: Trial) -> list[str]:
        return command(config_file, str(trial.workdir.root), overrides | trial.changes)

    waiting_announced = False
    with contextlib.closing(_Jobs(source, objective, words, shares(jobs), passed_over)) as running:
        while True:
            if stop.signal is None:
                running.start()
            if not running:
                elsewhere = running.elsewhere()
                if not elsewhere or stop.signal is not None:
                    return
                if not waiting_announced:
                    numbers = ", ".join(f"{trial.number:03d}" for trial in elsewhere)
                    print(f"waiting for trials that other processes run: {numbers}", flush=True)
                waiting_announced = True
            running.collect(stopping=stop.signal is not None)
            time.sleep(_POLL if running or stop.signal is None else 0)


class _Jobs:
    """The trials that this process runs at once, each on its share of the machine."""

    def __init__(
        self,
        source: TrialSource,
        objective: Objective,
        words: Callable[[Trial], list[str]],
        free: list[Share],
        passed_over: frozenset[int],
    ):
        self._source, self._objective, self._words, self._free = source, objective, words, free
        self._running: list[_Running] = []
        self._left = set(passed_over)  # trials that this process does not start

    def __bool__(self) -> bool:
        return bool(self._running)

    def elsewhere(self) -> list[Trial]:
        """The unfinished trials that other processes run."""
        return [trial for trial in self._source.unfinished() if trial.number not in self._left]

    def start(self) -> None:
        """Starts trials on all free shares, as far as there are trials."""
        while self._free and (claimed := self._source.claim(self._left | {r.trial.number for r in self._running})):
            trial, lock = claimed
            if trial.trained:  # by a line of a manifest, or before a kill
                self._source.tell(trial, found := _settle(trial, self._source, self._objective))
                print(f"trial {trial.number:03d} {found.state}, and was trained before", flush=True)
                lock.release()
                continue
            share = self._free.pop()
            self._running.append(_Running(trial, lock, share, self._words(trial), self._source.seen(trial)))
            print(f"trial {trial.number:03d}: {_say(trial.changes)}", flush=True)

    def collect(self, *, stopping: bool) -> None:
        """Terminates trials that are pruned, or all of them when stopping, and records those that have ended."""
        for one in list(self._running):
            if stopping or (not one.pruned and _pruned(one, self._source, self._objective)):
                one.terminate()
            if one.process.poll() is None:
                continue
            self._running.remove(one)
            self._free.append(one.share)
            if not one.pruned:
                _pruned(one, self._source, self._objective)  # by its last metrics
            outcome = _end(one, self._objective, stopped=stopping)
            if outcome is None:
                self._left.add(one.trial.number)
            else:
                self._source.tell(one.trial, outcome)

    def close(self) -> None:
        """Stops the trials that still run, and waits until they have saved."""
        for one in self._running:
            one.terminate()
        for one in self._running:
            one.process.wait()
            one.close()


def _pruned(one: _Running, source: TrialSource, objective: Objective) -> bool:
    """Reports the new metrics of a trial to the source. Returns whether the source prunes it, then at step `seen`."""
    for step, value in objective.course(one.trial.records()):
        if step > one.seen:
            one.seen = step
            one.pruned = source.report(one.trial, step, value)
            if one.pruned:
                break
    return one.pruned


def _settle(trial: Trial, source: TrialSource, objective: Objective) -> Outcome:
    """The outcome of a trial that no sweep process watched: pruned, where the source would have pruned it."""
    seen = source.seen(trial)
    for step, value in objective.course(trial.records()):
        if step > seen and source.report(trial, step, value):
            return Outcome(PRUNED, value, step=step)
    return outcome_of(trial, objective)


def _end(one: _Running, objective: Objective, *, stopped: bool) -> Outcome | None:
    """The outcome of a trial whose process has ended; None where the trial was stopped and can go on."""
    status, last_line = one.process.returncode, one.close()
    number = f"trial {one.trial.number:03d}"
    seconds = round(time.monotonic() - one.started, 1)
    if one.pruned:
        course = [value for step, value in objective.course(one.trial.records()) if step <= one.seen]
        print(f"{number} pruned after {one.seen} steps: {objective.metric} {course[-1]:.5g}", flush=True)
        return Outcome(PRUNED, course[-1], seconds=seconds, step=one.seen)
    if one.trial.trained:
        outcome = dataclasses.replace(outcome_of(one.trial, objective), seconds=seconds)
        says = f"{objective.metric} {outcome.value:.5g}" if outcome.value is not None else outcome.reason
        print(f"{number} {outcome.state}: {says}", flush=True)
        return outcome
    if stopped or status == 0:
        print(f"{number} stopped before its end; the same command goes on", flush=True)
        return None
    reason = f"ended by {signal.Signals(-status).name}" if status < 0 else f"status {status}: {last_line}"
    print(f"{number} failed: {reason}", flush=True)
    return Outcome(FAILED, reason=reason, seconds=seconds)


def outcome_of(trial: Trial, objective: Objective) -> Outcome:
    """The outcome of a trial that was trained to its end: failed where its objective is not finite."""
    value = trial.result(objective)
    if not math.isfinite(value):
        return Outcome(FAILED, reason=not_finite(objective))
    return Outcome(DONE, value)


def _say(changes: Changes) -> str:
    return "  ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in changes.items())
