"""The keys of a config and what can be chosen by name, as `diffusion-jax keys` has them."""

from collections.abc import Iterable

from diffusion_jax.nets.families import NETWORKS
from diffusion_jax.runs.help import choices
from diffusion_jax.runs.help.keys import Key, config_keys
from reference.markdown import code, plain, table


def every_key() -> str:
    """A table for each group of keys, and one of the options of each network family."""
    found = [key for key in config_keys() if not key.name.startswith("model.")]
    each = [{(key.name, repr(key.default), key.meaning) for key in config_keys(name)} for name in NETWORKS]
    shared = {name for name, _, _ in set.intersection(*each)}
    alone = [key for key in found if "." not in key.name]
    parts = ["## Keys on their own\n", _table(alone)]
    for group in dict.fromkeys(key.name.partition(".")[0] for key in found if "." in key.name):
        parts += [f"## {group}\n", _table(key for key in found if key.name.startswith(f"{group}."))]
    parts += [
        "## model, of every network\n",
        _table(key for key in config_keys() if key.name in shared and _of_model(key)),
    ]
    for name in NETWORKS:
        own = [key for key in config_keys(name) if _of_model(key) and key.name not in shared]
        parts += [f"## model, of {name}\n", plain(_meaning(name)) + "\n", _table(own)]
    return "\n".join(parts)


def every_list() -> str:
    """A section for each list, with a table of its entries."""
    parts = []
    for name, chosen in choices.LISTS.items():
        keys = " and ".join(code(f"config.{key}") for key in chosen.keys)
        parts += [f"## {name}\n", f"Chosen by {keys}.\n", table(("name", "what it is"), _entries(name))]
    return "\n".join(parts)


def _entries(name: str) -> Iterable[tuple[str, str]]:
    """(how a user writes it, its meaning) of each entry of a list."""
    entry, meaning = "", ""
    for line in [*list(choices.lines_of(name))[1:], "  "]:
        if line.startswith("   "):
            meaning += f" {line.strip()}"
            continue
        if entry:
            yield code(entry), plain(meaning)
        entry, meaning = line.strip(), ""


def _of_model(key: Key) -> bool:
    return key.name.startswith("model.")


def _table(keys: Iterable[Key]) -> str:
    rows = []
    for key in keys:
        lists = ", ".join(f"[{name}](choices.md#{name})" for name in key.lists)
        meaning = plain(key.meaning) + (f"; {lists}" if lists else "")
        rows.append((code(key.name), code(repr(key.default)), plain(key.allowed), meaning))
    return table(("key", "default", "allowed", "meaning"), rows)


def _meaning(network: str) -> str:
    return dict(_entries("networks"))[code(network)].replace("\\", "")
