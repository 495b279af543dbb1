"""The commands and their flags, as `--help` has them."""

import importlib
import inspect

from absl import flags

from diffusion_jax.cli.main import COMMANDS, MODULES
from reference.markdown import code, plain, table


def every_command() -> str:
    """A section for each command: what it does, its command lines, a table of its flags."""
    return "\n".join(_command(name) for name in COMMANDS)


def _command(name: str) -> str:
    module = importlib.import_module(f"diffusion_jax.cli.{MODULES.get(name, name.partition(' ')[0])}")
    values = flags.FlagValues()
    module.define(values, [])
    rows = [_row(values[flag]) for flag in values if flag == values[flag].name]
    listed = table(("flag", "default", "meaning"), rows) if rows else "It has no flags of its own.\n"
    return f"## {name}\n\n{_described(inspect.getdoc(module) or '')}\n\n{listed}"


def _row(flag: flags.Flag) -> tuple[str, str, str]:
    yes_or_no = flag.flag_type() == "bool"
    default = "" if flag.default in (None, [], "", False) else str(flag.default)
    return code(f"--{flag.name}" + ("" if yes_or_no else "=")), code(default), plain(flag.help or "")


def _described(docstring: str) -> str:
    """The docstring, with its command lines as a block."""
    parts = []
    for block in docstring.split("\n\n"):
        if block.lstrip().startswith(("diffusion-jax ", "python ")):
            parts.append(f"```sh\n{block}\n```")
        else:
            parts.append(plain(block))
    return "\n\n".join(parts)
