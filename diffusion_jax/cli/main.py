"""`diffusion-jax COMMAND --flags`: finds the command, and turns what a user can mend into one sentence and a status.

With a GPU, commands add to XLA_FLAGS; with a GPU or TPU they keep compiled programs; they say so. Your own XLA_FLAGS
and JAX_COMPILATION_CACHE_DIR win, and DIFFUSION_JAX_XLA_FLAGS=none leaves XLA_FLAGS alone.
"""

import contextlib
import importlib
import select
import sys
import urllib.request
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags, logging
from ml_collections import ConfigDict

from diffusion_jax import __version__, config_file, extensions, ranges, shipped_configs
from diffusion_jax import config as configs
from diffusion_jax.errors import UserError, did_you_mean
from diffusion_jax.runs.help import choices

COMMANDS = {
    "new": "look at your own data, and write a config for it: --data=folder:PATH --out=my.py",
    "train": "train a config, or go on with it: --config=configs/digits.py --workdir=runs/digits",
    "sample": "draw samples from a workdir: --workdir=runs/digits --out=samples --num=64",
    "figures": "draw schedules, the forward process, a checkpoint's trajectory: --out=figures [--workdir=runs/digits]",
    "report": "one HTML page about a run, curves, grids and all: runs/digits --out=digits.html",
    "evaluate": "measure a checkpoint: --workdir=runs/digits --metrics=bits_per_dim,fd --features=runs/classifier",
    "evaluate compare": "two evaluations side by side, if they are alike: --a=A.json --b=B.json",
    "evaluate heatmap": "scores by checkpoint and sampling: --workdir=runs/digits --over=guidance=1,2,4 --out=heatmap",
    "evaluate reference": "statistics of images: --config=configs/digits.py --features=runs/classifier --out=a.npz",
    "precompute": "keep latents and text features of a config's data: --config=configs/shapes_latent.py --out=latents",
    "import": "published weights to a workdir: --from=FOLDER --workdir=runs/sd [--variant=fp16] [--part=autoencoder]",
    "export": "a workdir to a folder that diffusers loads: --workdir=runs/sd --out=FOLDER [--format=safetensors]",
    "plan": "say what a config takes on a machine, TPU or not: --config=configs/digits.py --topology=v5e:4x4",
    "launch": "start train on a cluster, or show how: slurm --nodes=2 --gpus=8 --time=24:00:00 --dry-run -- train ...",
    "sweep": "train a config many times, and rank: --config=configs/digits.py --sweep=FILE --workdir=runs/sweep",
    "configs": "the configs that come with the package: configs [show NAME | copy NAME]; any of them is --config=NAME",
    "keys": "what the keys of a config mean, or what one can choose from: keys [PATTERN] [--of=samplers]",
    "completion": "a script by which a shell completes commands, flags and keys: completion bash|zsh|fish",
    "doctor": "versions, devices, memory, flags, caches and disk of this machine, for bug reports",
    "checkpoint verify": "find what is damaged of a workdir's checkpoints: --workdir=runs/digits [--step=1000]",
}

MODULES = {
    "evaluate compare": "compare",
    "evaluate heatmap": "heatmap",
    "evaluate reference": "reference",
    "import": "import_",
}
"""Of commands whose module is not named as their first word."""

CONFIG_FLAGS = ("config", "autoencoder")
"""Flags whose value is a config file, or the name of one that comes with the package."""

DONE, BAD_INPUT, NON_FINITE = 0, 2, 3


def main(arguments: Sequence[str]) -> int:
    """Runs one command; returns its exit status: 0 done, 2 bad input, 3 a loss that is not finite or jumped; a command
    may have its own, which docs/faults.md lists.
    """
    name, *rest = arguments or ["--help"]
    if name == "--version":
        print(f"diffusion-jax {__version__}")
        return DONE
    if rest and f"{name} {rest[0]}" in COMMANDS:
        name, rest = f"{name} {rest[0]}", rest[1:]
    if name in ("--help", "-h", "help"):
        print(__doc__, *_lines(COMMANDS), sep="\n")
        return DONE
    if name not in COMMANDS:
        within = [command for command in COMMANDS if command.startswith(f"{name} ")]
        if within and {"--help", "-h"} & set(rest):
            print(*_lines(within), sep="\n")
            return DONE
        said = " ".join([name, *rest[:1]]) if within else name
        return _fail(f"unknown command {said!r}; choose from {', '.join(COMMANDS)}{did_you_mean(said, COMMANDS)}")
    command = importlib.import_module(f"diffusion_jax.cli.{MODULES.get(name, name.partition(' ')[0])}")
    logging.set_verbosity(logging.ERROR)  # orbax explains its defaults in warnings
    values = flags.FlagValues()
    flags.DEFINE_bool(
        "help",
        False,
        f"Show these flags; --help=LIST shows {', '.join(choices.LISTS)}.",
        short_name="h",
        flag_values=values,
    )
    flags.DEFINE_multi_string(
        "extension", [], "A package whose code dotted names of configs and flags may run.", flag_values=values
    )
    rest = shipped_configs.with_paths(rest, CONFIG_FLAGS)
    command.define(values, rest)
    try:
        if lists := [argument.partition("=")[2] for argument in rest if argument.startswith("--help=")]:
            print(*choices.lines_of(lists[0]), sep="\n")
            return DONE
        _trust(rest)
        if not flags.FLAGS.is_parsed():  # libraries read absl's own flags, which have no others than defaults here
            flags.FLAGS(["diffusion-jax"])
        if {"--help", "-h"} & set(rest):
            print(command.__doc__, values.main_module_help() or values.get_help(), sep="\n")
            return DONE
        given = {argument.lstrip("-").partition("=")[0] for argument in rest if argument.startswith("-")}
        _check_needed(name, command, given)  # before a config file is run, which takes seconds
        words = parse(values, name, rest)
        _check_needed(name, command, {flag for flag in values if values[flag].value})
        for flag in ("workdir", "out"):
            if flag in values and values[flag].value:
                values[flag].value = _local(flag, str(values[flag].value))
        if words and not getattr(command, "TAKES_WORDS", False):
            near = did_you_mean(f"{name} {words[0]}", [one for one in COMMANDS if one.startswith(f"{name} ")])
            raise UserError(f"unexpected argument {words[0]!r}; every option is written --flag=value{near}")
        status = command.run(values, words) if words else command.run(values)
    except (UserError, flags.Error) as error:
        return _fail(str(error))
    except BrokenPipeError as error:
        if not _output_is_closed():
            return _fail(str(error))
        raise
    except OSError as error:  # a full disk, a folder that cannot be written: the system's own sentence, with the path
        return _fail(str(error))
    except _diverged() as error:
        _fail(str(error))
        return NON_FINITE
    return status or DONE


def _lines(commands: Iterable[str]) -> list[str]:
    return [f"  {command:18} {COMMANDS[command]}" for command in commands]


def _diverged() -> tuple[type[Exception], ...]:
    """What a loss that is not finite raises; nothing where training was not imported, with all of jax."""
    guard = sys.modules.get("diffusion_jax.train.guard")
    return (guard.DivergedError,) if guard else ()


def _output_is_closed() -> bool:
    """Whether what reads the output or the errors is gone, as `| head` is after its lines."""
    pipes = select.poll()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, or no file
            pipes.register(stream.fileno(), 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in pipes.poll(0))


def parse(values: flags.FlagValues, name: str, arguments: Sequence[str]) -> list[str]:
    """Reads the flags and returns what is none; a config file is Python and runs here, its overrides checked against
    its keys and types, and every number against its range.
    """
    files = _config_files(arguments)
    for flag, path in files.items():
        if not Path(path).is_file():
            missing = f"no config file {path}" if path else f"--{flag} names no file"
            near = did_you_mean(path, shipped_configs.names())
            raise UserError(
                f"{missing}; give the path of one, as in --{flag}=configs/digits.py, or a name that `diffusion-jax "
                f"configs` lists{near}"
            )
        _importable(Path(path).resolve().parent.parent)
        _importable(shipped_configs.folder().parent)  # of which a copy may import others
    for flag in files:
        sys.modules.pop(f"{flag}_config", None)  # or the file would find what another one has defined
    try:
        words = values([f"diffusion-jax {name}", *arguments])[1:]
        for flag in files:
            if flag in values:
                values[flag].value = _config(values[flag].value, files[flag])
    except Exception as error:
        for path in files.values():
            if failed := config_file.failure(path, error):
                raise failed from error
        if isinstance(error, UserError | flags.Error):
            raise
        said = config_file.said(error)
        overridden = [key for key in (argument.partition("=")[0].partition(".")[2] for argument in arguments) if key]
        if unknown := [key for key in overridden if any(f"'{part}'" in said for part in key.split("."))]:
            near = did_you_mean(unknown[0], configs.flat(configs.base().to_dict()))
            raise UserError(f"unknown config key: {unknown[0]}{near}") from error
        raise UserError(f"cannot read the config: {said}") from error
    for flag in values:
        ranges.check_flag(name, flag, values[flag].value)
    return words


def _config_files(arguments: Sequence[str]) -> dict[str, str]:
    """{flag: path} of the config files that the arguments name; behind "--" stands another command's line."""
    files = {}
    for i, argument in enumerate(arguments[: arguments.index("--")] if "--" in arguments else arguments):
        flag, equals, path = argument.lstrip("-").partition("=")
        if argument.startswith("-") and flag in CONFIG_FLAGS:
            files[flag] = (path if equals else "".join(arguments[i + 1 : i + 2])).partition(":")[0]
    return files


def _config(given: Any, path: str) -> ConfigDict:
    """What get_config() of the file at path returned, checked; raises UserError where it is no config."""
    if given is not None:
        getattr(given, "keys", None)  # ml_collections raises here what reading the file raised
    if not isinstance(given, ConfigDict | Mapping):
        raise UserError(f"get_config() of {path} returned {given!r}; it returns a config, made by config.base()")
    return configs.check(given)


def _check_needed(name: str, command: Any, given: Collection[str]) -> None:
    """Raises UserError unless the flags in the command's NEEDS are among those given."""
    needs = getattr(command, "NEEDS", ())
    if any(need.partition("=")[0] not in given for need in needs):
        listed = [f"--{need}" for need in needs]
        raise UserError(f"{name} needs {', '.join(listed[:-1])}{' and ' if len(listed) > 1 else ''}{listed[-1]}")


def _trust(arguments: Sequence[str]) -> None:
    """Trusts the packages of --extension, before a config file is run that may name their code."""
    packages = [argument.partition("=")[2] for argument in arguments if argument.startswith("--extension=")]
    if packages:
        extensions.trust(*packages)
        _importable(Path.cwd())


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
