"""What is asked of every kind of data for a first config: a table, a fit, a picture; and what all kinds have."""

import abc
import collections
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import numpy as np

from diffusion_jax.data import description
from diffusion_jax.data.classes import shown
from diffusion_jax.data.example import Example, Source
from diffusion_jax.errors import UserError
from diffusion_jax.runs.new.fitting import Fit, Machine

LOOKED_AT = 500
"""The most examples that are decoded; they are spread evenly over the data."""

PICTURED = 9

_BROKEN = 5  # named, at most

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Survey(abc.ABC):
    """The contents of a data set. A subclass adds what only its kind of data has."""

    noun: ClassVar[str]
    """The word for examples."""

    source: str  # as data.source names it
    caption: str  # as data.caption
    count: int
    looked_at: int
    classes: Mapping[str, int]  # {name: examples}, of those looked at; {}: none, or one alone
    num_classes: int
    captions: tuple[str, ...]  # some; (): none
    notes: tuple[str, ...]
    broken: tuple[str, ...]  # why each example that cannot be read cannot, of those looked at

    @abc.abstractmethod
    def rows(self) -> Iterator[tuple[str, str]]:
        """Yields (name, text) of the lines of the table that only this kind of data has."""

    @abc.abstractmethod
    def fit(self, on: Machine) -> Fit:
        """The choices for the data on a machine; raises UserError where no network suits the data."""

    @abc.abstractmethod
    def tiles(self, fit: Fit) -> np.ndarray:
        """Pictures uint8 [N, H, W, C] of at most PICTURED examples, as a network of the fit will see them."""

    def lines(self) -> Iterator[str]:
        """Yields the lines of a table for the user."""
        looked = "" if self.looked_at == self.count else f", {self.looked_at:,} looked at"
        yield f"{self.noun:12}{self.count:,}{looked}"
        for name, text in (*self.rows(), ("classes", counted(self.classes))):
            yield f"{name:12}{text}"
        first = f"; the first: {self.captions[0][:60]!r}" if self.captions else "none"
        yield f"captions    {first if not self.captions else f'for each {self.noun[:-1]}' + first}"
        yield f"broken      {len(self.broken) or 'none'}"
        yield from (f"            {reason}" for reason in self.broken[:_BROKEN])
        yield from (f"note        {note}" for note in self.notes)

    def corrupt_limit(self, unfit: int = 0) -> int:
        """`data.corrupt_limit`: an estimate of how many examples of all the data a run has to skip.

        It follows from the broken examples that were found, and from unfit further ones that training cannot use. Where
        some are unfit and only a part of the data was looked at, three standard deviations of the estimate are added,
        for a run that skips more than the limit ends.
        """
        found = len(self.broken) + unfit
        limit = -(-found * self.count // self.looked_at)
        if not unfit or self.looked_at == self.count:
            return limit
        part = found / self.looked_at
        spare = 3 * self.count * math.sqrt(part * (1 - part) / self.looked_at)
        return min(limit + math.ceil(spare), self.count)


@dataclasses.dataclass(frozen=True)
class LabelledData:
    """A data set with the labels and captions that it has."""

    source: str  # as data.source names it
    caption: str
    data: Source
    notes: tuple[str, ...]  # on its captions


class Inspection(NamedTuple, Generic[T]):
    """Examples that were looked at."""

    found: list[T]  # of each readable example
    places: list[int]  # of these in the source
    common: Mapping[str, Any]  # the fields of `Survey`

    def spread(self, data: Source, most: int = PICTURED) -> tuple[Example, ...]:
        """At most `most` of the readable examples, spread evenly over them."""
        chosen = description.spread(len(self.places), most)
        return tuple(data[self.places[i]] for i in chosen)


def inspect_examples(
    opened: LabelledData, noun: str, read: Callable[[Example], T], most: int = LOOKED_AT
) -> Inspection[T]:
    """Reads at most `most` examples, spread over the data, and gathers the fields that all surveys have.

    An example for which read raises UserError is broken. Raises UserError where all are.
    """
    data, notes = opened.data, list(opened.notes)
    places = description.places(data, most)
    labels = collections.Counter[int]()
    captions: list[str] = []
    broken: list[str] = []
    readable: list[int] = []
    found: list[T] = []
    for place in places:
        try:
            example = data[place]
            found.append(read(example))
        except UserError as error:
            broken.append(str(error))
            continue
        readable.append(place)
        if "label" in example:
            labels[example["label"]] += 1
        if example.get("caption", "").strip():
            captions.append(example["caption"].strip())
    if not found:
        raise UserError(f"{opened.source}: of {len(places)} {noun} none can be read: {broken[0]}")
    count = data.num_classes if labels and data.num_classes else 0
    names = data.class_names or [str(number) for number in range(count)]
    if count < 2:
        count, names = 0, []
    if captions and len(captions) < len(found):
        notes.append(f"{len(found) - len(captions)} captions are empty; they train as no caption")
    common = {
        "source": opened.source,
        "caption": opened.caption,
        "count": len(data),
        "looked_at": len(places),
        "classes": {name: labels[number] for number, name in enumerate(names)},
        "num_classes": count,
        "captions": tuple(captions),
        "notes": tuple(notes),
        "broken": tuple(broken),
    }
    return Inspection(found, readable, common)


def counted(counts: Mapping[str, int]) -> str:
    """Each of counts with its number; the name alone of a single one, "none" where there are none."""
    if not counts:
        return "none"
    if len(counts) == 1:
        return next(iter(counts))
    return shown([f"{name} ({count:,})" for name, count in counts.items()])
