"""A survey of plain arrays, and the network that suits their shape: range, classes, values that are not finite."""

import dataclasses
import math
from collections.abc import Iterator
from typing import ClassVar, NamedTuple

import numpy as np

from diffusion_jax.data.array_file import ArrayFile
from diffusion_jax.data.example import Example, array_of
from diffusion_jax.errors import UserError
from diffusion_jax.modalities.array import Array
from diffusion_jax.runs.new.fitting import Fit, Machine, Process, UNet, batch_within, first_result, in_patches
from diffusion_jax.runs.new.survey import LOOKED_AT, PICTURED, LabelledData, Survey, inspect_examples

_READ = 2**28
"""The most values that are read."""

_PLACES = {"cpu": 1024, "other": 128 * 128}
"""The most places of the network's first level; with more, a first run takes hours."""

_ATTENDING = {"cpu": 256, "other": 1024}
"""The most places of the last level, which attend to each other."""

_ATTENDING_AT_ALL = 4096
"""... where the sides leave no choice."""

_LISTED = 8
"""The most channels with a line each."""

_PATCHES = (1, 2, 4, 8, 16)
_MOST_LEVELS = 4
_PADDED = 8  # what sides are advised to be multiples of


class _Statistics(NamedTuple):
    """Statistics [C] of the channels of one array, in float64."""

    least: np.ndarray
    largest: np.ndarray
    mean: np.ndarray
    variance: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArraySurvey(Survey):
    """The contents of a file of plain arrays, which have one shape. A number for each channel is of those looked at."""

    noun: ClassVar[str] = "arrays"

    shape: tuple[int, ...]  # of each, channels last
    channel_added: bool  # whether the file has no side of channels
    dtype: str  # in the file
    least: tuple[float, ...]
    largest: tuple[float, ...]
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    pictured: np.ndarray  # float32 [N, *S, C], in own units

    @classmethod
    def of(cls, opened: LabelledData) -> "ArraySurvey":
        """The survey of arrays.

        Raises UserError where arrays of their shape are not trained on, or a channel is the same everywhere.
        """
        kind, first = Array(), array_of(opened.data[0])
        kind.check_shape(first.shape)

        def decoded(example: Example) -> np.ndarray:
            return kind.fit(kind.decode(example, first.shape), first.shape)

        most = min(LOOKED_AT, max(_READ // first.size, PICTURED))
        looked = inspect_examples(opened, cls.noun, lambda example: _statistics(decoded(example)), most)
        least, largest, mean, variance = (np.stack(each) for each in zip(*looked.found, strict=True))  # [N, C]
        deviation = np.sqrt(variance.mean(axis=0) + mean.var(axis=0))
        if len(flat := np.flatnonzero(deviation == 0)):
            raise UserError(
                f"{opened.source}: channel {flat[0]} is {mean[0, flat[0]]:g} wherever it was looked at, so there is "
                "nothing to learn of it; leave it out"
            )
        return cls(
            **looked.common,
            shape=first.shape,
            channel_added=isinstance(opened.data, ArrayFile) and opened.data.adds_channel,
            dtype=str(first.dtype),
            least=_numbers(least.min(axis=0)),
            largest=_numbers(largest.max(axis=0)),
            mean=_numbers(mean.mean(axis=0)),
            deviation=_numbers(deviation),
            pictured=np.stack([decoded(example) for example in looked.spread(opened.data)]),
        )

    def rows(self) -> Iterator[tuple[str, str]]:
        """As `Survey`: shape, type, and the range of each channel."""
        yield "shape", f"{_sides(self.shape)} and {_channels(self.shape)}, {self.dtype}"
        numbers = list(zip(self.least, self.largest, self.mean, self.deviation, strict=True))
        for channel, (low, high, mean, deviation) in enumerate(numbers[:_LISTED]):
            yield f"channel {channel}", f"from {low:.4g} to {high:.4g}, {mean:.4g} +- {deviation:.4g}"
        if more := numbers[_LISTED:]:
            low, high = min(self.least[_LISTED:]), max(self.largest[_LISTED:])
            yield "", f"and {len(more)} more, from {low:.4g} to {high:.4g}"

    def fit(self, on: Machine) -> Fit:
        """As `Survey`: arrays keep their shape, so the network's patches and levels divide its sides.

        Raises UserError where none do that leave few enough places to attend to each other.
        """
        net, net_reason = self._network(on)
        places = math.prod(self.shape[:-1]) // net.patch ** (len(self.shape) - 1)
        if on.small:
            batch, steps = 64 if places <= 256 else 32 if places <= 1024 else 8, 1000
        else:
            halvings = math.ceil(math.log2(max(places / 4096, 1)))
            batch, steps = max(64 >> halvings, 1) * on.devices, 20_000
        batch = batch_within(batch, self.count, on)
        reasons = [f"{_sides(self.shape)} and {_channels(self.shape)}: the shape of the arrays, which are not resized"]
        if self.channel_added and len(self.shape) > 2:
            side, told = self.shape[-2], ",".join(map(str, self.shape[:-1]))
            reasons.append(
                f"the last side, {side}, is one of places; if it is of channels, look again with --shape={told}"
            )
        normal = (
            "each channel is trained on less its mean and divided by its deviation, and samples are in its own unit"
        )
        if self.broken:
            normal += f"; the numbers are of the {self.looked_at - len(self.broken)} that are finite"
        return Fit(
            source=self.source,
            shape=self.shape,
            axes="the sides, then the channels",
            net=net,
            process=Process(sampling=('config.sample.threshold = "none"  # the arrays have no bounds',)),
            # Training measures both over all of the data, but not over data with values that are not finite.
            modality=f"array(mean={self.mean}, deviation={self.deviation})" if self.broken else "",
            modality_comment="of each channel",
            corrupt_limit=self.corrupt_limit(),
            batch_size=batch,
            steps=steps,
            reasons=(*reasons, normal, net_reason, *first_result(self.noun, self.count, batch, steps)),
        )

    def tiles(self, fit: Fit) -> np.ndarray:
        """As `Survey`: in the model's units, so that channels of different units are seen on one scale."""
        kind = Array(self.mean, self.deviation)
        return kind.tiles(kind.to_model(self.pictured))

    def _network(self, on: Machine) -> tuple[UNet, str]:
        """(the network of the smallest patches and fewest levels that is quick enough, the reason)."""
        size = "cpu" if on.small else "other"
        fitting = [
            (patch, levels)
            for patch in _PATCHES
            for levels in (*range(2, _MOST_LEVELS + 1), 1)  # one level alone sees little of an array at once
            if all(side % (patch * 2 ** (levels - 1)) == 0 for side in self.shape[:-1])
        ]
        wanted = [each for each in fitting if self._within(each, _PLACES[size], _ATTENDING[size])]
        possible = [each for each in fitting if self._within(each, _PLACES["other"] * 16, _ATTENDING_AT_ALL)]
        padded = f"{_sides(self.shape, multiple=_PADDED)}, as by np.pad"
        if not possible:
            raise UserError(
                f"{self.source}: arrays of {_sides(self.shape)} are too large for a network, as few halvings divide "
                f"their sides; cut them, or pad them to {padded}, and look again"
            )
        patch, levels = (wanted or sorted(possible, key=self._work))[0]
        channels = 128 if not on.small else 32 if math.prod(self.shape[:-1]) <= 256 else 48
        if not on.small and patch == 1:
            channels = 64
        net = UNet(patch, channels, (1, *[2] * (levels - 1)), 1 if on.small else 2)
        reason = f"{in_patches(net, on)}; every side is divisible by {net.factor}"
        if levels == 1 or not wanted:
            reason += (
                f". Few halvings divide the sides: arrays padded to {padded}, train a quicker network that sees more"
            )
        return net, reason

    def _places(self, patch: int, levels: int) -> tuple[int, int]:
        """(places of the last level, of the first level) of a network."""
        rank, all_of_them = len(self.shape) - 1, math.prod(self.shape[:-1])
        return all_of_them // (patch * 2 ** (levels - 1)) ** rank, all_of_them // patch**rank

    def _work(self, net: tuple[int, int]) -> tuple[int, bool, int]:
        """What is to be small, the most important first; one level alone sees little of an array at once."""
        last, first = self._places(*net)
        return last, net[1] == 1, first

    def _within(self, net: tuple[int, int], first: int, last: int) -> bool:
        places = self._places(*net)
        return places[1] <= first and places[0] <= last


def _statistics(array: np.ndarray) -> _Statistics:
    values = array.reshape(-1, array.shape[-1]).astype(np.float64)
    return _Statistics(values.min(axis=0), values.max(axis=0), values.mean(axis=0), values.var(axis=0))


def _numbers(values: np.ndarray) -> tuple[float, ...]:
    """Values [C] with the digits of float32."""
    return tuple(float(f"{value:.7g}") for value in values)


def _sides(shape: tuple[int, ...], multiple: int = 1) -> str:
    """The sides of a shape, each rounded up to a multiple, as 16 x 24."""
    return " x ".join(str(-(-side // multiple) * multiple) for side in shape[:-1])


def _channels(shape: tuple[int, ...]) -> str:
    return f"{shape[-1]} channel{'s' if shape[-1] > 1 else ''}"
