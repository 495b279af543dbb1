"""The configs that come with the package, by name: `--config=digits` is configs/digits.py of the wheel or a clone."""

import ast
from collections.abc import Sequence
from pathlib import Path

from diffusion_jax.errors import UserError, did_you_mean

_PACKAGE = Path(__file__).parent


def folder() -> Path:
    """Where they are: in the wheel's package or, of a clone, beside the package."""
    shipped = _PACKAGE / "shipped" / "configs"
    return shipped if shipped.is_dir() else _PACKAGE.parent / "configs"


def names() -> list[str]:
    """The name of each: that of its file without .py."""
    return sorted(file.stem for file in folder().glob("*.py"))


def path_of(name: str) -> Path:
    """The file of a config; raises UserError where there is none of that name."""
    if name not in names():
        raise UserError(f"no config {name!r}; `diffusion-jax configs` lists them{did_you_mean(name, names())}")
    return folder() / f"{name}.py"


def summary(name: str) -> str:
    """The first sentence of a config's docstring."""
    text = ast.get_docstring(ast.parse(path_of(name).read_text(encoding="utf-8"))) or ""
    return " ".join(text.partition("\n\n")[0].split())


def with_paths(arguments: Sequence[str], flags: Sequence[str]) -> list[str]:
    """The arguments with the path of the file where one of flags, such as "config", is given a name.

    A file of that name in the current folder comes first; what is no name is left as it is, and so is what follows
    "--", another command's line.
    """
    changed = list(arguments)
    end = changed.index("--") if "--" in changed else len(changed)
    for i, argument in enumerate(changed[:end]):
        flag, equals, value = argument.lstrip("-").partition("=")
        if not argument.startswith("-") or flag not in flags:
            continue
        place, value = (i, value) if equals else (i + 1, "".join(changed[i + 1 : i + 2]))
        if value in names() and not Path(value).exists():
            changed[place] = f"--{flag}={path_of(value)}" if equals else str(path_of(value))
    return changed
