"""The classes of a run: the number of each class, recorded in the workdir by name.

A run that goes on has the classes of its workdir. A run that starts with the parameters of another (`init_from`) has
the classes of the other, and a new run those of the training data in natural order. The workdir of an earlier version
has no record. Its run numbered the classes of a folder in the order of their code points, which is recorded when it
goes on.
"""

import json
from pathlib import Path

from ml_collections import ConfigDict

from diffusion_jax import experiment
from diffusion_jax.data import classes
from diffusion_jax.data.classes import Classes
from diffusion_jax.data.image_folder import ImageFolder
from diffusion_jax.data.sources import Source
from diffusion_jax.errors import UserError
from diffusion_jax.report.atomic import replace_file
from diffusion_jax.runs.workdir.paths import Workdir

FORMAT = "diffusion_jax classes 1"


def of_workdir(config: ConfigDict, workdir: Workdir) -> Classes | None:
    """The classes of the model in a workdir; None for a model without classes.

    Where the workdir has no record of them, the training data is opened once names are asked for.
    """
    count = config.model.num_classes
    if not count:
        return None
    if workdir.classes.is_file():
        return classes.known(_read(workdir), count)
    return Classes(count, False, lambda: _in_earlier_order(experiment.opened(config)))


def of_training(config: ConfigDict, workdir: Workdir, source: Source) -> Classes | None:
    """The classes that a run of config in the workdir learns from the training data source; None for no classes."""
    count = config.model.num_classes
    if not count:
        return None
    if _has_checkpoint(workdir):
        recorded = _read(workdir) if workdir.classes.is_file() else _in_earlier_order(source)
        return classes.known(recorded, count)
    if config.init_from and source.class_names is not None:
        return classes.known(_of_other(Path(config.init_from), source.class_names), count)
    return classes.known(source.class_names, count)


def keep(workdir: Workdir, found: Classes | None) -> None:
    """Records the classes of a run in its workdir."""
    if found is None:
        return
    text = json.dumps({"format": FORMAT, "names": found.names}, indent=2, ensure_ascii=False)
    if not workdir.classes.is_file() or workdir.classes.read_text(encoding="utf-8") != text:
        replace_file(workdir.classes, text.encode())


def same_order(first: Classes | None, second: Classes | None) -> tuple[int, ...] | None:
    """The number in second of each class of first; None where all numbers are the same.

    Raises UserError, with the names of both, where the classes differ.
    """
    if first is None or second is None or not (first.recorded or second.recorded):
        return None  # both are numbered in the order of earlier versions
    ours, theirs = first.names, second.names
    if ours == theirs or ours is None or theirs is None:
        return None
    numbers = [classes.find(name, theirs) for name in ours]
    if None in numbers:
        raise UserError(f"{classes.shown(ours)} and {classes.shown(theirs)}")
    return tuple(number for number in numbers if number is not None)


def _has_checkpoint(workdir: Workdir) -> bool:
    return any(folder.name.isdecimal() for folder in workdir.checkpoints.glob("*"))


def _in_earlier_order(source: Source) -> tuple[str, ...] | None:
    """The classes of training data in the order of version 0.1, which sorted the names of folders by code points."""
    inner = source.source if isinstance(source, classes.Renumbered) else source
    names = inner.class_names
    return tuple(sorted(names)) if names is not None and isinstance(inner, ImageFolder) else names


def _of_other(root: Path, names: tuple[str, ...]) -> tuple[str, ...]:
    """The names at the numbers that they have in the run in root. New names take the numbers of those left out."""
    other = Workdir(root)
    found = of_workdir(other.read_config(), other)
    try:
        theirs = None if found is None else found.names
    except UserError as error:
        print(f"the classes in {root} are not known by name ({error}): they are taken to be {classes.shown(names)}")
        return names
    if theirs is None:
        return names
    new = [name for name in names if classes.find(name, theirs) is None]
    if not new:
        return theirs
    print(f"init_from: the model in {root} was not trained on {classes.shown(new)}", flush=True)
    if len(names) != len(theirs):
        return names  # restoring the parameters raises, for their shapes differ
    left = iter(new)
    return tuple(name if classes.find(name, names) is not None else next(left) for name in theirs)


def _read(workdir: Workdir) -> tuple[str, ...] | None:
    try:
        record = json.loads(workdir.classes.read_text(encoding="utf-8"))
        if record["format"] != FORMAT:
            raise ValueError(record["format"])
        return None if record["names"] is None else tuple(map(str, record["names"]))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{workdir.classes} does not hold the names of classes as this version writes them; restore it from a copy"
        ) from error
