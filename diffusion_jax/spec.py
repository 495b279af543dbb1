"""Specs, texts that choose a pure function: "ddim", "ddim(eta=0.5)", "cosine(steps=4000)", "mypkg.samplers.mine(k=2)".

Configs, sweeps and flags have the same specs. A dotted name is one of another package, which must be trusted
(`extensions`). The function's signature is the schema: an unknown name, an unknown argument or a value of another type
is an error that says what is expected.
"""

import ast
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from diffusion_jax import extensions
from diffusion_jax.errors import UserError, did_you_mean

T = TypeVar("T")


def from_spec(
    text: str, table: Mapping[str, Callable[..., T]], kind: str, offered: Mapping[str, object] | None = None
) -> T:
    """Calls the entry of table that text names, with the arguments in text; kind ("sampler") is for messages.

    offered are further arguments, passed to an entry that takes them where text does not have them.
    """
    name, arguments = _parse(text, kind)
    make = chosen(name, table, kind)
    known = _checked(name, make, arguments, kind)
    arguments = {key: value for key, value in (offered or {}).items() if key in known} | arguments
    needed = [key for key, one in known.items() if one.default is one.empty and one.kind not in _OPTIONAL]
    if missing := [key for key in needed if key not in arguments]:
        raise UserError(f"{kind} {name!r} needs {', '.join(missing)}; write {name}({missing[0]}=...)")
    return make(**arguments)


def completed(text: str, table: Mapping[str, Callable[..., object]], kind: str) -> tuple[str, dict[str, Any]]:
    """(the name in a spec, its arguments with the defaults of those that are missing), without a call."""
    name, arguments = _parse(text, kind)
    known = _checked(name, chosen(name, table, kind), arguments, kind)
    defaults = {key: one.default for key, one in known.items() if one.default is not one.empty}
    return name, defaults | arguments


def _checked(
    name: str, make: Callable[..., object], arguments: Mapping[str, object], kind: str
) -> Mapping[str, inspect.Parameter]:
    """The parameters of make; raises UserError for an argument that it does not take, or of another type."""
    known = inspect.signature(make).parameters
    for key, value in arguments.items():
        if key not in known:
            takes = f"takes {', '.join(known)}" if known else "takes no arguments"
            raise UserError(f"{kind} {name!r} has no argument {key!r}; it {takes}{did_you_mean(key, known)}")
        default = known[key].default
        if not _finite(value) and value != default:
            raise UserError(f"{kind} {name!r}: {key} is finite; got {key}={value!r}")
        if default is not inspect.Parameter.empty and not _same_type(value, default):
            raise UserError(
                f"{kind} {name!r}: {key} is {_type_name(default)}, as in {key}={default!r}; got {key}={value!r}"
            )
    return known


_OPTIONAL = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)


def chosen(name: str, table: Mapping[str, T], kind: str) -> T:
    """The entry of table, or the object of a dotted name; raises UserError where there is none."""
    if extensions.is_dotted(name):
        return extensions.load(name, kind)
    if name not in table:
        raise UserError(
            f"unknown {kind} {name!r}; choose from {', '.join(sorted(table))}, or give yours as package.module.name"
            f"{did_you_mean(name, table)}"
        )
    return table[name]


def _parse(text: str, kind: str) -> tuple[str, dict[str, object]]:
    try:
        node = ast.parse(text.strip(), mode="eval").body
        if name := _name(node):
            return name, {}
        if isinstance(node, ast.Call) and (name := _name(node.func)) and not node.args:
            arguments = {keyword.arg: ast.literal_eval(keyword.value) for keyword in node.keywords}
            if None not in arguments:  # None stands for **arguments
                return name, arguments  # type: ignore[return-value]
    except (SyntaxError, ValueError):
        pass
    raise UserError(f"cannot read {kind} {text!r}; write a name, or a name with arguments as in name(key=0.5)")


def _name(node: ast.expr) -> str:
    """The name or dotted name in node; "" for other expressions."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (before := _name(node.value)):
        return f"{before}.{node.attr}"
    return ""


def _finite(value: object) -> bool:
    """Whether no number in value is infinite, as the literal 1e999 is."""
    if isinstance(value, list | tuple | set):
        return all(map(_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def _same_type(value: object, default: object) -> bool:
    if default is None:
        return True
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(default, bool) and isinstance(value, bool)
    return isinstance(value, (int, float) if isinstance(default, float) else type(default))


def _type_name(value: object) -> str:
    return {bool: "True or False", int: "an integer", float: "a number", str: "a text"}.get(
        type(value), type(value).__name__
    )
