"""What sweep.json in the folder of a sweep says of it, and whether a command goes on with that sweep."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict

from diffusion_jax import config as configs
from diffusion_jax.errors import UserError
from diffusion_jax.report.atomic import replace_file
from diffusion_jax.runs.sweep.trials import locked
from diffusion_jax.runs.workdir.paths import read_json
from diffusion_jax.sweeps.definition import Changes


class Record(TypedDict):
    """What sweep.json says of the sweep in a folder."""

    config: Changes  # as a nested dict
    sweep: dict[str, object]  # `Sweep.identity`


def earlier_defaults(root: Path) -> Changes:
    """The keys in which an earlier version, where one started the sweep in root, differs from today's defaults."""
    try:
        return configs.earlier(json.dumps(json.loads((root / "sweep.json").read_text(encoding="utf-8"))["config"]))
    except (OSError, ValueError, KeyError, TypeError):
        return {}  # `check_root` reports it


def check_root(root: Path, record: Record) -> list[str]:
    """The config keys that sweep.json in root lacks, because they were added to the config later.

    Raises UserError where root holds another sweep than the record's, or other files.
    """
    path = root / "sweep.json"
    if not path.is_file():
        if root.exists() and (not root.is_dir() or {file.name for file in root.iterdir()} - {"lock"}):
            raise UserError(f"{root} has files and no sweep; give a new --workdir")
        return []
    old = read_json(path)
    try:
        text = json.dumps(old["config"])
        added, completed = configs.newer(text), configs.from_json(text)
    except (UserError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not what this version of sweep wrote ({error}); give a new --workdir") from None
    before = configs.flat(old | {"config": _plain(completed.to_dict())})
    now = configs.flat(_plain(record))
    if before != now:
        key = next(key for key in sorted(before | now) if before.get(key) != now.get(key))
        raise UserError(
            f"{root} holds another sweep: {key} is {before.get(key)!r} there and {now.get(key)!r} here; "
            "give a new --workdir, or the sweep file and config that it was started with"
        )
    return added


def _plain(value: Mapping[str, object]) -> dict[str, object]:
    """The value as JSON reads it back, in which tuples are lists."""
    return json.loads(json.dumps(value))


def write_record(root: Path, record: Record, sweep_file: Path) -> None:
    """Writes sweep.json, and a copy of the sweep's file. Of processes that start together, one does."""
    with locked(root / "lock"):
        added = check_root(root, record)
        if added:
            says = f"an earlier version wrote {root / 'sweep.json'}: the defaults of {', '.join(added)} complete it"
            print(f"diffusion-jax: {says}", file=sys.stderr)
        if added or not (root / "sweep.json").is_file():
            replace_file(root / "sweep.json", (json.dumps(record, indent=2) + "\n").encode())
        if not (root / "sweep.py").is_file():
            replace_file(root / "sweep.py", sweep_file.read_bytes())
