"""`diffusion-jax sweep`: a config, a sweep file and a workdir to trials and a report that ranks them."""

import dataclasses
import importlib.util
import json
import runpy
import sys
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from diffusion_jax import config as configs
from diffusion_jax.errors import UserError
from diffusion_jax.report.atomic import replace_file
from diffusion_jax.report.sweep_figures import Row
from diffusion_jax.runs.sweep import local as sweep_local
from diffusion_jax.runs.sweep import reporting as sweep_report
from diffusion_jax.runs.sweep import slurm as sweep_slurm
from diffusion_jax.runs.sweep.trial_source import Source, listed, studied
from diffusion_jax.runs.sweep.trials import FAILED, Lock, Trial, as_typed, changed, command, locked
from diffusion_jax.runs.workdir.paths import Workdir, read_json
from diffusion_jax.sweeps.definition import Changes, Sweep
from diffusion_jax.sweeps.spaces import Choice
from diffusion_jax.sweeps.study import Study
from diffusion_jax.train.faults import stop_on_signal

LAUNCHERS = ("local", "slurm", "manifest")


@dataclasses.dataclass(frozen=True)
class How:
    """How the trials are run."""

    launcher: str = "local"
    jobs: int = 1
    vectorised: bool = False
    storage: str = ""  # URL of a database; "": a journal file in the workdir
    retry: bool = False  # failed trials are run again
    worker: int | None = None  # this process is one of a SLURM job; of listed trials it runs only this one
    slurm: str = ""  # submitit's parameters, as in "cluster=local,timeout_min=10"


def sweep(
    config: ConfigDict, config_file: str, given: Changes, sweep_file: Path, root: Path, how: How = How()
) -> list[int]:
    """Runs the trials of sweep_file in root that have no outcome yet, and reports on all of them.

    Returns the numbers of the trials that failed, of a sweep that has come to its end; one that was stopped, a manifest
    and a worker of a job return none.

    given are the keys that were changed on the command line; they win over what the sweep fixes. What a user can get
    wrong raises UserError before root is touched, but for an objective that is never logged, and for trials that all
    fail: these after the report.
    """
    definition = load(sweep_file)
    overrides = {key: value for key, value in definition.fixed.items() if key not in given} | given
    if swept := sorted(set(given) & set(definition.space)):
        raise UserError(f"--config.{swept[0]} is swept by {sweep_file}; leave the flag out, or the key of the space")
    overrides = _earlier(root) | overrides
    base = changed(config, overrides)
    if base.checkpoint.mirror:
        raise UserError(
            f"checkpoint.mirror={base.checkpoint.mirror!r} is the copy of one run, which no two trials can share; "
            "leave it out of a sweep"
        )
    if how.vectorised:
        from diffusion_jax import experiment  # imports jax

        base = experiment.resolved(base)
    for space in _ends(definition):
        changed(base, space)
    _check_how(definition, how)

    def make(number: int, changes: Changes) -> Trial:
        return Trial(number, changes, changed(base, changes), Workdir(root / "trials" / f"{number:03d}"))

    if how.vectorised:
        from diffusion_jax.runs.sweep import vectorised as sweep_vectorised  # imports flax

        sweep_vectorised.check([make(number, changes) for number, changes in enumerate(definition.listed())])
    definition.check_steps(base.train.steps)
    held = {"config": base.to_dict(), "sweep": definition.identity()}
    _check_root(root, held)
    source = _source(definition, make, root, base, how) if how.storage else None  # before anything is written
    _keep(root, held, sweep_file)
    source = source or _source(definition, make, root, base, how)
    if how.launcher == "manifest":
        _write_manifest(root, source, config_file, overrides)
        return []
    if how.retry:
        for trial in source.trials():
            if trial.outcome is not None and trial.outcome.state == FAILED:
                trial.forget()
    with stop_on_signal() as stop:
        if how.launcher == "slurm":
            options = sweep_slurm.parameters(how.slurm)
            words = _worker_words(config_file, given, sweep_file, root, how)
            numbers = None if definition.adaptive else [trial.number for trial in source.unfinished()]
            sweep_slurm.run(words, numbers, workers=how.jobs, folder=root / "slurm", options=options, stop=stop)
        elif how.vectorised:
            _vectorised(source, definition, stop)
        else:
            others = {trial.number for trial in source.trials()} - {how.worker} if how.worker is not None else set()
            sweep_local.run(
                source,
                objective=definition.objective,
                config_file=config_file,
                overrides=overrides,
                jobs=how.jobs,
                stop=stop,
                passed_over=frozenset() if definition.adaptive else frozenset(others),
            )
    if how.worker is not None:
        return []
    return _finish(root, source, definition, config_file, overrides, sweep_file, stopped=stop.signal is not None)


def load(path: Path) -> Sweep:
    """What get_sweep() of a Python file returns; raises UserError where it is none."""
    if not path.is_file():
        raise UserError(f"no sweep file {path}; give the path of one, as in --sweep=configs/sweeps/digits_lr.py")
    try:
        # Not imported: kept bytecode would run in place of a file that was changed within a second, at equal length.
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
    """Changes at which every key and every type of the space is met."""
    ends = []
    for key, space in definition.space.items():
        ends += [{key: value} for value in (space.values if isinstance(space, Choice) else (space.low, space.high))]
    return ends


def _check_how(definition: Sweep, how: How) -> None:
    if how.launcher not in LAUNCHERS:
        raise UserError(f"unknown launcher {how.launcher!r}; choose from {', '.join(LAUNCHERS)}")
    sweep_local.shares(how.jobs) if how.launcher == "local" else None
    needs = {"--launcher=manifest": how.launcher == "manifest", "--vectorised": how.vectorised, "--retry": how.retry}
    for flag in (flag for flag, given in needs.items() if given and definition.adaptive):
        raise UserError(
            f"{flag} takes a sweep whose trials are known from the start: method grid or random, and no pruner; "
            f"got method={definition.method!r} and pruner={definition.pruner!r}"
        )
    if how.vectorised and (how.launcher != "local" or how.jobs > 1):
        raise UserError("--vectorised is one program on this machine; leave --launcher and --jobs out")
    if how.storage and not definition.adaptive:
        raise UserError("--storage is of sweeps that learn from results: method tpe, or a pruner")
    if how.slurm and how.launcher != "slurm":
        raise UserError("--slurm says what --launcher=slurm asks for; give that too")
    if how.launcher == "slurm":
        sweep_slurm.parameters(how.slurm)
    if definition.adaptive and importlib.util.find_spec("optuna") is None:
        raise UserError(
            f"method={definition.method!r} with pruner={definition.pruner!r} needs Optuna; "
            "pip install 'diffusion-jax[sweep]'"
        )


def _earlier(root: Path) -> dict[str, Any]:
    """What an earlier version, if one started the sweep in root, did otherwise than today's defaults."""
    try:
        return configs.earlier(json.dumps(json.loads((root / "sweep.json").read_text(encoding="utf-8"))["config"]))
    except (OSError, ValueError, KeyError, TypeError):
        return {}  # `_check_root` says what is wrong


def _check_root(root: Path, held: dict[str, Any]) -> list[str]:
    """The config keys, added since, that sweep.json in root lacks; their defaults complete it.

    Raises UserError where root holds another sweep than held, or something else.
    """
    path = root / "sweep.json"
    if not path.is_file():
        if root.exists() and (not root.is_dir() or {file.name for file in root.iterdir()} - {"lock"}):
            raise UserError(f"{root} has files and no sweep; give a new --workdir")
        return []
    kept = read_json(path)
    try:
        text = json.dumps(kept["config"])
        added, completed = configs.newer(text), configs.from_json(text)
    except (UserError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not what this version of sweep wrote ({error}); give a new --workdir") from None
    before = configs.flat(kept | {"config": _plain(completed.to_dict())})
    now = configs.flat(_plain(held))
    if before != now:
        key = next(key for key in sorted(before | now) if before.get(key) != now.get(key))
        raise UserError(
            f"{root} holds another sweep: {key} is {before.get(key)!r} there and {now.get(key)!r} here; "
            "give a new --workdir, or the sweep file and config that it was started with"
        )
    return added


def _plain(value: Any) -> Any:
    """As JSON has it, whose tuples are lists."""
    return json.loads(json.dumps(value))


def _keep(root: Path, held: dict[str, Any], sweep_file: Path) -> None:
    """Records what the sweep is, and a copy of its file; one process does, of those that start together."""
    with locked(root / "lock"):
        added = _check_root(root, held)
        if added:
            says = f"an earlier version wrote {root / 'sweep.json'}: the defaults of {', '.join(added)} complete it"
            print(f"diffusion-jax: {says}", file=sys.stderr)
        if added or not (root / "sweep.json").is_file():
            replace_file(root / "sweep.json", (json.dumps(held, indent=2) + "\n").encode())
        if not (root / "sweep.py").is_file():
            replace_file(root / "sweep.py", sweep_file.read_bytes())


def _source(definition: Sweep, make: Any, root: Path, base: ConfigDict, how: How) -> Source:
    if not definition.adaptive:
        return listed(make, definition.listed())
    journal = root / "optuna.journal"
    study = Study(definition, steps=base.train.steps, journal=journal, url=how.storage, name=root.absolute().name)
    return studied(make, study, root / "lock")


def _write_manifest(root: Path, source: Source, config_file: str, overrides: Changes) -> None:
    """One command line for each trial without an outcome."""
    program = ("diffusion-jax",)
    lines = [
        as_typed(command(config_file, str(trial.workdir.root), overrides | trial.changes, program))
        for trial in source.unfinished()
    ]
    path = root / "manifest.sh"
    replace_file(path, "".join(f"{line}\n" for line in lines).encode())
    print(f"{len(lines)} commands in {path}; run them anywhere, then the same sweep with --launcher=local reports")


def _worker_words(config_file: str, given: Changes, sweep_file: Path, root: Path, how: How) -> list[str]:
    words = command(config_file, str(root), given)
    words[words.index("train")] = "sweep"
    return [*words, f"--sweep={sweep_file}", *([f"--storage={how.storage}"] if how.storage else [])]


def _vectorised(source: Source, definition: Sweep, stop: Any) -> None:
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
                source.tell(trial, sweep_local.judge(trial, definition.objective))
    finally:
        for _, lock in claimed:
            lock.release()


def _finish(
    root: Path,
    source: Source,
    definition: Sweep,
    config_file: str,
    overrides: Changes,
    sweep_file: Path,
    *,
    stopped: bool,
) -> list[int]:
    """Reports, and returns the trials that failed of a sweep at its end; raises UserError where all did."""
    trials = source.trials()
    rows: list[Row] = []
    if any(trial.outcome is not None for trial in trials):
        rows = sweep_report.write(root, trials, definition, config_file, overrides, sweep_file)
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
