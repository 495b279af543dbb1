"""Prints a script by which a shell completes commands, flags, config keys and configs.

diffusion-jax completion bash >> ~/.bashrc                                        # or source <(...)
diffusion-jax completion zsh > ~/.zfunc/_diffusion-jax                            # a folder of fpath
diffusion-jax completion fish > ~/.config/fish/completions/diffusion-jax.fish

The script has the names of this version; print it again after an update. The keys of model are those that every network
family has.
"""

import importlib
from collections.abc import Sequence

from absl import flags

from diffusion_jax import shipped_configs
from diffusion_jax.cli import main
from diffusion_jax.config import flat
from diffusion_jax.errors import UserError, did_you_mean
from diffusion_jax.runs.help.choices import LISTS
from diffusion_jax.schema import SCHEMA

TAKES_WORDS = True


def define(values: flags.FlagValues, arguments: Sequence[str]) -> None:
    """No flags."""


def run(values: flags.FlagValues, words: Sequence[str] = ()) -> None:
    """Prints the script."""
    if len(words) != 1 or words[0] not in SHELLS:
        near = did_you_mean(words[0], SHELLS) if words else ""
        raise UserError(f"completion takes one of {', '.join(SHELLS)}; got {' '.join(words) or 'none'}{near}")
    print(SHELLS[words[0]](), end="")


def flags_of(command: str) -> list[str]:
    """The flags of a command as a user begins them: --overwrite, or --steps= where a value follows."""
    values = flags.FlagValues()
    flags.DEFINE_bool("help", False, "", flag_values=values)
    flags.DEFINE_multi_string("extension", [], "", flag_values=values)
    module = importlib.import_module(f"diffusion_jax.cli.{main.MODULES.get(command, command.partition(' ')[0])}")
    module.define(values, [])
    names = [f"--{name}" if values[name].boolean else f"--{name}=" for name in values]
    configs = [flag for flag in main.CONFIG_FLAGS if flag in values]
    return sorted(names + [f"--{flag}.{key}=" for flag in configs for key in flat(SCHEMA)])


def words_after(command: str) -> list[str]:
    """What follows the word of a command without dashes: the second word of others, or a choice."""
    own = {"completion": list(SHELLS), "configs": ["show", "copy"]}
    seconds = [other.partition(" ")[2] for other in main.COMMANDS if other.startswith(f"{command} ")]
    return own.get(command, []) + seconds


def _choices() -> dict[str, list[str]]:
    """{flag: what may follow its equals sign}, of flags whose values are no files."""
    return {"--of": list(LISTS), "--help": list(LISTS)} | {
        f"--{flag}": shipped_configs.names() for flag in main.CONFIG_FLAGS
    }


def _firsts() -> list[str]:
    return list(dict.fromkeys(command.partition(" ")[0] for command in main.COMMANDS))


def _bash() -> str:
    """For bash, which splits --flag=value into three words."""
    pairs = [command for command in main.COMMANDS if " " in command]
    options = {f"'{command}'": flags_of(command) for command in pairs} | {
        f"'{first}'*": words_after(first) + (flags_of(first) if first in main.COMMANDS else []) for first in _firsts()
    }
    cases = "\n".join(f"    {words}) options='{' '.join(found)}' ;;" for words, found in options.items())
    values = "\n".join(f"    {flag}) options='{' '.join(names)}' ;;" for flag, names in _choices().items())
    return f"""# diffusion-jax: completion for bash
_diffusion_jax() {{
  local cur="${{COMP_WORDS[COMP_CWORD]}}" flag="" options=""
  if [[ $cur == "=" ]]; then
    flag="${{COMP_WORDS[COMP_CWORD-1]}}"; cur=""
  elif [[ ${{COMP_WORDS[COMP_CWORD-1]}} == "=" ]]; then
    flag="${{COMP_WORDS[COMP_CWORD-2]}}"
  fi
  if [[ -n $flag ]]; then
    case "$flag" in
{values}
    esac
    COMPREPLY=($(compgen -W "$options" -- "$cur") $(compgen -f -- "$cur"))
    return
  fi
  if (( COMP_CWORD == 1 )); then
    COMPREPLY=($(compgen -W "{" ".join(_firsts())} --help --version" -- "$cur"))
    return
  fi
  case "${{COMP_WORDS[1]}}${{COMP_WORDS[2]:+ ${{COMP_WORDS[2]}}}}" in
{cases}
  esac
  COMPREPLY=($(compgen -W "$options" -- "$cur"))
  [[ $cur == -* ]] || COMPREPLY+=($(compgen -f -- "$cur"))
  [[ ${{#COMPREPLY[@]}} == 1 && ${{COMPREPLY[0]}} == *= ]] && compopt -o nospace 2>/dev/null
}}
complete -o filenames -F _diffusion_jax diffusion-jax
"""


def _zsh() -> str:
    """For zsh, by an array of words for each command."""
    cases = "\n".join(f"    ({first}) options=({' '.join(_all_of(first))}) ;;" for first in _firsts())
    values = "\n".join(f"    ({flag}=*) options=({' '.join(names)}) ;;" for flag, names in _choices().items())
    return f"""#compdef diffusion-jax
# diffusion-jax: completion for zsh
_diffusion_jax() {{
  local -a options
  if (( CURRENT == 2 )); then
    compadd -- {" ".join(_firsts())} --help --version
    return
  fi
  if [[ $words[CURRENT] == --*=* ]]; then
    case $words[CURRENT] in
{values}
    esac
    compset -P '*='
    compadd -a options
    _files
    return
  fi
  case $words[2] in
{cases}
  esac
  compadd -S '' -a options
  [[ $words[CURRENT] == -* ]] || _files
}}
if [[ $zsh_eval_context[-1] == loadautofunc ]]; then _diffusion_jax "$@"; else compdef _diffusion_jax diffusion-jax; fi
"""


def _fish() -> str:
    """For fish, a line for each command's words and flags."""
    lines = ["# diffusion-jax: completion for fish"]
    for first in _firsts():
        said = main.COMMANDS.get(first, "").partition(":")[0].replace("'", "\\'")
        lines.append(f"complete -c diffusion-jax -n __fish_use_subcommand -f -a {first} -d '{said}'")
    for first in _firsts():
        seen = f"-n '__fish_seen_subcommand_from {first}'"
        if words := words_after(first):
            lines.append(f"complete -c diffusion-jax {seen} -f -a '{' '.join(words)}'")
        for flag in _all_of(first):
            if flag.startswith("--"):
                name, equals, _ = flag[2:].partition("=")
                values = _choices().get(f"--{name}", [])
                chosen = f" -a '{' '.join(values)}'" if values else ""
                lines.append(f"complete -c diffusion-jax {seen} -l {name}{' -r' if equals else ''}{chosen}")
    return "\n".join(lines) + "\n"


def _all_of(first: str) -> list[str]:
    """The words and flags that may follow the first word of commands."""
    commands = [command for command in main.COMMANDS if command.partition(" ")[0] == first]
    found = words_after(first) + sorted({flag for command in commands for flag in flags_of(command)})
    return found


SHELLS = {"bash": _bash, "zsh": _zsh, "fish": _fish}
