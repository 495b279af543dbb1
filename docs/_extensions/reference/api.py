"""The public functions and classes, documented by autodoc from their docstrings."""

import importlib
import inspect
from collections.abc import Iterable
from types import ModuleType


def functions() -> str:
    """The functions of `import diffusion_jax`, and what they give."""
    of = importlib.import_module("diffusion_jax.functions")
    more = [
        ("diffusion_jax.config", "base"),
        ("diffusion_jax.extensions", "trust"),
        ("diffusion_jax.errors", "UserError"),
    ]
    return _blocks([*((of, name) for name in of.__all__), *((importlib.import_module(m), name) for m, name in more)])


def module(name: str) -> str:
    """What a module offers: `__all__` where it has one, else what it defines and has no leading underscore."""
    of = importlib.import_module(name)
    public = getattr(of, "__all__", None) or [
        n for n, v in vars(of).items() if not n.startswith("_") and getattr(v, "__module__", "") == name
    ]
    kept = [n for n in public if inspect.isfunction(getattr(of, n)) or inspect.isclass(getattr(of, n))]
    return f"{_sentence(of)}\n\n{_blocks([(of, n) for n in kept])}"


def table(name: str) -> str:
    """The functions in a dict of names, given as module.TABLE."""
    where, _, of = name.rpartition(".")
    entries = getattr(importlib.import_module(where), of)
    made = {id(v): v for v in entries.values() if inspect.isfunction(v) or inspect.isclass(v)}
    return _blocks([(importlib.import_module(v.__module__), v.__qualname__) for v in made.values()])


def _blocks(names: Iterable[tuple[ModuleType, str]]) -> str:
    lines = ["```{eval-rst}"]
    for of, name in names:
        thing = getattr(of, name)
        lines += [f".. {'autoclass' if inspect.isclass(thing) else 'autofunction'}:: {of.__name__}.{name}"]
        lines += ["   :members:", ""] if inspect.isclass(thing) else [""]
    return "\n".join([*lines, "```"])


def _sentence(of: ModuleType) -> str:
    return (inspect.getdoc(of) or "").partition("\n\n")[0]
