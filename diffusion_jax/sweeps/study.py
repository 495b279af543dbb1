"""Sweeps that learn from their results: an Optuna study in a journal file or a database, without a server."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from diffusion_jax.errors import UserError
from diffusion_jax.sweeps.definition import Changes, Hyperband, Median, Sweep, Tpe
from diffusion_jax.sweeps.spaces import Choice, Integers

if TYPE_CHECKING:  # Optuna is optional, and imported where a study is made
    import optuna

Label = bool | int | float | str
"""What Optuna stores for a value."""


class Study:
    """The trials of a sweep in Optuna's storage, which one process at a time may ask, as the caller ensures.

    Trial n depends on the results before it and on (seed, n) alone, so a sweep that was killed goes on exactly as it
    would have. Raises UserError where Optuna is not installed, where the storage cannot be opened, and where it holds
    another sweep.
    """

    def __init__(self, sweep: Sweep, *, steps: int, journal: Path, url: str, name: str):
        try:
            import optuna
        except ImportError:
            raise UserError(
                f"method={sweep.method!r} with pruner={sweep.pruner!r} needs Optuna; pip install 'diffusion-jax[sweep]'"
            ) from None
        sweep.check_steps(steps)
        self._optuna, self._sweep, self._steps = optuna, sweep, steps
        self._listed = None if isinstance(sweep.search, Tpe) else sweep.listed()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        try:
            self._study = optuna.create_study(
                storage=url or _journal(optuna, journal),
                study_name=name if url else "sweep",  # Hyperband assigns trials to its brackets by it
                direction=sweep.objective.direction,  # type: ignore[arg-type]
                pruner=_pruner(optuna, sweep, steps),
                load_if_exists=True,
            )
        except Exception as error:  # of a driver, of a server, or of a damaged journal
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"cannot open the storage {url or journal}: {reason}") from error
        identity = json.dumps(sweep.identity(), sort_keys=True)
        held = self._study.user_attrs.get("identity", identity)
        if held != identity:
            raise UserError(f"the storage {url or journal} holds another sweep, {held}; give another --workdir")
        self._study.set_user_attr("identity", identity)

    def unfinished(self) -> dict[int, Changes]:
        """{number: changes} of the trials that were begun and have no result.

        Another process may record the result of such a trial at any time.
        """
        waiting = (self._optuna.trial.TrialState.RUNNING, self._optuna.trial.TrialState.WAITING)
        found: dict[int, Changes] = {}
        for number in [trial.number for trial in self._study.get_trials(deepcopy=False, states=waiting)]:
            try:
                found[number] = self._changes(self._trial(number))
            except RuntimeError:  # Optuna's, where a trial that has a result would get a parameter
                if number not in self.finished():
                    raise
        finished = self.finished()
        return {number: changes for number, changes in found.items() if number not in finished}

    def finished(self) -> dict[int, tuple[str, Changes, float | None]]:
        """{number: (state, changes, value)} of the trials that have a result; the state is done, pruned or failed."""
        names = {"COMPLETE": "done", "PRUNED": "pruned", "FAIL": "failed"}
        return {
            trial.number: (names[trial.state.name], self._restored(trial.params), trial.value)
            for trial in self._study.get_trials(deepcopy=False)
            if trial.state.name in names
        }

    def ask(self) -> tuple[int, Changes] | None:
        """The number and the changes of a new trial; None where all trials have been begun."""
        number = len(self._study.get_trials(deepcopy=False))
        if number >= self._sweep.trials:
            return None
        self._study.sampler = self._sampler(number)
        trial = self._study.ask()
        return trial.number, self._changes(trial)

    def reported(self, number: int) -> int:
        """The last step that was reported of a trial; -1 if none was."""
        step = self._study.get_trials(deepcopy=False)[number].last_step
        return -1 if step is None else step

    def report(self, number: int, step: int, value: float) -> bool:
        """Reports the objective of a trial at a step. Returns whether the trial is pruned there."""
        trial = self._trial(number)
        trial.report(value, step)
        if step >= self._steps or not trial.should_prune():  # a trial at its last step is done
            return False
        # Recorded at once: a kill before the end of the trial's process must not change the decision.
        self._study.tell(number, state=self._optuna.trial.TrialState.PRUNED)
        return True

    def tell(self, number: int, value: float | None) -> None:
        """Records the result of a trial, None where it failed. A trial that has a result keeps it."""
        states = self._optuna.trial.TrialState
        state = states.FAIL if value is None else states.COMPLETE
        self._study.tell(number, value, state=state, skip_if_finished=True)

    def _trial(self, number: int) -> "optuna.trial.Trial":
        self._study.sampler = self._sampler(number)
        return self._optuna.trial.Trial(self._study, self._study.get_trials(deepcopy=False)[number]._trial_id)

    def _changes(self, trial: "optuna.trial.Trial") -> Changes:
        """The changes of a trial, drawn where it has none yet."""
        for key, space in self._sweep.space.items():
            if isinstance(space, Choice):
                trial.suggest_categorical(key, list(_labels(space)))
            elif isinstance(space, Integers):
                trial.suggest_int(key, space.low, space.high)
            else:
                trial.suggest_float(key, space.low, space.high, log=space.log)
        return self._restored(trial.params)

    def _restored(self, params: Mapping[str, Label]) -> Changes:
        spaces = self._sweep.space
        return {
            key: _labels(space)[params[key]] if isinstance(space, Choice) else params[key]
            for key, space in spaces.items()
            if key in params
        }

    def _sampler(self, number: int) -> "optuna.samplers.BaseSampler":
        """The sampler of trial `number`."""
        samplers: Any = self._optuna.samplers
        if self._listed is None:
            search = self._sweep.search
            assert isinstance(search, Tpe)
            seed = search.seed * 2**16 + number
            return samplers.TPESampler(seed=seed, n_startup_trials=search.startup, constant_liar=True)
        listed = self._listed

        class Listed(samplers.BaseSampler):
            """Gives each trial its changes from the list of a grid or of random trials."""

            def infer_relative_search_space(self, study, trial):
                return {}

            def sample_relative(self, study, trial, search_space):
                return {}

            def sample_independent(self, study, trial, param_name, param_distribution):
                value = listed[trial.number][param_name]
                space = spaces[param_name]
                if not isinstance(space, Choice):
                    return value
                return next(label for label, each in _labels(space).items() if each == value)

        spaces = self._sweep.space
        return Listed()


def _labels(space: Choice) -> dict[Label, object]:
    """{what Optuna stores: value}. It stores the value itself, or its text where Optuna does not have its type."""
    return {value if isinstance(value, bool | int | float | str) else repr(value): value for value in space.values}


def _journal(optuna: ModuleType, path: Path) -> "optuna.storages.BaseStorage":
    path.parent.mkdir(parents=True, exist_ok=True)
    return optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(path)))


def _pruner(optuna: ModuleType, sweep: Sweep, steps: int) -> "optuna.pruners.BasePruner":
    match sweep.pruning:
        case Hyperband(min_steps, reduction):
            return optuna.pruners.HyperbandPruner(min_steps, steps, reduction)
        case Median(startup, min_steps):
            return optuna.pruners.MedianPruner(startup, min_steps)
    return optuna.pruners.NopPruner()
