"""Objects of other packages, by dotted names in configs and flags, and the rule of which packages are trusted.

A package's code runs only with the user's consent: the package is installed with an entry point in the group
`diffusion_jax.extensions`, or the command has `--extension=PACKAGE`. A workdir's config.json alone never makes it run.
"""

import importlib
import re
from importlib import metadata
from typing import Any

from diffusion_jax.errors import UserError

GROUP = "diffusion_jax.extensions"

_DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")

_given: list[str] = []  # by --extension or `trust`


def trust(*packages: str) -> None:
    """Lets this process import dotted names from these packages; raises UserError for text that cannot name one."""
    for package in packages:
        if not package.isidentifier():
            raise UserError(f"--extension is the name of a package, as in --extension=mypkg; got {package!r}")
        if package not in _given:
            _given.append(package)


def given() -> tuple[str, ...]:
    """The packages that `trust` was called with; a command passes them to commands that it starts."""
    return tuple(_given)


def trusted() -> set[str]:
    """The packages that dotted names may be imported from."""
    installed = {point.module.partition(".")[0] for point in metadata.entry_points(group=GROUP)}
    return {"diffusion_jax", *installed, *_given}


def is_dotted(name: str) -> bool:
    """Whether a name is dotted, such as "mypkg.nets.MLP"."""
    return _DOTTED.fullmatch(name) is not None


def load(name: str, kind: str) -> Any:
    """The object of a dotted name; kind ("network") is for messages.

    Raises UserError where its package is not trusted, is not installed, or has no such object.
    """
    package = name.partition(".")[0]
    if package not in trusted():
        raise UserError(
            f"{kind} {name} is code of the package {package}, which this command does not trust; if you do, give "
            f"--extension={package}, or install it with an entry point in the group {GROUP}"
        )
    parts = name.split(".")
    for split in range(len(parts) - 1, 0, -1):
        module = ".".join(parts[:split])
        try:
            found: Any = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name is not None and (module == error.name or module.startswith(f"{error.name}.")):
                continue
            raise UserError(f"{kind} {name}: {module} cannot be imported: {error}") from error
        except ImportError as error:
            raise UserError(f"{kind} {name}: {module} cannot be imported: {error}") from error
        for part in parts[split:]:
            if not hasattr(found, part):
                raise UserError(f"{kind} {name}: {module} has no {'.'.join(parts[split:])}")
            found = getattr(found, part)
        return found
    raise UserError(f"{kind} {name}: there is no package {package} here; install it where diffusion-jax is installed")
