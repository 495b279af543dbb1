"""A survey of sounds, and the rate, length and network that suit them: lengths, rates, channels, level."""

import collections
import contextlib
import dataclasses
import math
import statistics
from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar, TypeVar

import numpy as np

from diffusion_jax import modalities
from diffusion_jax.data import description, sound
from diffusion_jax.data.audio_folder import path_and_rate
from diffusion_jax.data.example import Example, modality_of
from diffusion_jax.errors import UserError
from diffusion_jax.modalities.audio import KINDS, Audio
from diffusion_jax.runs.new.fitting import Fit, Machine, Process, UNet, batch_within, first_result, in_patches
from diffusion_jax.runs.new.survey import PICTURED, LabelledData, Survey, counted, inspect_examples

T = TypeVar("T")

_MOST = {"cpu": 4096, "other": 65_536}
"""The most samples of a clip; with more, a first run takes hours."""

_LEAST = 16  # samples of a clip

_LEAST_RATE = 8000  # Hz, a telephone's: speech can be understood

_HEARD = 30  # seconds of each file that are decoded

_ALIKE = 0.01  # of the power: two channels whose difference has less are one

_CROPS = {
    "start": "'random': another place of each than its start",
    "random": "'start': the start of each, not another place",
}


@dataclasses.dataclass(frozen=True)
class SoundFile:
    """One sound as it lies in its file."""

    rate: int  # Hz
    samples: int  # a channel
    channels: int
    power: float  # mean square of its first _HEARD seconds
    stereo: bool  # whether two channels differ

    @property
    def seconds(self) -> float:
        """The length."""
        return self.samples / self.rate


@dataclasses.dataclass(frozen=True, kw_only=True)
class SoundSurvey(Survey):
    """The contents of a data set of sounds."""

    noun: ClassVar[str] = "sounds"

    given_rate: int | None  # Hz, that source names or is computed at; None: still to be chosen
    files: tuple[SoundFile, ...]  # those looked at that can be read
    candidates: tuple[Example, ...]  # for the picture

    @classmethod
    def of(cls, opened: LabelledData) -> "SoundSurvey":
        """The survey of sounds; raises UserError where none can be read, or all are silent."""
        kind = modalities.modality(modality_of(opened.data))
        assert isinstance(kind, Audio)
        rate: int | None = kind.rate
        if opened.source.startswith("audio:"):
            rate = path_and_rate(opened.source.removeprefix("audio:"))[1]
        looked = inspect_examples(opened, cls.noun, lambda example: _sound_file(example, kind.rate))
        if not any(each.power for each in looked.found):
            raise UserError(f"{opened.source}: all {cls.noun} are silent, so there is nothing to learn of them")
        return cls(
            **looked.common,
            given_rate=rate,
            files=tuple(looked.found),
            candidates=looked.spread(opened.data, 2 * PICTURED),
        )

    @property
    def deviation(self) -> float:
        """The root of the mean square of the sounds, 1 at full scale."""
        return math.sqrt(statistics.fmean(each.power for each in self.files))

    def rows(self) -> Iterator[tuple[str, str]]:
        """As `Survey`: lengths, rates, channels and level."""
        seconds = sorted(each.seconds for each in self.files)
        middle = f", half of them up to {statistics.median(seconds):.3g} s" if seconds[0] < seconds[-1] else ""
        yield "lengths", _range(f"{seconds[0]:.3g}", f"{seconds[-1]:.3g}") + f" s{middle}"
        yield "rates", counted(_counts(f"{each.rate:,} Hz" for each in self.files))
        yield "channels", counted(_counts(KINDS.get(each.channels, f"{each.channels}") for each in self.files))
        yield "level", f"{20 * math.log10(self.deviation):.0f} dB of full scale, a deviation of {self.deviation:.2g}"

    def fit(self, on: Machine) -> Fit:
        """As `Survey`: the highest rate at which a clip is short enough for a first run, and the network for it."""
        most = _MOST["cpu" if on.small else "other"]
        seconds = _common_length([each.seconds for each in self.files])
        rate, rate_reason = self._rate(seconds, most, on)
        wanted = min(int(seconds * rate + 1e-6), most)
        if wanted < _LEAST:
            raise UserError(
                f"{self.source}: most {self.noun} have {wanted} samples at {rate:,} Hz, and a clip has at least "
                f"{_LEAST}; give longer ones"
            )
        net = _network(wanted, on)
        length = wanted // net.factor * net.factor
        channels = 2 if self._stereo() else 1
        crop = "random" if statistics.median(each.seconds for each in self.files) * rate > 2 * length else "start"
        short = sum(each.samples * rate < length * each.rate for each in self.files)  # corrupt examples in training
        batch, steps = ((32 if length <= 2048 else 16), 4000) if on.small else (64 * on.devices, 50_000)
        batch = batch_within(batch, self.count, on)
        deviation = float(f"{self.deviation:.2g}")
        process, loudest = _process(deviation, length)
        return Fit(
            source=self._source_at(rate),
            shape=(length, channels),
            axes="samples, channels",
            net=net,
            options="scale_shift=True",
            learning_rate=2e-3,
            process=process,
            modality=f"audio(rate={rate}, crop={crop!r})",
            modality_comment=_CROPS[crop],
            corrupt_limit=self.corrupt_limit(short),
            corrupt="unreadable or short",
            batch_size=batch,
            steps=steps,
            reasons=(
                f"{rate:,} Hz: {rate_reason}",
                f"{length:,} samples, {length / rate:.3g} s: {self._length_reason(length, rate, most, short)}",
                f"{KINDS[channels]}: {self._channels_reason(channels)}",
                f"noise in units of the deviation, {deviation:g}, up to {loudest:.3g}, which hides a tone that sounds "
                f"for all of the {length:,} samples",
                f"{in_patches(net, on)}; the samples are divisible by {net.factor}",
                *first_result(self.noun, self.count, batch, steps),
            ),
        )

    def tiles(self, fit: Fit) -> np.ndarray:
        """As `Survey`: waveforms and spectrograms of clips at the rate; sounds that are too short are left out."""
        kind = modalities.modality(fit.modality)
        clips = []
        for example in self.candidates:
            with contextlib.suppress(UserError):
                clips.append(kind.decode(example, fit.shape))
        return kind.tiles(np.stack([clips[i] for i in description.spread(len(clips), PICTURED)]))

    def _source_at(self, rate: int) -> str:
        name, _, spec = self.source.partition(":")
        return f"audio:{path_and_rate(spec)[0]}@{rate}" if name == "audio" else self.source

    def _rate(self, seconds: float, most: int, on: Machine) -> tuple[int, str]:
        """(rate in Hz at which `seconds` are at most `most` samples, if it is high enough; the reason)."""
        if self.given_rate is not None:
            return self.given_rate, f"as {self.source} says"
        rates = _counts(each.rate for each in self.files)
        common = next(iter(rates))
        parts = [k for k in range(1, common // _LEAST_RATE + 1) if common % k == 0] or [1]  # exact ratios
        part = next((k for k in parts if seconds * common / k <= most), parts[-1])
        reason = f"the rate of {'all' if len(rates) == 1 else 'most'} {self.noun}"
        if part > 1:
            reason += (
                f", {common:,} Hz, divided by {part}: clips of at most {most:,} samples suit {on.words} for a first "
                f"run, and frequencies above {common // part // 2:,} Hz are lost"
            )
        return common // part, reason + ("; the others are resampled too" if len(rates) > 1 else "")

    def _length_reason(self, length: int, rate: int, most: int, short: int) -> str:
        """Why clips have this length."""
        seconds = sorted(each.seconds for each in self.files)
        if seconds[-1] * rate < length + 1:
            return f"all {self.noun} are this long"
        if 2 * length > most and seconds[0] * rate > most:
            return f"about the {most:,} samples that a first run takes, and all {self.noun} are longer"
        if short:
            return f"nearly all {self.noun} are as long; {short:,} of {len(seconds):,} are shorter and are left out"
        return f"about the length of the shortest, {seconds[0]:.3g} s"

    def _stereo(self) -> bool:
        """Whether most sounds have two channels that differ, and none has more."""
        stereo = sum(each.stereo for each in self.files)
        return stereo > len(self.files) / 2 and all(each.channels <= 2 for each in self.files)

    def _channels_reason(self, channels: int) -> str:
        kinds = sorted({each.channels for each in self.files})
        if channels == 2:
            return "most have two channels that differ" + ("; mono is doubled" if 1 in kinds else "")
        if kinds == [1]:
            return f"as all {self.noun} are"
        return "the mean of the channels, which are alike in most" if 2 in kinds else "the mean of the channels"


def _sound_file(example: Example, rate: int) -> SoundFile:
    """What example is; rate in Hz is that of an array. Raises UserError where it cannot be decoded."""
    if "audio" in example:
        header = sound.read_header(example["audio"], example["name"])
        rate, length, channels = header.rate, header.frames, header.channels
        first = min(length, _HEARD * rate)
        samples = sound.decode_clip(example["audio"], (first, channels), rate, name=example["name"])
    else:
        samples = Audio(rate).decode(example, example["array"].shape)
        length, channels = samples.shape
    power = float(np.square(samples, dtype=np.float64).mean())
    apart = samples[:, 0] - samples[:, -1]
    stereo = channels == 2 and float(np.square(apart, dtype=np.float64).mean()) > _ALIKE * power
    return SoundFile(rate, length, channels, power, stereo)


def _common_length(seconds: Sequence[float]) -> float:
    """The length that nine of ten sounds have, or that of the shortest where it is not much less."""
    ordered = sorted(seconds)
    most_have = ordered[len(ordered) // 10]
    return ordered[0] if ordered[0] >= 0.75 * most_have else most_have


def _network(length: int, on: Machine) -> UNet:
    """A U-Net for clips of about length samples: patches keep its first level short, halvings the attending last."""
    first, last, most = (128, 32, 16) if on.small else (4096, 256, 16)
    patch = 1 if length < 2 * first else min(2 ** int(math.log2(length / first)), most)
    levels = 1
    while length // (patch * 2 ** (levels - 1)) > last and levels < 5:
        levels += 1
    channels = 128 if not on.small else 32 if length <= 2048 else 48
    return UNet(patch, channels, (1, *[2] * (levels - 1)), 1 if on.small else 2)


def _process(deviation: float, length: int) -> tuple[Process, float]:
    """(EDM's noise in units of the deviation, its highest level).

    At that level a tone that sounds for the whole clip is hidden. Of a tone of amplitude a in L samples, the Fourier
    transform has the power (a L / 2)^2, and of noise sigma^2 L. With a^2 = 2 deviation^2 they are equal at sigma =
    deviation sqrt(L / 2); the highest level is twice that, or 80, EDM's.
    """
    mean, highest = math.log(deviation) + 0.2, min(deviation * math.sqrt(2 * length), 80.0)
    process = Process(
        training=(
            'config.schedule = "edm"',
            f'config.prediction = "edm(sigma_data={deviation:g})"',
            f'config.times = "log_normal(mean={mean:.2f}, std=1.6)"',
            f'config.weighting = "edm(sigma_data={deviation:g})"',
        ),
        sampler="dpmpp_2m",
        steps=25,
        sampling=(f'config.sample.grid = "karras(rho=7.0, sigma_min=0.002, sigma_max={highest:.3g})"',),
    )
    return process, highest


def _counts(values: Iterable[T]) -> dict[T, int]:
    """{value: how often it is among values}, the commonest first."""
    return dict(collections.Counter(values).most_common())


def _range(low: str, high: str) -> str:
    return low if low == high else f"{low} to {high}"
