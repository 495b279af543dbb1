"""Sound: clips [L, C] of one sampling rate, mono or stereo, in [-1, 1] for files, players and the network."""

import collections
import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from diffusion_jax.data import sound
from diffusion_jax.data.classes import shown
from diffusion_jax.data.description import DECIDING, examples_of
from diffusion_jax.data.example import Example, Source
from diffusion_jax.errors import UserError
from diffusion_jax.modalities.modality import Modality
from diffusion_jax.report import pictures, players, spectrogram

_PLAYED = 4  # clips in TensorBoard

KINDS = {1: "mono", 2: "stereo"}
"""{channels of a clip: their word}."""


@dataclasses.dataclass(frozen=True)
class Audio(Modality):
    """Clips of sound at a sampling rate in Hz; WAV, FLAC and OGG in, WAV of 16 bits out.

    crop is the part that is taken of a longer file: its "start", or a "random" place that is the same in every epoch.
    """

    rate: int
    crop: str = "start"

    dtype: ClassVar[np.dtype] = np.dtype(np.float32)
    suffix: ClassVar[str] = ".wav"
    bounds: ClassVar[tuple[float, float]] = (-1.0, 1.0)
    noun: ClassVar[str] = "clips"

    def __post_init__(self) -> None:
        if self.rate < 1:
            raise UserError(f"modality audio: rate is in Hz, at least 1; got {self.rate}")
        if self.crop not in sound.CROPS:
            raise UserError(f"modality audio: crop is {' or '.join(sound.CROPS)}; got {self.crop!r}")

    @property
    def places_a_unit(self) -> float:
        """The rate, since `sample --paint` takes seconds."""
        return float(self.rate)

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raises UserError unless shape is (samples, channels), of 1 or 2 channels."""
        if len(shape) != 2 or shape[-1] not in KINDS:
            raise UserError(f"data.shape={shape} of sound is (samples, channels), with 1 (mono) or 2 (stereo) channels")

    def decode(self, example: Example, shape: tuple[int, ...]) -> np.ndarray:
        """The clip of an example, float32 [L, C] in [-1, 1], of a file resampled to the rate (`sound.decode_clip`).

        An array is expected at the rate. Raises UserError that names an example that is shorter or cannot be read.
        """
        name = example["name"]
        if "audio" in example:
            return sound.decode_clip(example["audio"], shape, self.rate, crop=self.crop, name=name)
        if "array" not in example:
            raise UserError(f"{name} has no sound; set data.modality to what the data holds")
        clip = np.asarray(example["array"], np.float32)
        if clip.ndim != 2 or len(clip) < shape[0]:
            raise UserError(f"{name} has the shape {clip.shape}; a clip is at least {shape[0]} samples and channels")
        if not abs(clip).max(initial=0) <= 1:
            raise UserError(f"{name} has values outside of [-1, 1], or NaN; scale it")
        return sound.to_channels(clip[: shape[0]], shape[1], name)

    def read(self, path: Path, shape: tuple[int, ...]) -> np.ndarray:
        """The start of a file of sound, float32 [L', C]: of L samples, or all of a shorter one."""
        length, channels = shape
        header = sound.read_header(str(path), str(path))
        length = max(min(length, header.frames * self.rate // header.rate), 1)
        return sound.decode_clip(path.read_bytes(), (length, channels), self.rate, name=str(path))

    def from_model(self, x: np.ndarray) -> np.ndarray:
        """x [N, L, C] clipped to [-1, 1]; prints how many values were. Raises UserError for NaN and infinities."""
        pictures.check_finite(x)
        outside = abs(x) > 1
        if outside.any():
            clips = outside.reshape(len(x), -1).any(axis=1).sum()
            print(
                f"diffusion-jax: {outside.sum():,} samples ({outside.mean():.2%}) of {clips:,} clips lay outside of "
                "[-1, 1] and were clipped",
                file=sys.stderr,
                flush=True,
            )
        return np.clip(x, -1, 1).astype(np.float32)

    def measured(self, source: Source, shape: tuple[int, ...]) -> str:
        """The spec itself, which has no numbers of the data."""
        return f"audio(rate={self.rate}, crop={self.crop!r})"

    def shape_of(self, source: Source) -> tuple[int, ...]:
        """(samples, channels) that all clips have at the rate: of all, or of 1,024 spread evenly over the data.

        The channels are 2 where a clip has two. Raises UserError that lists the lengths where they differ.
        """
        sizes = [size for example in examples_of(source, DECIDING) if (size := self._size(example)) is not None]
        if not sizes:
            raise UserError(f"none of the {self.noun} can be read, so data.shape cannot be taken from them")
        counts = collections.Counter(length for _, length, _ in sizes)
        if len(counts) > 1:
            listed = [f"{length / self.rate:.4g} s ({count:,})" for length, count in counts.most_common()]
            least = min(counts)
            raise UserError(
                f"the {self.noun} have {len(counts):,} lengths: {shown(listed)}; set data.shape=(SAMPLES, CHANNELS) "
                f"to crop them: ({least}, {self._channels(sizes)}) is the shortest, {least / self.rate:.4g} s"
            )
        return next(iter(counts)), self._channels(sizes)

    def _channels(self, sizes: Sequence[tuple[int, int, int]]) -> int:
        return min(max(channels for _, _, channels in sizes), 2)

    def _size(self, example: Example) -> tuple[int, int, int] | None:
        """(the rate of an example, its length at `self.rate`, its channels); None where it cannot be read."""
        if "array" in example:
            return self.rate, *example["array"].shape
        try:
            header = sound.read_header(example["audio"], example["name"])
        except UserError:  # a corrupt example in training
            return None
        return header.rate, header.frames * self.rate // header.rate, header.channels

    def description(self, source: Source, examples: Sequence[Example], shape: tuple[int, ...]) -> str:
        """A sentence with number, lengths, rates and channels, from examples, and how they become clips."""
        length, channels = shape
        found = [size for example in examples if (size := self._size(example)) is not None]
        count = f"{len(source):,} {self.noun}"
        if not found:
            return f"{count}, of which none of {len(examples)} could be read"
        rates, lengths, kinds = (sorted({size[i] for size in found}) for i in range(3))
        looked = "" if len(found) == len(source) else f" (by {len(found)} of them)"
        seconds = _range([f"{value / self.rate:.4g}" for value in lengths])
        done = []
        if rates != [self.rate]:
            done.append(f"resampled to {self.rate} Hz")
        if channels == 1 and kinds != [1]:
            done.append("channels averaged to mono")
        if channels == 2 and 1 in kinds:
            done.append("mono doubled to stereo")
        if lengths[-1] > length:
            where = "the first" if self.crop == "start" else "one place, the same in every epoch, of"
            done.append(f"{where} {length / self.rate:.4g} s" + (" of each" if self.crop == "start" else " length"))
        if short := sum(size[1] < length for size in found):
            done.append(f"{short} of {len(found)} too short for {length / self.rate:.4g} s")
        kind = " and ".join(KINDS.get(kind, f"{kind} channels") for kind in kinds)
        hertz = _range([f"{rate}" for rate in rates])
        return f"{count} of {seconds} s, {hertz} Hz, {kind}{looked}: {', '.join(done) or 'as they are'}"

    def tiles(self, arrays: np.ndarray) -> np.ndarray:
        """Waveform and spectrogram with axes, RGB."""
        return spectrogram.spectrograms(arrays, self.rate)

    def encode(self, array: np.ndarray) -> bytes:
        """A WAV of 16-bit PCM."""
        return sound.encode_wav(array, self.rate)

    def sounds(self, arrays: np.ndarray) -> list[bytes]:
        """The first four clips."""
        return [self.encode(clip) for clip in arrays[:_PLAYED]]

    def pages(self, arrays: np.ndarray, names: Sequence[str]) -> Mapping[str, bytes]:
        """index.html, with players of the first clips, as many as `players.MOST_BYTES` hold.

        A name is the class or the prompt of a clip; "" for neither.
        """
        size = 2 * arrays[0].size + 44  # bytes of a WAV
        count = players.shown_count([size] * len(arrays))
        each = []
        for i, (clip, tile) in enumerate(zip(arrays[:count], self.tiles(arrays[:count]), strict=True)):
            title = f"{i:06d}{self.suffix}" + (f" · {names[i]}" if names[i] else "")
            each.append(players.Player(title, self.encode(clip), pictures.encode_png(tile)))
        seconds = arrays.shape[1] / self.rate
        line = f"{len(arrays):,} clips of {seconds:.4g} s at {self.rate} Hz, {KINDS[arrays.shape[2]]}."
        if count < len(arrays):
            line += f" The first {count:,} are here; the others lie beside this page."
        return {"index.html": players.players_page(each, "Samples", line)}


def _range(values: Sequence[str]) -> str:
    return values[0] if values[0] == values[-1] else f"{values[0]} to {values[-1]}"
