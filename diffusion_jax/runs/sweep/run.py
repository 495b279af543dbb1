"""`diffusion-jax sweep`: runs the trials that a sweep file describes, and writes a report that ranks them."""

import dataclasses
import importlib.util
import runpy
import sys
from pathlib import Path

from ml_collections import ConfigDict

from diffusion_jax.errors import UserError
from diffusion_jax.report.atomic import replace_file
from diffusion_jax.report.sweep_figures import Row
from diffusion_jax.runs.sweep import local as sweep_local
from diffusion_jax.runs.sweep import reporting as sweep_report
from diffusion_jax.runs.sweep import slurm as sweep_slurm
from diffusion_jax.runs.sweep.record import Record, check_root, earlier_defaults, write_record
from diffusion_jax.runs.sweep.trial_source import TrialSource, listed, studied
from diffusion_jax.runs.sweep.trials import FAILED, Lock, Trial, as_typed, changed
from diffusion_jax.runs.sweep.trials import command as train_command
from diffusion_jax.runs.workdir.paths import Workdir
from diffusion_jax.sweeps.definition import Changes, Sweep
from diffusion_jax.sweeps.spaces import Choice
from diffusion_jax.sweeps.study import Study
from diffusion_jax.train.faults import Stop, stop_on_signal

LAUNCHERS = ("local", "slurm", "manifest")


@dataclasses.dataclass(frozen=True)
class LaunchOptions:
    """How the trials of a sweep are run."""

    launcher: str = "local"  # one of `LAUNCHERS`
    jobs: int = 1  # trials at once
    vectorised: bool = False  # all trials as one program
    storage: str = ""  # URL of a database; "": a journal file in the workdir
    retry: bool = False  # failed trials are run again
    worker: int | None = None  # this process is one of a SLURM job; of listed trials it runs only this one
    slurm: str = ""  # submitit's parameters, as in "cluster=local,timeout_min=10"


@dataclasses.dataclass(frozen=True)
class _Command:
    """What a user typed, and what follows from it for every trial."""

    config_file: str
    sweep_file: Path
    root: Path
    given: Changes  # keys of the config that the command changes
    overrides: Changes  # keys that are changed in every trial: those given, those that the sweep fixes
    base: ConfigDict  # the config with the overrides

    def trial(self, number: int, changes: Changes) -> Trial:
        """Trial `number` with its changes of the base config."""
        workdir = Workdir(self.root / "trials" / f"{number:03d}")
        return Trial(number, changes, changed(self.base, changes), workdir)


def sweep(
    config: ConfigDict,
    config_file: str,
    given: Changes,
    sweep_file: Path,
    root: Path,
    options: LaunchOptions = LaunchOptions(),
) -> list[int]:
    """Runs the trials of sweep_file in the folder root that have no outcome yet, and reports on all of them.

    given are the keys that the command line changes, which win over keys that the sweep fixes. Returns the numbers of
    the failed trials of a sweep that is complete; a sweep that was stopped, a manifest and a worker of a SLURM job
    return none.

    Raises UserError, before root is touched, for mistakes of the user. Two are found later, and raised after the
    report: an objective that is never logged, and trials that all fail.
    """
    definition = load(sweep_file)
    command = _command(config, config_file, given, sweep_file, root, definition)
    _check_options(definition, options)
    if options.vectorised:
        from diffusion_jax import experiment  # which imports jax, as the next does
        from diffusion_jax.runs.sweep import vectorised as sweep_vectorised

        command = dataclasses.replace(command, base=experiment.resolved(command.base))
        sweep_vectorised.check_trials(
            [command.trial(number, changes) for number, changes in enumerate(definition.listed())]
        )
    definition.check_steps(command.base.train.steps)
    source = _open(definition, command, options)
    if options.launcher == "manifest":
        _write_manifest(source, command)
        return []
    if options.retry:
        for trial in source.trials():
            if trial.outcome is not None and trial.outcome.state == FAILED:
                trial.forget()
    with stop_on_signal() as stop:
        _run_trials(definition, source, command, options, stop)
    if options.worker is not None:
        return []
    return _finish(source, definition, command, stopped=stop.signal is not None)


def _command(
    config: ConfigDict, config_file: str, given: Changes, sweep_file: Path, root: Path, definition: Sweep
) -> _Command:
    """The command, checked: every key and every type of the space fits the config. Raises UserError otherwise."""
    overrides = {key: value for key, value in definition.fixed.items() if key not in given} | given
    if swept := sorted(set(given) & set(definition.space)):
        raise UserError(f"--config.{swept[0]} is swept by {sweep_file}; leave the flag out, or the key of the space")
    overrides = earlier_defaults(root) | overrides
    base = changed(config, overrides)
    if base.checkpoint.mirror:
        raise UserError(
            f"checkpoint.mirror={base.checkpoint.mirror!r} is the copy of one run, which no two trials can share; "
            "leave it out of a sweep"
        )
    for changes in _ends(definition):
        changed(base, changes)
    return _Command(config_file, sweep_file, root, given, overrides, base)


def _open(definition: Sweep, command: _Command, options: LaunchOptions) -> TrialSource:
    """Where the trials come from, with root's record of the sweep written.

    Raises UserError, before anything is written, where root holds another sweep or the storage cannot be opened.
    """
    record: Record = {"config": command.base.to_dict(), "sweep": definition.identity()}
    check_root(command.root, record)
    source = _source(definition, command, options) if options.storage else None
    write_record(command.root, record, command.sweep_file)
    return source or _source(definition, command, options)


def _run_trials(definition: Sweep, source: TrialSource, command: _Command, options: LaunchOptions, stop: Stop) -> None:
    if options.launcher == "slurm":
        parameters = sweep_slurm.parameters(options.slurm)
        words = _worker_words(command, options)
        numbers = None if definition.adaptive else [trial.number for trial in source.unfinished()]
        folder = command.root / "slurm"
        sweep_slurm.run(words, numbers, workers=options.jobs, folder=folder, options=parameters, stop=stop)
    elif options.vectorised:
        _train_vectorised(source, definition, stop)
    else:
        passed_over: frozenset[int] = frozenset()
        if options.worker is not None and not definition.adaptive:
            passed_over = frozenset({trial.number for trial in source.trials()} - {options.worker})
        sweep_local.run(
            source,
            objective=definition.objective,
            config_file=command.config_file,
            overrides=command.overrides,
            jobs=options.jobs,
            stop=stop,
            passed_over=passed_over,
        )


def load(path: Path) -> Sweep:
    """The sweep that get_sweep() of a Python file returns. Raises UserError where the file has none."""
    if not path.is_file():
        raise UserError(f"no sweep file {path}; give the path of one, as in --sweep=configs/sweeps/digits_lr.py")
    try:
        # Not imported: bytecode from a cache would run where the file was changed within a second, to equal length.
        found = runpy.run_path(str(path), run_name="sweep_file")
        if "get_sweep" not in found:
            raise UserError("a sweep file has a get_sweep()")
        definition = found["get_sweep"]()
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except Exception as error:
        raise UserError(f"cannot read the sweep file {path}: {type(error).__name__}: {error}") from error
    if not isinstance(definition, Sweep):
        raise UserError(f"get_sweep() of {path} returns a diffusion_jax.sweeps.Sweep; got {definition!r}")
    return definition


def _ends(definition: Sweep) -> list[Changes]:
    """Changes that together have every key of the space, with every type of its values."""
    ends = []
    for key, space in definition.space.items():
        ends += [{key: value} for value in (space.values if isinstance(space, Choice) else (space.low, space.high))]
    return ends


def _check_options(definition: Sweep, options: LaunchOptions) -> None:
    """Raises UserError for options that exclude each other, or that the sweep does not allow."""
    if options.launcher not in LAUNCHERS:
        raise UserError(f"unknown launcher {options.launcher!r}; choose from {', '.join(LAUNCHERS)}")
    if options.launcher == "local":
        sweep_local.shares(options.jobs)  # raises where there are fewer devices
    needs = {
        "--launcher=manifest": options.launcher == "manifest",
        "--vectorised": options.vectorised,
        "--retry": options.retry,
    }
    for flag in (flag for flag, given in needs.items() if given and definition.adaptive):
        raise UserError(
            f"{flag} takes a sweep whose trials are known from the start: method grid or random, and no pruner; "
            f"got method={definition.method!r} and pruner={definition.pruner!r}"
        )
    if options.vectorised and (options.launcher != "local" or options.jobs > 1):
        raise UserError("--vectorised is one program on this machine; leave --launcher and --jobs out")
    if options.storage and not definition.adaptive:
        raise UserError("--storage is of sweeps that learn from results: method tpe, or a pruner")
    if options.slurm and options.launcher != "slurm":
        raise UserError("--slurm says what --launcher=slurm asks for; give that too")
    if options.launcher == "slurm":
        sweep_slurm.parameters(options.slurm)
    if definition.adaptive and importlib.util.find_spec("optuna") is None:
        raise UserError(
            f"method={definition.method!r} with pruner={definition.pruner!r} needs Optuna; "
            "pip install 'diffusion-jax[sweep]'"
        )


def _source(definition: Sweep, command: _Command, options: LaunchOptions) -> TrialSource:
    if not definition.adaptive:
        return listed(command.trial, definition.listed())
    root = command.root
    study = Study(
        definition,
        steps=command.base.train.steps,
        journal=root / "optuna.journal",
        url=options.storage,
        name=root.absolute().name,
    )
    return studied(command.trial, study, root / "lock")


def _write_manifest(source: TrialSource, command: _Command) -> None:
    """Writes manifest.sh, with the command line of each trial that has no outcome."""
    lines = [
        as_typed(
            train_command(
                command.config_file,
                str(trial.workdir.root),
                command.overrides | trial.changes,
                ("diffusion-jax",),
            )
        )
        for trial in source.unfinished()
    ]
    path = command.root / "manifest.sh"
    replace_file(path, "".join(f"{line}\n" for line in lines).encode())
    print(f"{len(lines)} commands in {path}; run them anywhere, then the same sweep with --launcher=local reports")


def _worker_words(command: _Command, options: LaunchOptions) -> list[str]:
    """The command line of a worker of a SLURM job, without its --worker."""
    words = train_command(command.config_file, str(command.root), command.given)
    words[words.index("train")] = "sweep"
    storage = [f"--storage={options.storage}"] if options.storage else []
    return [*words, f"--sweep={command.sweep_file}", *storage]


def _train_vectorised(source: TrialSource, definition: Sweep, stop: Stop) -> None:
    """Trains all trials without an outcome as one program."""
    from diffusion_jax.runs.sweep import vectorised as sweep_vectorised

    claimed: list[tuple[Trial, Lock]] = []
    while found := source.claim([trial.number for trial, _ in claimed]):
        claimed.append(found)
    try:
        waiting = [trial for trial, _ in claimed if not trial.trained]
        if waiting:
            sweep_vectorised.train(waiting, stop, source.tell)
        for trial, _ in claimed:
            if trial.trained:
                source.tell(trial, sweep_local.outcome_of(trial, definition.objective))
    finally:
        for _, lock in claimed:
            lock.release()


def _finish(source: TrialSource, definition: Sweep, command: _Command, *, stopped: bool) -> list[int]:
    """Writes the report. Returns the failed trials of a sweep that is complete; raises UserError where all failed."""
    trials = source.trials()
    rows: list[Row] = []
    if any(trial.outcome is not None for trial in trials):
        rows = sweep_report.write(
            command.root, trials, definition, command.config_file, command.overrides, command.sweep_file
        )
    ended = [row for row in rows if row.state != sweep_report.UNFINISHED]
    if missing := definition.trials - len(ended):
        why = "stopped" if stopped else "some trials were stopped"
        print(f"{why} with {missing} of {definition.trials} trials to go; the same command goes on", flush=True)
        return []
    failed = sorted((row for row in ended if row.state == FAILED), key=lambda row: row.number)
    if len(failed) == len(ended):
        log = next(trial.log for trial in trials if trial.number == failed[0].number)
        raise UserError(
            f"all {len(failed)} trials failed; of trial {failed[0].number:03d} ({log}): {failed[0].reason}; "
            "mend the cause and give --retry"
        )
    if failed:
        numbers = ", ".join(f"{row.number:03d}" for row in failed)
        print(f"{len(failed)} of {len(ended)} trials failed and have no rank: {numbers}", file=sys.stderr, flush=True)
    return [row.number for row in failed]
