"""The numbers of classes: their order, and the labels of one data set by the numbers of another's."""

import dataclasses
import difflib
import functools
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence

from diffusion_jax.data.example import Blocks, BytesRead, Example, Source, blocks_of, bytes_read_of, captions_of
from diffusion_jax.errors import UserError

NULL = "none"
"""The name of the null class in flags and arguments."""

_SHOWN = 12  # names in a sentence


def natural_order(names: Iterable[str]) -> tuple[str, ...]:
    """The distinct names in order, numbers in them by value: 1, 2, 10, and not 1, 10, 2."""
    return tuple(sorted(set(names), key=_natural))


def _natural(name: str) -> tuple[list[str | tuple[int, str]], str]:
    """The key by which names are sorted: text and numbers in turns, a number as (count of digits, digits)."""
    parts = re.split(r"([0-9]+)", name)
    digits = [part.lstrip("0") for part in parts]
    return [(len(digits[i]), digits[i]) if i % 2 else part for i, part in enumerate(parts)], name


def shown(names: Sequence[str]) -> str:
    """The names as a list in a sentence; of more than twelve the first twelve and how many more there are."""
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more:,} more" if more > 0 else "")


def find(name: str, names: Sequence[str]) -> int | None:
    """The number of the class called name, in any Unicode normal form; None where there is none."""
    if name in names:
        return names.index(name)
    composed = [unicodedata.normalize("NFC", each) for each in names]
    wanted = unicodedata.normalize("NFC", name)
    return composed.index(wanted) if wanted in composed else None


@dataclasses.dataclass(frozen=True, eq=False)
class Classes:
    """The classes of a model, by the numbers of its labels."""

    count: int
    recorded: bool  # whether the names are stored in the workdir; otherwise they are those of its training data
    read: Callable[[], tuple[str, ...] | None]

    @functools.cached_property
    def names(self) -> tuple[str, ...] | None:
        """The names in the order of labels; None for numbered classes. Raises UserError where data cannot be read."""
        return self.read()

    def number(self, text: str) -> int | None:
        """The label of the class with this name or, where no name is a number, with this number; None for no class.

        Where the workdir does not store names, a text of digits is always a number.
        """
        names = self.names if self.recorded or not text.isdecimal() else None
        if names is not None and (found := find(text, names)) is not None:
            return found
        numbered = names is None or not any(name.isdecimal() for name in names)
        return int(text) if numbered and text.isdecimal() and int(text) < self.count else None

    def choices(self, text: str) -> str:
        """The classes to choose from, as the end of an error about text, which is none of them."""
        names = self.names if self.recorded or not text.isdecimal() else None
        if names is None or names == tuple(map(str, range(self.count))):
            return f"a class from 0 to {self.count - 1}"
        near = difflib.get_close_matches(text, names, 1) if len(names) > _SHOWN else []
        return f"one of {shown(names)}" + (f" (did you mean {near[0]}?)" if near else "")

    def name(self, number: int) -> str:
        """The name of a class if the workdir stores it, otherwise its number; `NULL` for the null class."""
        if number == self.count:
            return NULL
        names = self.names if self.recorded else None
        return str(number) if names is None else names[number]


def counted(names: Sequence[str] | None, labels: Iterable[int] | None) -> int | None:
    """The number of classes of a source: of their names or, without names, one more than the largest label.

    None for a source without labels.
    """
    if names is not None:
        return len(names)
    largest = max(labels or (), default=None)
    return None if largest is None else largest + 1


def known(names: Sequence[str] | None, count: int) -> Classes:
    """The classes with these names, in the order of their labels; None for count classes without names."""
    return Classes(count, True, lambda: None if names is None else tuple(names))


@dataclasses.dataclass(frozen=True)
class Renumbered:
    """A source whose labels are the numbers of `class_names`."""

    source: Source
    class_names: tuple[str, ...]
    numbers: tuple[int, ...]  # of each class of the source

    @property
    def num_classes(self) -> int:
        """The number of classes, with those that the source has no example of."""
        return len(self.class_names)

    @property
    def fingerprint(self) -> str:
        """That of the source, which does not depend on the numbers of classes."""
        return self.source.fingerprint

    @property
    def blocks(self) -> Blocks | None:
        """Those of the source."""
        return blocks_of(self.source)

    @property
    def bytes_read(self) -> BytesRead | None:
        """That of the source."""
        return bytes_read_of(self.source)

    def read_captions(self) -> Iterator[str]:
        """Yields those of the source."""
        return captions_of(self.source, len(self))

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Example:
        example = self.source[index]
        if "label" in example:
            example["label"] = self.numbers[example["label"]]
        return example


def renumbered(source: Source, names: Sequence[str] | None, count: int, what: str) -> Source:
    """The source with the labels of a model of count classes, numbers of names; None: those of the source.

    what is the source's name in errors. Raises UserError where the source has a class that is not among the model's.
    """
    named = source.class_names
    if named is None:
        if source.num_classes is not None and source.num_classes > count:
            raise UserError(
                f"{what} has labels up to {source.num_classes - 1}, and the model was trained on {count} classes, "
                f"0 to {count - 1}; leave the other images out"
            )
        return source
    if names is None:
        raise UserError(
            f"{what} has classes by name ({shown(named)}), and the model was trained on numbers, 0 to {count - 1}; "
            "give the images numbers as labels, in a metadata.jsonl"
        )
    found = [find(name, names) for name in named]
    if unknown := [name for name, number in zip(named, found, strict=True) if number is None]:
        raise UserError(
            f"{what} has {_classes(unknown)}, of which the model was not trained; it was trained on {shown(names)}; "
            "leave these images out, or train with them"
        )
    if named == tuple(names):
        return source
    return Renumbered(source, tuple(names), tuple(number for number in found if number is not None))


def _classes(names: Sequence[str]) -> str:
    return f"class{'es' if len(names) > 1 else ''} {shown(names)}"
