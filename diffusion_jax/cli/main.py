"""`diffusion-jax COMMAND --flags`: finds the command, and turns what a user can mend into one sentence and a status."""

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags, logging

from diffusion_jax.errors import UserError

COMMANDS = {
    "train": "train a config, or go on with it: --config=configs/digits.py --workdir=runs/digits",
    "sample": "draw samples from a workdir: --workdir=runs/digits --out=samples --num=64",
    "figures": "draw schedules, the forward process, a checkpoint's trajectory: --out=figures [--workdir=runs/digits]",
    "evaluate": "measure a checkpoint: --workdir=runs/digits --metrics=bits_per_dim,fd --features=runs/classifier",
    "evaluate compare": "two evaluations side by side, if they are alike: --a=A.json --b=B.json",
    "evaluate reference": "statistics of images: --config=configs/digits.py --features=runs/classifier --out=a.npz",
    "plan": "say what a config takes on a machine, TPU or not: --config=configs/digits.py --topology=v5e:4x4",
    "checkpoint verify": "find what is damaged of a workdir's checkpoints: --workdir=runs/digits [--step=1000]",
}

MODULES = {"evaluate compare": "compare", "evaluate reference": "reference"}
"""Of commands of two words whose module is not the first."""

DONE, BAD_INPUT, NON_FINITE = 0, 2, 3


def entry() -> None:
    """The console script."""
    sys.exit(main(sys.argv[1:]))


def main(arguments: Sequence[str]) -> int:
    """Runs one command; returns its exit status: 0 done, 2 bad input, 3 a loss that is not finite."""
    name, *rest = arguments or ["--help"]
    if rest and f"{name} {rest[0]}" in COMMANDS:
        name, rest = f"{name} {rest[0]}", rest[1:]
    if name in ("--help", "-h", "help"):
        print(__doc__, *(f"  {command:18} {text}" for command, text in COMMANDS.items()), sep="\n")
        return DONE
    if name not in COMMANDS:
        return _fail(f"unknown command {name!r}; choose from {', '.join(COMMANDS)}")
    from diffusion_jax.train.loop import NonFiniteLossError  # imports jax: not for --help

    command = importlib.import_module(f"diffusion_jax.cli.{MODULES.get(name, name.partition(' ')[0])}")
    logging.set_verbosity(logging.ERROR)  # orbax explains its defaults in warnings
    values = flags.FlagValues()
    flags.DEFINE_bool("help", False, "Show these flags.", short_name="h", flag_values=values)
    command.define(values, rest)
    try:
        if not flags.FLAGS.is_parsed():  # libraries read absl's own flags, which have no others than defaults here
            flags.FLAGS(["diffusion-jax"])
        if {"--help", "-h"} & set(rest):
            print(command.__doc__, values.main_module_help() or values.get_help(), sep="\n")
            return DONE
        _parse(values, name, rest)
        command.run(values)
    except (UserError, flags.Error) as error:
        return _fail(str(error))
    except OSError as error:  # a full disk, a folder that cannot be written: the system's own sentence, with the path
        return _fail(str(error))
    except NonFiniteLossError as error:
        _fail(str(error))
        return NON_FINITE
    return DONE


def _parse(values: flags.FlagValues, name: str, arguments: Sequence[str]) -> None:
    """Reads the flags; a config file is Python and runs here, its overrides checked against its keys and types."""
    for argument in arguments:
        path = argument.removeprefix("--config=").partition(":")[0]
        if argument.startswith("--config=") and not Path(path).is_file():
            raise UserError(f"no config file {path}; give the path of one, as in --config=configs/digits.py")
    try:
        unparsed = values([f"diffusion-jax {name}", *arguments])[1:]
        if "config" in values and values.config is not None:
            values.config.keys()  # what its loading raised is raised at the first access
    except KeyError as error:
        raise UserError(f"unknown config key: {error.args[0]}") from error
    except (OSError, AttributeError, TypeError, ValueError, ImportError, SyntaxError) as error:
        raise UserError(f"cannot read the config: {error}") from error
    if unparsed:
        raise UserError(f"unexpected argument {unparsed[0]!r}; every option is written --flag=value")


def _fail(message: str) -> int:
    print(f"diffusion-jax: {' '.join(message.split())}", file=sys.stderr)
    return BAD_INPUT
