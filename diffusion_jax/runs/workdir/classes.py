"""The classes of a run: the number of each, kept in the workdir by name.

Of a run that goes on they are its workdir's; of one that starts with another's parameters (`init_from`), the other's;
of a new run, the training data's in natural order. A workdir of an earlier version has none: its run numbered the
classes of a folder in the order of their code points, which is recorded when it goes on.
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
    """The classes that the checkpoints of a workdir know; None of a model without classes.

    Where the workdir does not keep them, its training data is opened once somebody asks for names.
    """
    count = config.model.num_classes
    if not count:
        return None
    if workdir.classes.is_file():
        return classes.known(_read(workdir), count)
    return Classes(count, False, lambda: _in_earlier_order(experiment.opened(config)))


def of_training(config: ConfigDict, workdir: Workdir, source: Source) -> Classes | None:
    """The classes that a run of config in the workdir learns from the training data source; None without any."""
    count = config.model.num_classes
    if not count:
        return None
    if _has_checkpoint(workdir):
        kept = _read(workdir) if workdir.classes.is_file() else _in_earlier_order(source)
        return classes.known(kept, count)
    if config.init_from and source.class_names is not None:
        return classes.known(_of_other(Path(config.init_from), source.class_names), count)
    return classes.known(source.class_names, count)


def keep(workdir: Workdir, found: Classes | None) -> None:
    """Records the classes in the workdir of a run that starts or goes on."""
    if found is None:
        return
    text = json.dumps({"format": FORMAT, "names": found.names}, indent=2, ensure_ascii=False)
    if not workdir.classes.is_file() or workdir.classes.read_text(encoding="utf-8") != text:
        replace_file(workdir.classes, text.encode())


def same_order(first: Classes | None, second: Classes | None) -> tuple[int, ...] | None:
    """The number in second of each class of first; None where every number means the same class in both.

    Raises UserError, without saying whose they are, where the classes are not the same.
    """
    if first is None or second is None or not (first.recorded or second.recorded):
        return None  # both numbered their classes in the order of earlier versions
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
    """The classes of training data in the order of version 0.1, which sorted the names of folders as text."""
    inner = source.source if isinstance(source, classes.Renumbered) else source
    names = inner.class_names
    return tuple(sorted(names)) if names is not None and isinstance(inner, ImageFolder) else names


def _of_other(root: Path, own: tuple[str, ...]) -> tuple[str, ...]:
    """own classes at the numbers that the run in root has for them; new ones take the places of those left out."""
    other = Workdir(root)
    found = of_workdir(other.read_config(), other)
    try:
        theirs = None if found is None else found.names
    except UserError as error:
        print(f"the classes in {root} are not known by name ({error}): they are taken to be {classes.shown(own)}")
        return own
    if theirs is None:
        return own
    new = [name for name in own if classes.find(name, theirs) is None]
    if not new:
        return theirs
    print(f"init_from: the model in {root} was not trained on {classes.shown(new)}", flush=True)
    if len(own) != len(theirs):
        return own  # of another shape than the other's parameters, which restoring them says
    left = iter(new)
    return tuple(name if classes.find(name, own) is not None else next(left) for name in theirs)


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
