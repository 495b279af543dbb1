"""What can be chosen by name, with arguments and meaning, read from the dicts that do the choosing.

This file imports none of them before they are asked for: a command's --help names the lists and waits for no jax.
"""

import ast
import dataclasses
import importlib
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from diffusion_jax.errors import UserError, did_you_mean
from diffusion_jax.runs.help.comments import meanings


@dataclasses.dataclass(frozen=True)
class Choice:
    """A dict by name, and the config keys that choose from it."""

    module: str
    table: str
    keys: tuple[str, ...]
    arguments: bool = True  # whether a user writes arguments behind the name
    more: Mapping[str, str] = dataclasses.field(default_factory=dict)  # {entry that is not in the dict: its meaning}


LISTS: dict[str, Choice] = {
    "samplers": Choice("core.samplers", "SAMPLERS", ("sample.sampler",)),
    "grids": Choice("core.grids", "GRIDS", ("sample.grid",)),
    "thresholds": Choice("models.sampling", "THRESHOLDS", ("sample.threshold",)),
    "schedules": Choice("core.schedules", "SCHEDULES", ("schedule",)),
    "modifiers": Choice("core.schedules", "MODIFIERS", ("schedule",)),
    "predictions": Choice("core.predictions", "PREDICTIONS", ("prediction",)),
    "times": Choice("core.times", "TIMES", ("times",)),
    "adaptive_times": Choice("core.times", "ADAPTIVE_TIMES", ("times",)),
    "objectives": Choice("core.objectives", "OBJECTIVES", ("objective",)),
    "weightings": Choice("core.weightings", "WEIGHTINGS", ("weighting",)),
    "distances": Choice("core.losses", "DISTANCES", ("distance",)),
    "networks": Choice("nets.families", "NETWORKS", ("model.name",), arguments=False),
    "texts": Choice("models.text", "TEXTS", ("text",)),
    "conditions": Choice("models.conditions", "CONDITIONS", ("spatial",)),
    "optimizers": Choice("train.optimizers", "OPTIMIZERS", ("optimizer.name",), arguments=False),
    "metrics": Choice(
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
    return [name for name, choice in LISTS.items() if key in choice.keys]


def lines_of(name: str) -> Iterator[str]:
    """The entries of a list: each as it is written, with the defaults of its arguments, and its first sentence.

    Raises UserError where there is no such list.
    """
    if name not in LISTS:
        raise UserError(f"there is no list {name!r}; choose from {', '.join(LISTS)}{did_you_mean(name, LISTS)}")
    choice = LISTS[name]
    module = importlib.import_module(f"diffusion_jax.{choice.module}")
    table = getattr(module, choice.table)
    comments = {**choice.more, **comments_in(module, choice.table)}
    yield f"{name}, chosen by config.{' and config.'.join(choice.keys)}:"
    for entry in (*table, *choice.more):
        made = table.get(entry)
        written = choice.arguments and (inspect.isfunction(made) or inspect.isclass(made))
        yield f"  {entry}{_arguments(made) if written else ''}"
        if meaning := comments.get(entry) or _sentence(made):
            yield textwrap.fill(meaning, 116, initial_indent="      ", subsequent_indent="      ")


def _arguments(made: Callable[..., Any]) -> str:
    parameters = inspect.signature(made).parameters.values()
    shown = [p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in parameters]
    return f"({', '.join(shown)})" if shown else ""


def _sentence(made: Any) -> str:
    """The first sentence of its docstring."""
    text = " ".join((inspect.getdoc(made) or "").partition("\n\n")[0].split()) if callable(made) else ""
    end = _SENTENCE.search(text)
    return text if end is None else text[: end.end()]


def comments_in(module: Any, table: str) -> dict[str, str]:
    """{entry: the comment behind it} of a dict in a module's source, for entries that are no documented function."""
    source = inspect.getsource(module)
    for node in ast.parse(source).body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == table:
            assert isinstance(node.value, ast.Dict)
            return meanings(node.value, source)
    return {}
