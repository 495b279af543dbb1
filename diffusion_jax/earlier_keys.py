"""Config keys of earlier versions and today's in their place, so that old configs and workdirs can be read."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

EARLIER: dict[str, Any] = {"level_scale": 1.0, "data.modality": "image"}
"""{dotted key: value} that a config of an earlier version means where it lacks the key. Others mean their default."""

SIDES = ("height", "width", "channels")
"""Keys of `data` that `data.shape` replaced in 0.2, in the order of that tuple."""

_DEFAULT_SIDES = (8, 8, 1)
"""Their defaults, for the keys that an earlier config file leaves out."""


class DataSection(ConfigDict):
    """The section `data` of a config, which also has the earlier keys of SIDES: each is an entry of `shape`.

    A config file of an earlier version that sets `config.data.height = 32` sets the first number of `shape`; the
    numbers that it leaves out are the defaults of that version.
    """

    def __getitem__(self, key: str) -> Any:
        if key in SIDES and "shape" in self.keys():
            return self._sides()[SIDES.index(key)]
        return super().__getitem__(key)

    def __setitem__(self, key: str, value: Any) -> None:
        if key not in SIDES or "shape" not in self.keys():
            super().__setitem__(key, value)
            return
        if type(value) is not int:
            raise TypeError(f"data.{key}, a part of data.shape, is of type int, as in 32; got {value!r}")
        sides = list(self._sides())
        sides[SIDES.index(key)] = value
        super().__setitem__("shape", tuple(sides))

    def __setattr__(self, key: str, value: Any) -> None:
        if key in SIDES and "shape" in self.keys():
            self[key] = value
        else:
            super().__setattr__(key, value)

    def get_type(self, key: str) -> type:
        """The type of the values of a key."""
        return int if key in SIDES else super().get_type(key)

    def _sides(self) -> tuple[int, ...]:
        shape = super().__getitem__("shape")
        return tuple(shape) if len(shape) == len(SIDES) else _DEFAULT_SIDES


def renamed(values: Any) -> Any:
    """The nested values of a config with today's keys in place of earlier ones; other values unchanged."""
    if not isinstance(values, Mapping):
        return values
    data = values.get("data")
    if not isinstance(data, Mapping) or "shape" in data or not set(SIDES) & set(data):
        return values
    sides = tuple(data.get(key, default) for key, default in zip(SIDES, _DEFAULT_SIDES, strict=True))
    rest = {key: value for key, value in data.items() if key not in SIDES}
    return {**values, "data": {**rest, "shape": sides}}
