"""`diffusion-jax COMMAND --flags`: finds the command, and turns what a user can mend into one sentence and a status."""

import importlib
import sys
import traceback
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from absl import flags, logging

from diffusion_jax.cli import interrupts
from diffusion_jax.cli.memory import ask_for_huge_pages
from diffusion_jax.errors import UserError

COMMANDS = {
    "train": "train a config, or go on with it: --config=configs/digits.py --workdir=runs/digits",
    "sample": "draw samples from a workdir: --workdir=runs/digits --out=samples --num=64",
    "figures": "draw schedules, the forward process, a checkpoint's trajectory: --out=figures [--workdir=runs/digits]",
    "evaluate": "measure a checkpoint: --workdir=runs/digits --metrics=bits_per_dim,fd --features=runs/classifier",
    "evaluate compare": "two evaluations side by side, if they are alike: --a=A.json --b=B.json",
    "evaluate heatmap": "scores by checkpoint and sampling: --workdir=runs/digits --over=guidance=1,2,4 --out=heatmap",
    "evaluate reference": "statistics of images: --config=configs/digits.py --features=runs/classifier --out=a.npz",
    "precompute": "keep latents and text features of a config's data: --config=configs/shapes_latent.py --out=latents",
    "plan": "say what a config takes on a machine, TPU or not: --config=configs/digits.py --topology=v5e:4x4",
    "launch": "start train on a cluster, or show how: slurm --nodes=2 --gpus=8 --time=24:00:00 --dry-run -- train ...",
    "sweep": "train a config many times, and rank: --config=configs/digits.py --sweep=FILE --workdir=runs/sweep",
    "checkpoint verify": "find what is damaged of a workdir's checkpoints: --workdir=runs/digits [--step=1000]",
}

MODULES = {"evaluate compare": "compare", "evaluate heatmap": "heatmap", "evaluate reference": "reference"}
"""Of commands of two words whose module is not the first."""

DONE, BAD_INPUT, NON_FINITE = 0, 2, 3


def entry() -> None:
    """The console script; a signal that no command notes itself ends it within 5 s, with status 128 + its number."""
    ask_for_huge_pages()
    try:
        with interrupts.ending_on_signal():
            status = main(sys.argv[1:])
    except KeyboardInterrupt as interrupt:
        status = interrupts.stopped(interrupt)
    except Exception:
        traceback.print_exc()
        status = 1
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    if status and (processes := sys.modules.get("diffusion_jax.train.processes")):
        processes.leave(status)
    interrupts.end(status)


def main(arguments: Sequence[str]) -> int:
    """Runs one command; returns its exit status: 0 done, 2 bad input, 3 a loss that is not finite or jumped."""
    name, *rest = arguments or ["--help"]
    if rest and f"{name} {rest[0]}" in COMMANDS:
        name, rest = f"{name} {rest[0]}", rest[1:]
    if name in ("--help", "-h", "help"):
        print(__doc__, *(f"  {command:18} {text}" for command, text in COMMANDS.items()), sep="\n")
        return DONE
    if name not in COMMANDS:
        return _fail(f"unknown command {name!r}; choose from {', '.join(COMMANDS)}")
    from diffusion_jax.train.loop import DivergedError  # imports jax: not for --help

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
        words = parse(values, name, rest)
        for flag in ("workdir", "out"):
            if flag in values and values[flag].value:
                values[flag].value = _local(flag, str(values[flag].value))
        if words and not getattr(command, "TAKES_WORDS", False):
            raise UserError(f"unexpected argument {words[0]!r}; every option is written --flag=value")
        status = command.run(values, words) if words else command.run(values)
    except (UserError, flags.Error) as error:
        return _fail(str(error))
    except OSError as error:  # a full disk, a folder that cannot be written: the system's own sentence, with the path
        return _fail(str(error))
    except DivergedError as error:
        _fail(str(error))
        return NON_FINITE
    return status or DONE


def parse(values: flags.FlagValues, name: str, arguments: Sequence[str]) -> list[str]:
    """Reads the flags and returns what is none; a config file is Python and runs here, its overrides checked against
    its keys and types.
    """
    for argument in arguments:
        flag, _, path = argument.partition(":")[0].partition("=")
        if flag in ("--config", "--autoencoder") and not Path(path).is_file():
            raise UserError(f"no config file {path}; give the path of one, as in --config=configs/digits.py")
        if flag in ("--config", "--autoencoder"):
            _importable(Path(path).resolve().parent.parent)
    try:
        words = values([f"diffusion-jax {name}", *arguments])[1:]
        for flag in ("config", "autoencoder"):
            if flag in values and (given := values[flag].value) is not None:
                given.keys()  # what its loading raised is raised at the first access
    except (KeyError, AttributeError) as error:
        said, hint = _said(error)
        overridden = [key for key in (argument.partition("=")[0].partition(".")[2] for argument in arguments) if key]
        if unknown := [key for key in overridden if any(f"'{part}'" in said for part in key.split("."))]:
            raise UserError(f"unknown config key: {unknown[0]} {hint}".strip()) from error
        raise UserError(f"cannot read the config: {said} {hint}".strip()) from error
    except (OSError, TypeError, ValueError, ImportError, SyntaxError) as error:
        raise UserError(f"cannot read the config: {error}") from error
    return words


def _said(error: Exception) -> tuple[str, str]:
    """What ml_collections says of a key, without all its neighbours and an error's quotes; and its suggestion."""
    text = str(error.args[0] if error.args else error).replace("\\'", "'").replace("\\n", " ").strip('"')
    said, _, hint = text.partition("Did you mean")
    said = said.partition("Other fields present")[0].strip()
    return (said[1:] if said.count("'") % 2 else said), f"Did you mean{hint}".rstrip("'") if hint else ""


def _importable(folder: Path) -> None:
    """So that a config may begin with `from configs import digits`, which the console script would not find."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))  # last, where it hides nothing that is installed


def _local(flag: str, path: str) -> str:
    """The path that a file:// URL means; raises UserError for another, which pathlib would take for a local folder."""
    scheme, separator, rest = path.partition("://")
    if not separator:
        return path
    if scheme != "file" or not rest.startswith("/"):
        raise UserError(
            f"--{flag}={path} is no local path; give one, or file:///PATH: a bucket is mounted, by gcsfuse, or takes "
            "copies of a workdir, by --config.checkpoint.mirror"
        )
    return urllib.request.url2pathname(rest)


def _fail(message: str) -> int:
    print(f"diffusion-jax: {' '.join(message.split())}", file=sys.stderr)
    return BAD_INPUT
