"""The keys of a config, their types and defaults; a config as JSON.

`base()` is the whole schema: a config file starts from it and changes values. `experiment` turns it into objects.
"""

import copy
import json
from collections.abc import Iterator, Mapping
from functools import reduce
from typing import Any

from ml_collections import ConfigDict

from diffusion_jax import ranges
from diffusion_jax.earlier_keys import EARLIER, DataSection, renamed
from diffusion_jax.errors import UserError, did_you_mean
from diffusion_jax.schema import SCHEMA


def base(network: str = "unet") -> ConfigDict:
    """Every key with its default, locked: an unknown key or other type raises. `from_spec` reads those marked spec.

    The keys of `model` are the options of the network family, with its defaults: `base("dit")` is for another one.
    """
    from diffusion_jax.nets.families import family  # imports jax, which no word on the command line needs
    from diffusion_jax.nets.network import options

    values = copy.deepcopy(SCHEMA)
    values["model"] |= {"name": network, **options(family(network))}
    values["data"] = DataSection(values["data"])
    return ConfigDict(values).lock()


RENAMED: dict[str, dict[Any, Any]] = {"model.remat": {False: "none", True: "blocks"}}
"""{dotted key: {value of an earlier version: value of today}}, of keys whose type has changed."""


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{dotted key: value} of nested keys."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def to_json(config: ConfigDict) -> str:
    """The config as indented JSON."""
    return json.dumps(config.to_dict(), indent=2)


def from_json(text: str) -> ConfigDict:
    """The config that `to_json` wrote, with the types of `base()`: JSON's lists become tuples again.

    Keys that the version which wrote it did not have, of which `newer` tells, take what leaves everything as it was:
    their defaults, but for those in `EARLIER`; values that have another name now are in `RENAMED`. Ranges are not
    looked at: an earlier version took numbers that `check` refuses, and what it trained with them can still be sampled.
    """
    values = renamed(json.loads(text))
    defaults = base(_network(values)).to_dict()
    for key, value in EARLIER.items():
        _set(defaults, key, value)
    return _typed(_renamed(defaults, _completed(defaults, values)))


def newer(text: str) -> list[str]:
    """The keys of `base()` that the config in text lacks, dotted."""
    values = renamed(json.loads(text))
    return list(_missing(base(_network(values)).to_dict(), values))


def as_trained(config: ConfigDict, text: str) -> ConfigDict:
    """config for going on with the parameters of the run whose config is text.

    The keys in `EARLIER` that text lacks are as that run had them, and so is an open `data.modality`: its units are
    those that the parameters know.
    """
    values = config.to_dict()
    for key, value in earlier(text).items():
        _set(values, key, value)
    if not config.data.modality:
        values["data"]["modality"] = from_json(text).data.modality
    return check(values)


def earlier(text: str) -> dict[str, Any]:
    """{dotted key: value} of what the version that wrote the config in text did otherwise than today's defaults."""
    lacking = set(newer(text))
    return {key: value for key, value in EARLIER.items() if key in lacking}


def _set(values: dict[str, Any], key: str, value: Any) -> None:
    *sections, name = key.split(".")
    reduce(dict.__getitem__, sections, values)[name] = value


def _completed(defaults: dict[str, Any], values: Any) -> Any:
    if not isinstance(values, dict):
        return values
    sections = {k: _completed(v, values[k]) for k, v in defaults.items() if isinstance(v, dict) and k in values}
    return defaults | values | sections


def _renamed(defaults: dict[str, Any], values: Any) -> Any:
    """values, in place, with the names of today where `RENAMED` has one and another type than the default's stands."""
    read = flat(values) if isinstance(values, dict) else {}
    known = flat(defaults)
    for key, names in RENAMED.items():
        if key in read and key in known and type(read[key]) is not type(known[key]) and read[key] in names:
            _set(values, key, names[read[key]])
    return values


def _missing(defaults: dict[str, Any], values: Any, prefix: str = "") -> Iterator[str]:
    for key, default in defaults.items():
        if key not in values:
            yield f"{prefix}{key}"
        elif isinstance(default, dict) and isinstance(values[key], dict):
            yield from _missing(default, values[key], f"{prefix}{key}.")


def check(values: Any) -> ConfigDict:
    """values (a ConfigDict or nested dict) as a locked config: keys and types of `base()`, numbers in their `ranges`.

    Raises UserError that names the first key that is unknown, missing, of another type or out of its range.
    """
    from diffusion_jax.nets.families import family

    config = _typed(values)
    own = {f"model.{name}": allowed for name, allowed in family(config.model.name).ranges.items()}
    ranges.check_config(flat(config.to_dict()), own)
    return config


def _typed(values: Any) -> ConfigDict:
    """`check` without the ranges."""
    values = renamed(values.to_dict() if isinstance(values, ConfigDict) else values)
    config = base(_network(values))
    _fill(config, values, "config")
    return config


def _network(values: Any) -> str:
    """The network family of nested values; the default where they do not say it."""
    model = values.get("model") if isinstance(values, Mapping) else None
    name = model.get("name") if isinstance(model, Mapping) else None
    return name if isinstance(name, str) else "unet"


def _fill(config: ConfigDict, values: dict[str, Any], path: str) -> None:
    unknown, missing = set(values) - set(config), set(config) - set(values)
    if unknown:
        of = f" of the network {config.name}" if path == "config.model" else ""
        near = did_you_mean(min(unknown), config)
        raise UserError(f"unknown key {path}.{min(unknown)}{of}; {path} has {', '.join(config)}{near}")
    if missing:
        raise UserError(f"missing key {path}.{min(missing)}; start a config from diffusion_jax.config.base()")
    for key, value in values.items():
        default = config[key]
        if isinstance(default, ConfigDict):
            if not isinstance(value, dict):
                raise UserError(f"{path}.{key} is a section with {', '.join(default)}; got {value!r}")
            _fill(default, value, f"{path}.{key}")
            continue
        if isinstance(default, tuple) and isinstance(value, list):
            value = tuple(value)
        if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if type(value) is not type(default):
            raise UserError(f"{path}.{key} is of type {type(default).__name__}, as in {default!r}; got {value!r}")
        config[key] = value
