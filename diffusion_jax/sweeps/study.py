"""Sweeps that learn from their results: an Optuna study in a journal file or a database, shared with no server."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusion_jax.errors import UserError
from diffusion_jax.sweeps.definition import Changes, Hyperband, Median, Sweep, Tpe
from diffusion_jax.sweeps.spaces import Choice, Integers


class Study:
    """The trials of a sweep in Optuna's storage; the caller sees to it that one process at a time asks.

    What trial n is depends on the results before it and on (seed, n) alone, so a sweep that was killed goes on as the
    one that was not would have. Raises UserError where Optuna is missing, the storage cannot be opened, or it holds
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
        self._listed = None if isinstance(sweep.how, Tpe) else sweep.listed()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        try:
            self._study = optuna.create_study(
                storage=url or _journal(optuna, journal),
                study_name=name if url else "sweep",  # by which Hyperband deals trials to its brackets
                direction=sweep.objective.direction,  # type: ignore[arg-type]
                pruner=_pruner(optuna, sweep, steps),
                load_if_exists=True,
            )
        except Exception as error:  # a driver's, a server's, a damaged journal's
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"cannot open the storage {url or journal}: {reason}") from error
        identity = json.dumps(sweep.identity(), sort_keys=True)
        held = self._study.user_attrs.get("identity", identity)
        if held != identity:
            raise UserError(f"the storage {url or journal} holds another sweep, {held}; give another --workdir")
        self._study.set_user_attr("identity", identity)

    def unfinished(self) -> dict[int, Changes]:
        """The trials that were begun and have no result."""
        waiting = (self._optuna.trial.TrialState.RUNNING, self._optuna.trial.TrialState.WAITING)
        trials = self._study.get_trials(deepcopy=False, states=waiting)
        return {trial.number: self._changes(self._trial(trial.number)) for trial in trials}

    def finished(self) -> dict[int, tuple[str, Changes, float | None]]:
        """(state, changes, value) of the trials that have one: done | pruned | failed."""
        names = {"COMPLETE": "done", "PRUNED": "pruned", "FAIL": "failed"}
        return {
            trial.number: (names[trial.state.name], self._restored(trial.params), trial.value)
            for trial in self._study.get_trials(deepcopy=False)
            if trial.state.name in names
        }

    def ask(self) -> tuple[int, Changes] | None:
        """A new trial, or None where all have been begun."""
        number = len(self._study.get_trials(deepcopy=False))
        if number >= self._sweep.trials:
            return None
        self._study.sampler = self._sampler(number)
        trial = self._study.ask()
        return trial.number, self._changes(trial)

    def reported(self, number: int) -> int:
        """The last step that was reported; -1 if none."""
        step = self._study.get_trials(deepcopy=False)[number].last_step
        return -1 if step is None else step

    def report(self, number: int, step: int, value: float) -> bool:
        """Notes the objective as of step; returns whether the trial ends here, and then it is pruned."""
        trial = self._trial(number)
        trial.report(value, step)
        if step >= self._steps or not trial.should_prune():  # what is at its end is done
            return False
        # At once, not when its process has ended: a kill between the two must not change what was decided.
        self._study.tell(number, state=self._optuna.trial.TrialState.PRUNED)
        return True

    def tell(self, number: int, value: float | None) -> None:
        """The result of a trial; None where it failed. What has one keeps it."""
        states = self._optuna.trial.TrialState
        state = states.FAIL if value is None else states.COMPLETE
        self._study.tell(number, value, state=state, skip_if_finished=True)

    def _trial(self, number: int) -> Any:
        self._study.sampler = self._sampler(number)
        return self._optuna.trial.Trial(self._study, self._study.get_trials(deepcopy=False)[number]._trial_id)

    def _changes(self, trial: Any) -> Changes:
        """The trial's own, drawn if it has none yet."""
        for key, space in self._sweep.space.items():
            if isinstance(space, Choice):
                trial.suggest_categorical(key, list(_labels(space)))
            elif isinstance(space, Integers):
                trial.suggest_int(key, space.low, space.high)
            else:
                trial.suggest_float(key, space.low, space.high, log=space.log)
        return self._restored(trial.params)

    def _restored(self, params: Mapping[str, Any]) -> Changes:
        spaces = self._sweep.space
        return {
            key: _labels(space)[params[key]] if isinstance(space, Choice) else params[key]
            for key, space in spaces.items()
            if key in params
        }

    def _sampler(self, number: int) -> Any:
        samplers: Any = self._optuna.samplers
        if self._listed is None:
            how = self._sweep.how
            assert isinstance(how, Tpe)
            seed = how.seed * 2**16 + number
            return samplers.TPESampler(seed=seed, n_startup_trials=how.startup, constant_liar=True)
        listed = self._listed

        class Listed(samplers.BaseSampler):
            """The trials of a grid, or of random draws, in their order."""

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


def _labels(space: Choice) -> dict[Any, Any]:
    """{what Optuna stores: value}: itself, or its text where Optuna has no such type."""
    return {value if isinstance(value, bool | int | float | str) else repr(value): value for value in space.values}


def _journal(optuna: Any, path: Path) -> Any:
    path.parent.mkdir(parents=True, exist_ok=True)
    return optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(path)))


def _pruner(optuna: Any, sweep: Sweep, steps: int) -> Any:
    match sweep.pruning:
        case Hyperband(min_steps, reduction):
            return optuna.pruners.HyperbandPruner(min_steps, steps, reduction)
        case Median(startup, min_steps):
            return optuna.pruners.MedianPruner(startup, min_steps)
    return optuna.pruners.NopPruner()
