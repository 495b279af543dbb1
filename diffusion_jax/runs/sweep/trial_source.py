"""Where the trials of a sweep come from: a list, or a study that learns from results. Many processes share it."""

import abc
from collections.abc import Callable, Collection
from pathlib import Path

from diffusion_jax.runs.sweep.trials import DONE, FAILED, Lock, Outcome, Trial, claim, locked
from diffusion_jax.sweeps.definition import Changes
from diffusion_jax.sweeps.study import Study

MakeTrial = Callable[[int, Changes], Trial]
"""(number, changes) -> trial."""


class TrialSource(abc.ABC):
    """The trials of a sweep, each of which one process at a time can claim."""

    @abc.abstractmethod
    def claim(self, passed_over: Collection[int] = ()) -> tuple[Trial, Lock] | None:
        """A trial without an outcome that no process runs, with its lock; None if there is none.

        Trials whose numbers are passed_over are left out.
        """

    @abc.abstractmethod
    def trials(self) -> list[Trial]:
        """All trials so far, by number."""

    def unfinished(self) -> list[Trial]:
        """The trials so far that have no outcome."""
        return [trial for trial in self.trials() if trial.outcome is None]

    def seen(self, trial: Trial) -> int:
        """The last step that was reported for the trial; -1 if none was."""
        return -1

    def report(self, trial: Trial, step: int, value: float) -> bool:
        """Reports the objective of the trial at a step. Returns whether the trial is pruned there."""
        return False

    def tell(self, trial: Trial, outcome: Outcome) -> None:
        """Records how a trial ended."""
        trial.write(outcome)


def _lock(trial: Trial) -> Lock | None:
    """The lock of a trial; None where the trial has an outcome or another process runs it."""
    if trial.outcome is not None:
        return None
    lock = claim(trial.workdir.root)
    if lock is not None and trial.outcome is not None:  # another process has ended it in between
        lock.release()
        return None
    return lock


class _Listed(TrialSource):
    """Trials that are known from the start."""

    def __init__(self, make: MakeTrial, changes: list[Changes]):
        self._trials = [make(number, each) for number, each in enumerate(changes)]

    def claim(self, passed_over: Collection[int] = ()) -> tuple[Trial, Lock] | None:
        for trial in self._trials:
            if trial.number not in passed_over and (lock := _lock(trial)):
                return trial, lock
        return None

    def trials(self) -> list[Trial]:
        return self._trials


class _Studied(TrialSource):
    """Trials that a study makes one by one; `guard` is the file whose lock lets one process at a time ask it."""

    def __init__(self, make: MakeTrial, study: Study, guard: Path):
        self._make, self._study, self._guard = make, study, guard

    def claim(self, passed_over: Collection[int] = ()) -> tuple[Trial, Lock] | None:
        with locked(self._guard):
            self._write_finished()
            for number, changes in self._study.unfinished().items():
                if number in passed_over:
                    continue
                trial = self._make(number, changes)
                if trial.outcome is not None:  # a kill came after its record and before the study knew
                    self.tell(trial, trial.outcome)
                elif lock := _lock(trial):
                    return trial, lock
            if (asked := self._study.ask()) is None:
                return None
            trial = self._make(*asked)
            lock = _lock(trial)
            assert lock is not None, f"{trial.workdir.root} belongs to no trial of the study"
            return trial, lock

    def trials(self) -> list[Trial]:
        known = self._study.unfinished()  # first: a trial that another process finishes in between is in one of the two
        known |= {number: changes for number, (_, changes, _) in self._study.finished().items()}
        return [self._make(number, changes) for number, changes in sorted(known.items())]

    def seen(self, trial: Trial) -> int:
        return self._study.reported(trial.number)

    def report(self, trial: Trial, step: int, value: float) -> bool:
        return self._study.report(trial.number, step, value)

    def tell(self, trial: Trial, outcome: Outcome) -> None:
        trial.write(outcome)
        self._study.tell(trial.number, outcome.value if outcome.state == DONE else None)

    def _write_finished(self) -> None:
        """Writes the missing records of trials whose end the study knows: a process was killed before it wrote them."""
        for number, (state, changes, value) in self._study.finished().items():
            trial = self._make(number, changes)
            if trial.outcome is None and (lock := claim(trial.workdir.root)):
                reason = "recorded by the study alone" if state == FAILED else ""
                trial.write(Outcome(state, value, reason))
                lock.release()


def listed(make: MakeTrial, changes: list[Changes]) -> TrialSource:
    """Trials that are known from the start."""
    return _Listed(make, changes)


def studied(make: MakeTrial, study: Study, guard: Path) -> TrialSource:
    """Trials that a study makes one by one. One process at a time asks it, the one that locks the file guard."""
    return _Studied(make, study, guard)
