"""What can be chosen by name, with arguments and meanings, read from the dicts that map the names.

This file imports a dict only when its list is asked for, so that a command's --help, which names the lists, does not
wait for jax.
"""

import ast
import dataclasses
import importlib
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType

from diffusion_jax.errors import UserError, did_you_mean
from diffusion_jax.runs.help.comments import meanings


@dataclasses.dataclass(frozen=True)
class NamedList:
    """Where the dict of a list is, and the config keys that choose from it."""

    module: str
    table: str
    keys: tuple[str, ...]
    arguments: bool = True  # whether a user may write arguments after the name
    more: Mapping[str, str] = dataclasses.field(default_factory=dict)  # {name that is not in the dict: its meaning}


LISTS: dict[str, NamedList] = {
    "samplers": NamedList("core.samplers", "SAMPLERS", ("sample.sampler",)),
    "grids": NamedList("core.grids", "GRIDS", ("sample.grid",)),
    "thresholds": NamedList("models.sampling", "THRESHOLDS", ("sample.threshold",)),
    "schedules": NamedList("core.schedules", "SCHEDULES", ("schedule",)),
    "modifiers": NamedList("core.schedules", "MODIFIERS", ("schedule",)),
    "predictions": NamedList("core.predictions", "PREDICTIONS", ("prediction",)),
    "times": NamedList("core.times", "TIMES", ("times",)),
    "adaptive_times": NamedList("core.times", "ADAPTIVE_TIMES", ("times",)),
    "objectives": NamedList("core.objectives", "OBJECTIVES", ("objective",)),
    "weightings": NamedList("core.weightings", "WEIGHTINGS", ("weighting",)),
    "distances": NamedList("core.losses", "DISTANCES", ("distance",)),
    "networks": NamedList("nets.families", "NETWORKS", ("model.name",), arguments=False),
    "modalities": NamedList("modalities", "MODALITIES", ("data.modality",)),
    "texts": NamedList("models.text", "TEXTS", ("text",)),
    "conditions": NamedList("models.conditions", "CONDITIONS", ("spatial",)),
    "optimizers": NamedList("train.optimizers", "OPTIMIZERS", ("optimizer.name",), arguments=False),
    "trackers": NamedList("report.trackers", "TRACKERS", ("log.to",), arguments=False),
    "metrics": NamedList(
        "evals.sample_metrics",
        "METRICS",
        ("evaluate.metrics",),
        more={"bits_per_dim": "Bits a value that the model needs for real images; of `evaluate`, not in training."},
    ),
}
"""{name of a list: where its dict is}."""

_SENTENCE = re.compile(r"(?<!\beq)(?<!\bal)(?<!\bsec)\.(?= [A-Z])")


def lists_for(key: str) -> list[str]:
    """The lists that a config key chooses from."""
    return [name for name, entry in LISTS.items() if key in entry.keys]


def lines_of(name: str) -> Iterator[str]:
    """The lines of a list: each entry as a user writes it, with default arguments, and its first sentence.

    Raises UserError where there is no such list.
    """
    if name not in LISTS:
        raise UserError(f"there is no list {name!r}; choose from {', '.join(LISTS)}{did_you_mean(name, LISTS)}")
    each = LISTS[name]
    module = importlib.import_module(f"diffusion_jax.{each.module}")
    table = getattr(module, each.table)
    comments = {**each.more, **comments_in(module, each.table)}
    yield f"{name}, chosen by config.{' and config.'.join(each.keys)}:"
    for entry in (*table, *each.more):
        made = table.get(entry)
        written = each.arguments and (inspect.isfunction(made) or inspect.isclass(made))
        yield f"  {entry}{_arguments(made) if written else ''}"
        if meaning := comments.get(entry) or _sentence(made):
            yield textwrap.fill(meaning, 116, initial_indent="      ", subsequent_indent="      ")


def _arguments(made: Callable[..., object]) -> str:
    """The arguments of an entry with their defaults, as a user writes them."""
    parameters = inspect.signature(made).parameters.values()
    shown = [p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in parameters]
    return f"({', '.join(shown)})" if shown else ""


def _sentence(made: object) -> str:
    """The first sentence of the docstring of an entry."""
    text = " ".join((inspect.getdoc(made) or "").partition("\n\n")[0].split()) if callable(made) else ""
    end = _SENTENCE.search(text)
    return text if end is None else text[: end.end()]


def comments_in(module: ModuleType, table: str) -> dict[str, str]:
    """{entry: its comment} of a dict in the source of a module, for entries that are no documented functions."""
    source = inspect.getsource(module)
    for node in ast.parse(source).body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == table:
            assert isinstance(node.value, ast.Dict)
            return meanings(node.value, source)
    return {}
