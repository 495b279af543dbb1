"""The numbers of classes: their order, and the labels of one data set by the numbers of another's."""

import dataclasses
import difflib
import functools
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from diffusion_jax.data.example import Example, Source
from diffusion_jax.errors import UserError

NULL = "none"
"""What a user writes for the null class."""

_SHOWN = 12  # names in a sentence


def natural_order(names: Iterable[str]) -> tuple[str, ...]:
    """The distinct names in order, numbers in them by value: 1, 2, 10, and not 1, 10, 2."""
    return tuple(sorted(set(names), key=_natural))


def _natural(name: str) -> tuple[list[Any], str]:
    parts = re.split(r"([0-9]+)", name)  # text and digits in turns, so that like is compared with like
    digits = [part.lstrip("0") for part in parts[1::2]]
    parts[1::2] = [(len(part), part) for part in digits]
    return parts, name


def shown(names: Sequence[str]) -> str:
    """The names as a sentence lists them, the first dozen of many."""
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more:,} more" if more > 0 else "")


def find(name: str, names: Sequence[str]) -> int | None:
    """The number of the class of that name, in whatever Unicode normal form it is written; None where there is none."""
    if name in names:
        return names.index(name)
    composed = [unicodedata.normalize("NFC", each) for each in names]
    wanted = unicodedata.normalize("NFC", name)
    return composed.index(wanted) if wanted in composed else None


@dataclasses.dataclass(frozen=True, eq=False)
class Classes:
    """The classes that the labels of a model number."""

    count: int
    recorded: bool  # whether the names are kept with the model; else they are those of its training data
    read: Callable[[], tuple[str, ...] | None]

    @functools.cached_property
    def names(self) -> tuple[str, ...] | None:
        """The name of each, in order; None for classes that are numbers. Raises UserError where data cannot be read."""
        return self.read()

    def number(self, text: str) -> int | None:
        """The class that a user means, by its name or, where no name is a number, by its number; None for no class.

        Where names are not kept with the model, a number is one whatever the names.
        """
        names = self.names if self.recorded or not text.isdecimal() else None
        if names is not None and (found := find(text, names)) is not None:
            return found
        numbered = names is None or not any(name.isdecimal() for name in names)
        return int(text) if numbered and text.isdecimal() and int(text) < self.count else None

    def choices(self, text: str) -> str:
        """What a user who wrote text, which is no class, can choose from."""
        names = self.names if self.recorded or not text.isdecimal() else None
        if names is None or names == tuple(map(str, range(self.count))):
            return f"a class from 0 to {self.count - 1}"
        alike = difflib.get_close_matches(text, names, 1) if len(names) > _SHOWN else []
        return f"one of {shown(names)}" + (f" (did you mean {alike[0]}?)" if alike else "")

    def name(self, number: int) -> str:
        """The name of a class as far as it is kept with the model, else its number; of the null class none."""
        if number == self.count:
            return NULL
        names = self.names if self.recorded else None
        return str(number) if names is None else names[number]


def known(names: Sequence[str] | None, count: int) -> Classes:
    """Classes of these names."""
    return Classes(count, True, lambda: None if names is None else tuple(names))


@dataclasses.dataclass(frozen=True)
class Renumbered:
    """A source whose labels are the numbers of `class_names`."""

    source: Source
    class_names: tuple[str, ...]
    numbers: tuple[int, ...]  # of each class of the source

    @property
    def num_classes(self) -> int:
        """How many classes there are, whether the source has examples of them or not."""
        return len(self.class_names)

    @property
    def fingerprint(self) -> str:
        """The source's own, which says nothing of numbers."""
        return self.source.fingerprint

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Example:
        example = self.source[index]
        if "label" in example:
            example["label"] = self.numbers[example["label"]]
        return example


def renumbered(source: Source, names: Sequence[str] | None, count: int, what: str) -> Source:
    """The source with the labels of a model of count classes: numbers of names or, where None, those of its own.

    what names the source in errors. Raises UserError where the source has a class that is not among the model's.
    """
    own = source.class_names
    if own is None:
        if source.num_classes is not None and source.num_classes > count:
            raise UserError(
                f"{what} has labels up to {source.num_classes - 1}, and the model was trained on {count} classes, "
                f"0 to {count - 1}; leave the other images out"
            )
        return source
    if names is None:
        raise UserError(
            f"{what} has classes by name ({shown(own)}), and the model was trained on numbers, 0 to {count - 1}; "
            "give the images numbers as labels, in a metadata.jsonl"
        )
    found = [find(name, names) for name in own]
    if unknown := [name for name, number in zip(own, found, strict=True) if number is None]:
        raise UserError(
            f"{what} has {_classes(unknown)}, of which the model was not trained; it was trained on {shown(names)}; "
            "leave these images out, or train with them"
        )
    if own == tuple(names):
        return source
    return Renumbered(source, tuple(names), tuple(number for number in found if number is not None))


def _classes(names: Sequence[str]) -> str:
    return f"class{'es' if len(names) > 1 else ''} {shown(names)}"
