"""`diffusion-jax keys`: the keys of a config, with type, default, range and meaning."""

import ast
import dataclasses
import fnmatch
import inspect
import textwrap
from collections.abc import Iterator

from diffusion_jax import config as configs
from diffusion_jax import ranges, schema
from diffusion_jax.errors import UserError, did_you_mean
from diffusion_jax.nets.families import family
from diffusion_jax.runs.help.choices import lists_for
from diffusion_jax.runs.help.comments import meanings, of_fields


@dataclasses.dataclass(frozen=True)
class Key:
    """A key of a config."""

    name: str  # dotted
    default: object
    allowed: str  # its type, and the range of a number
    meaning: str
    lists: list[str]  # the names in `choices.LISTS` from which it chooses

    @property
    def text(self) -> str:
        """The lines that a user reads."""
        more = "".join(f"; diffusion-jax keys --of={name} lists them" for name in self.lists)
        body = textwrap.fill(self.meaning + more, 116, initial_indent="    ", subsequent_indent="    ")
        return f"{self.name} = {self.default!r}  ({self.allowed})\n{body}"


def config_keys(network: str = "unet") -> list[Key]:
    """The keys of a config with that network, sorted."""
    chosen = family(network)
    meaning = _of_base() | {f"model.{name}": text for name, text in of_fields(chosen).items()} | _of_model()
    allowed = ranges.CONFIG | {f"model.{name}": each for name, each in chosen.ranges.items()}
    return [
        Key(name, default, _allowed(default, allowed.get(name)), meaning.get(name, ""), lists_for(name))
        for name, default in configs.flat(configs.base(network).to_dict()).items()
    ]


def matching(pattern: str, network: str = "unet") -> list[Key]:
    """The keys whose names match a pattern such as "sample.*" or "steps", or else whose meanings contain it.

    Raises UserError where there is none.
    """
    every = config_keys(network)
    named = [key for key in every if pattern in key.name or fnmatch.fnmatchcase(key.name, pattern)]
    found = named or [key for key in every if pattern.lower() in key.meaning.lower()]
    if not found:
        near = did_you_mean(pattern, [key.name for key in every])
        raise UserError(
            f"no config key fits {pattern!r}, nor does the meaning of one; diffusion-jax keys lists all{near}"
        )
    return found


def lines(pattern: str, network: str) -> Iterator[str]:
    """The lines that the command prints."""
    for key in matching(pattern, network) if pattern else config_keys(network):
        yield key.text


def _of_base() -> dict[str, str]:
    """The comments behind the entries of `schema.SCHEMA`."""
    source = inspect.getsource(schema)
    for statement in ast.parse(source).body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.value, ast.Dict):
            return meanings(statement.value, source)
    raise AssertionError("schema.py has no dict")


def _of_model() -> dict[str, str]:
    """The meanings in `schema.SCHEMA` of the keys of model that every family has."""
    return {name: text for name, text in _of_base().items() if name.startswith("model.")}


def _allowed(default: object, allowed: ranges.Range | None) -> str:
    kind = {bool: "True or False", int: "integer", float: "number", str: "text", tuple: "tuple"}[type(default)]
    if allowed is None:
        return kind
    return f"{kind}, {'each ' if allowed.each else ''}{allowed.words}"
