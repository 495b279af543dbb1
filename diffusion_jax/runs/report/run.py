"""The page of a run, from what its workdir holds. No checkpoint is read, so that it takes seconds."""

import datetime
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from diffusion_jax import config as configs
from diffusion_jax.errors import UserError
from diffusion_jax.report.atomic import replace_file
from diffusion_jax.report.metrics import MetricRecord, read_metrics
from diffusion_jax.report.run_page import RunPage, Section, run_page
from diffusion_jax.runs.report import sections
from diffusion_jax.runs.workdir import events
from diffusion_jax.runs.workdir.paths import Workdir


def report(root: Path, out: Path) -> Path:
    """Writes the page of the run in the workdir root to the file out, one HTML that needs no other; returns out.

    The run may be under way, stopped or done, of any modality. Raises UserError where root is no workdir, where a line
    of its metrics, an event or an evaluation is damaged, and where out is a folder.
    """
    if out.is_dir():
        raise UserError(f"--out={out} is a folder; give the name of a file, as in --out={out / 'report.html'}")
    workdir = Workdir(root)
    config = workdir.read_config(quiet=True)
    records = read_metrics(workdir.metrics) if workdir.metrics.is_file() else []
    noted = events.read(workdir)
    replace_file(out, run_page(_page(workdir, config, records, noted)))
    return out


def _page(
    workdir: Workdir, config: ConfigDict, records: Sequence[MetricRecord], noted: Sequence[events.Event]
) -> RunPage:
    changed = _changed(config)
    step = max([int(record["step"]) for record in records] + [sections.newest(workdir)], default=0)
    now = datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M")
    grids = {int(path.stem): path for path in (workdir.root / "samples").glob("*.png") if path.stem.isdecimal()}
    return RunPage(
        title=workdir.root.resolve().name,
        line=f"{config.task} in {workdir.root}, {_state(config, step, noted)}; read on {now}",
        facts=_facts(workdir, config, step, noted),
        records=records,
        grids={at: path for at, path in grids.items() if at <= step},
        sections=[
            _config_section(changed, configs.to_json(config)),
            sections.evaluations(workdir),
            sections.checkpoints(workdir),
            sections.faults(workdir, records, noted),
            *sections.history(noted),
        ],
        commands=_commands(workdir, config, noted),
        config=_config_file(config, changed),
    )


def _state(config: ConfigDict, step: int, noted: Sequence[events.Event]) -> str:
    done = f"{step:,} of {config.train.steps:,} steps"
    if step >= config.train.steps:
        return f"complete: {done}"
    if noted and noted[-1]["event"] == events.END:
        return f"stopped by {noted[-1].get('stopped', 'a signal')}: {done}"
    return f"{done}; under way, or killed"


def _facts(workdir: Workdir, config: ConfigDict, step: int, noted: Sequence[events.Event]) -> dict[str, str]:
    """What stands at the top of the page. Runs of earlier versions have noted less."""
    starts: list[Mapping[str, Any]] = [event for event in noted if event["event"] == events.START]
    last: Mapping[str, Any] = starts[-1] if starts else {}
    shape = " x ".join(map(str, config.data.shape)) or "of open shape"
    count = f"{last['examples']:,} examples, " if "examples" in last else ""
    facts = {
        "data": f"{config.data.source}, split {config.data.split}: {count}{shape}",
        "network": _network(workdir, config, last),
        "objective": f"{config.objective}, prediction {config.prediction}, schedule {config.schedule}",
        "optimizer": f"{config.optimizer.name}, learning rate {config.optimizer.learning_rate:g}, "
        f"warm-up {config.optimizer.warmup:,} steps, {config.optimizer.decay} decay",
        "batch": f"{config.train.batch_size:,}; {step * config.train.batch_size:,} examples seen",
    }
    if config.task != "diffusion":
        del facts["objective"]
    if last:
        mesh = ", mesh " + " x ".join(f"{n} {axis}" for axis, n in last["mesh"].items()) if last.get("mesh") else ""
        processes = f", {last['processes']} processes" if last.get("processes", 1) > 1 else ""
        facts["machine"] = f"{last['devices']} x {last['device']}{processes}{mesh}"
        facts["code"] = ", ".join(f"{name} {version}" for name, version in last["versions"].items())
        facts["code"] += f"; commit {last['commit']}" if last.get("commit") else ""
        facts["began"] = sections.when(starts[0])
    return facts


def _network(workdir: Workdir, config: ConfigDict, last: Mapping[str, Any]) -> str:
    name = config.model.name if config.task == "diffusion" else config.task
    if "parameters" in last:
        return f"{name}, {last['parameters']:,} parameters"
    if workdir.parameters.is_file():  # an earlier version noted it in the last line of the table alone
        return f"{name}, {workdir.parameters.read_text(encoding='utf-8').rstrip().splitlines()[-1]}"
    return name


def _changed(config: ConfigDict) -> dict[str, tuple[object, object]]:
    """{dotted key: (its value, its default)} of the keys that differ from the network family's defaults."""
    default = configs.flat(configs.base(config.model.name).to_dict())
    mine = configs.flat(config.to_dict())
    return {key: (value, default[key]) for key, value in mine.items() if value != default[key]}


def _config_section(changed: Mapping[str, tuple[object, object]], text: str) -> Section:
    return Section(
        "Config where it differs from the defaults",
        ("key", "value", "default"),
        [(key, repr(value), repr(default)) for key, (value, default) in changed.items()],
        instead="It is the default throughout.",
        details={"The whole config": text},
    )


def _config_file(config: ConfigDict, changed: Mapping[str, tuple[object, object]]) -> str:
    """A config file whose config is that of the run."""
    lines = [f"    config.{key} = {value!r}" for key, (value, _) in changed.items() if key != "model.name"]
    return "\n".join(
        [
            "from diffusion_jax.config import base",
            "",
            "",
            "def get_config():",
            f"    config = base({config.model.name!r})",
            *lines,
            "    return config",
            "",
        ]
    )


def _commands(workdir: Workdir, config: ConfigDict, noted: Sequence[events.Event]) -> str:
    """Lines of a shell: how the run was started, and what one does with it."""
    root = shlex.quote(str(workdir.root))
    starts = [event for event in noted if event["event"] == events.START and "command" in event]
    lines = []
    if starts:
        lines += [f"cd {shlex.quote(str(starts[-1]['folder']))}", str(starts[-1]["command"])]
    else:
        lines += ["# with the config file below, in a new workdir", "diffusion-jax train --config=run.py --workdir=NEW"]
    if config.task == "diffusion":
        lines.append(f"diffusion-jax sample --workdir={root} --out=samples")
    lines.append(f"tensorboard --logdir={root}")
    return "\n".join(lines)
