"""Single musical notes with true classes and captions, computed from numbers; and a reader of such clips.

A clip holds one note of the C major scale from C4 to C5, in one of four timbres and three envelopes, at a random
loudness, phase and onset. A note's wave is a function of continuous time with all its harmonics below 0.45 of the
sampling rate, so that sampling it does not alias. Clips are float32 [L, 1] in [-1, 1].
"""

import dataclasses
import functools
import re
from typing import NamedTuple

import numpy as np

from diffusion_jax.data.example import Example
from diffusion_jax.errors import UserError

SCALE = {"C4": -9, "D4": -7, "E4": -5, "F4": -4, "G4": -2, "A4": 0, "B4": 2, "C5": 3}
"""{pitch: semitones from A4, which is 440 Hz}."""
TIMBRES = ("sine", "square", "saw", "plucked")
FADES = {"holds": np.inf, "fades slowly": 0.4, "fades fast": 0.15}
"""{envelope: the time in which the amplitude falls to 1/e, in parts of the clip}."""
CLASSES = tuple(f"{pitch} {timbre}" for pitch in SCALE for timbre in TIMBRES)
"""The names of the classes in the order of their labels: "A4 saw"."""
SPLITS = {"train": 0, "validation": 1}
"""{split: the seed of its notes}."""

VALIDATION_COUNT = 1000
BAND = 0.45
"""Harmonics lie below this part of the sampling rate; the envelope's sidebands fill what is left up to 0.5."""
LEAST_RATE = 3500
"""Hz; from there on, C5 has the third harmonic that tells the timbres apart."""
LEAST_SECONDS = 0.1

_ATTACK, _RELEASE = 0.015, 0.025  # seconds, of a raised cosine at the start of the note and at the end of the clip
_LATEST = 0.15  # onset, in parts of the clip
_LOUDNESS = (0.2, 0.4)  # root mean square before the envelope; the peak of a saw is 2.05 times that
_BLOCKS = 2  # of four Philox numbers, that each note owns

_TOLERANCE = 40.0  # cents between a pitch that is read and a note of the scale; neighbours are 100 apart
_MOST_OUTSIDE = 0.1  # of the power of a clip that may lie off the harmonics


@dataclasses.dataclass(frozen=True)
class Note:
    """The note of a clip, for every sampling rate."""

    pitch: str  # of SCALE
    timbre: str  # of TIMBRES
    fade: str  # of FADES
    loudness: float  # root mean square of the tone before the envelope
    phase: float  # of the period, in [0, 1)
    onset: float  # in parts of the clip

    @property
    def label(self) -> int:
        """The class, a place in CLASSES."""
        return CLASSES.index(f"{self.pitch} {self.timbre}")

    @property
    def caption(self) -> str:
        """The caption, such as "a plucked A4 that fades slowly"."""
        return f"a {self.timbre} {self.pitch} that {self.fade}"


def frequency(pitch: str) -> float:
    """The fundamental in Hz of a pitch of SCALE, in equal temperament."""
    return 440 * 2 ** (SCALE[pitch] / 12)


def note(split: str, index: int) -> Note:
    """The note at index of a split: a function of these two alone."""
    raw = np.random.Philox(key=_key(split), counter=_BLOCKS * index).random_raw(4 * _BLOCKS)
    draws = iter(((raw >> np.uint64(11)) * 2.0**-53).tolist())  # uniform in [0, 1)
    low, high = _LOUDNESS
    return Note(
        pitch=list(SCALE)[int(len(SCALE) * next(draws))],
        timbre=TIMBRES[int(len(TIMBRES) * next(draws))],
        fade=list(FADES)[int(len(FADES) * next(draws))],
        loudness=low + (high - low) * next(draws),
        phase=next(draws),
        onset=_LATEST * next(draws),
    )


@functools.cache
def _key(split: str) -> np.ndarray:
    return np.random.SeedSequence(SPLITS[split]).generate_state(2, np.uint64)


def amplitudes(timbre: str, count: int) -> np.ndarray:
    """The amplitudes [count] of a timbre's harmonics 1, 2, ..., of a root mean square of 1.

    A saw has 1/n, a square the odd ones of them. "plucked" is the velocity of a string plucked at a third of its
    length, sin(n pi / 3) / n, which has no third harmonic (Fletcher and Rossing, The Physics of Musical Instruments,
    section 2.6). So the presence of the second and the third harmonic distinguishes the four.
    """
    n = np.arange(1, count + 1)
    forms = {
        "sine": np.where(n == 1, 1.0, 0.0),
        "square": np.where(n % 2 == 1, 1 / n, 0.0),
        "saw": 1 / n,
        "plucked": np.sin(n * np.pi / 3) / n,
    }
    return forms[timbre] / np.sqrt((forms[timbre] ** 2).sum() / 2)


def wave(note: Note, times: np.ndarray, seconds: float, rate: int) -> np.ndarray:
    """The values of a note at times (seconds, any shape) in a clip of this length, with the harmonics fit for rate.

    times need not be those of the samples; at denser times the spectrum shows whether the wave is band-limited.
    """
    base = frequency(note.pitch)
    heights = amplitudes(note.timbre, int(BAND * rate / base))
    angle = 2 * np.pi * (base * times + note.phase)
    # A plucked string moves as a pulse wave, which is a sum of cosines; saw and square are sums of sines.
    turn = np.pi / 2 if note.timbre == "plucked" else 0.0
    tone = sum(height * np.sin(n * angle + turn) for n, height in enumerate(heights, 1))
    since, left = times - note.onset * seconds, seconds - times
    fade = np.exp(-np.clip(since, 0, None) / (FADES[note.fade] * seconds))
    return note.loudness * tone * fade * _rise(since / _ATTACK) * _rise(left / _RELEASE)


def _rise(u: np.ndarray) -> np.ndarray:
    """From 0 at u <= 0 to 1 at u >= 1 along half a cosine."""
    return 0.5 - 0.5 * np.cos(np.pi * np.clip(u, 0, 1))


@dataclasses.dataclass(frozen=True)
class NotesSource:
    """The notes of a split as clips of `length` samples at `rate` Hz, each computed when it is read."""

    rate: int
    length: int
    count: int
    split: str

    @property
    def modality(self) -> str:
        """The spec of clips at their rate."""
        return f"audio(rate={self.rate})"

    @property
    def num_classes(self) -> int:
        """The number of pitches times timbres."""
        return len(CLASSES)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes, such as "A4 saw"."""
        return CLASSES

    @property
    def fingerprint(self) -> str:
        """The numbers that the clips are computed from, and the version of the computation."""
        return f"notes/1 {self.split}, {self.count} clips of {self.length} samples at {self.rate} Hz"

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < self.count:
            raise IndexError(index)
        drawn = note(self.split, index)
        clip = wave(drawn, np.arange(self.length) / self.rate, self.length / self.rate, self.rate)
        return {
            "array": clip.astype(np.float32)[:, None],
            "name": f"note {index} of notes {self.split}",
            "label": drawn.label,
            "caption": drawn.caption,
        }


def notes_source(numbers: str, split: str = "train") -> NotesSource:
    """The notes of "RATE,SECONDS,COUNT": rate in Hz, length of a clip in seconds, number of clips to train on.

    Numbers may be missing at the end; the default is "4000,0.256,20000". The validation split always has
    VALIDATION_COUNT notes. Raises UserError
    for other text, a clip that is too short or no whole number of samples, and a rate under LEAST_RATE.
    """
    found = re.fullmatch(r"(?:(\d{1,6})(?:,(\d{0,4}\.?\d{1,6})(?:,(\d{1,9}))?)?)?", numbers, re.ASCII)
    if found is None:
        raise UserError(
            f"cannot read data source 'notes:{numbers}'; write notes:RATE,SECONDS,COUNT, as in notes:4000,0.256,20000"
        )
    rate, seconds, count = int(found[1] or 4000), float(found[2] or 0.256), int(found[3] or 20_000)
    length = round(rate * seconds)
    if rate < LEAST_RATE or seconds < LEAST_SECONDS or count < 1:
        raise UserError(
            f"notes need a rate of at least {LEAST_RATE} Hz, at least {LEAST_SECONDS} seconds and a count of at least "
            f"1; got {rate}, {seconds:g} and {count}"
        )
    if abs(length - rate * seconds) > 1e-6:
        raise UserError(
            f"notes of {seconds:g} seconds at {rate} Hz are {rate * seconds:g} samples, and a clip has a whole number; "
            f"{length / rate:.6g} seconds are {length}"
        )
    if split not in SPLITS:
        raise UserError(f"notes have no split {split!r}; choose from {', '.join(SPLITS)}")
    return NotesSource(rate, length, count if split == "train" else VALIDATION_COUNT, split)


class Heard(NamedTuple):
    """The pitch and the timbre that were read from a clip."""

    hertz: float  # of the strongest partial
    pitch: str | None  # None: none of SCALE is near
    timbre: str | None  # None: none of TIMBRES has such harmonics
    outside: float  # part of the power that lies off the harmonics


def read_note(clip: np.ndarray, rate: int) -> Heard:
    """Pitch and timbre of the note in clip [L, 1], from its spectrum alone.

    The pitch is the strongest partial, which is the fundamental in every timbre, and is read between the bins of a
    spectrum with a Hann window by the parabola through the three highest. The second and the third harmonic are present
    where they are within 6 dB of a half and of a third of it, and absent below a quarter of that. Between these levels,
    and where more than a tenth of the power is off the harmonics, the timbre is None.
    """
    x = clip[:, 0] - clip[:, 0].mean()
    size = 2 ** int(np.ceil(np.log2(8 * len(x))))
    spectrum = np.abs(np.fft.rfft(x * np.hanning(len(x)), size))
    if not np.isfinite(spectrum).all() or not spectrum.any():
        return Heard(0.0, None, None, 1.0)
    top = int(spectrum[1:-1].argmax()) + 1
    before, here, after = np.log(spectrum[top - 1 : top + 2] + 1e-30)
    curve = before - 2 * here + after
    base = (top + (0.5 * (before - after) / curve if curve < 0 else 0.0)) * rate / size

    hertz = np.arange(len(spectrum)) * rate / size
    near = 3 * rate / len(x)  # Hz: a partial is 4 / seconds wide under this window, and wider where it fades
    second, third = (spectrum[abs(hertz - n * base) < near].max(initial=0) / spectrum[top] for n in (2, 3))
    off = abs(hertz - base * np.clip(np.rint(hertz / base), 1, None)) >= near
    outside = float((spectrum[off] ** 2).sum() / (spectrum**2).sum())
    harmonics = (_present(second, 1 / 2), _present(third, 1 / 3))
    timbre = _BY_HARMONICS.get(harmonics) if outside <= _MOST_OUTSIDE else None
    cents = {pitch: abs(1200 * np.log2(base / frequency(pitch))) for pitch in SCALE}
    nearest = min(cents, key=cents.__getitem__)
    return Heard(base, nearest if cents[nearest] <= _TOLERANCE else None, timbre, outside)


_BY_HARMONICS: dict[tuple[bool | None, bool | None], str] = {
    (False, False): "sine",
    (False, True): "square",
    (True, True): "saw",
    (True, False): "plucked",
}
"""{whether the second and the third harmonic are there: timbre}."""


def _present(level: float, expected: float) -> bool | None:
    if level < expected / 4:
        return False
    return True if expected / 2 <= level <= expected * 2 else None


def matches(clip: np.ndarray, rate: int, name: str) -> bool:
    """Whether clip [L, 1] has the pitch and the timbre of a class, "A4 saw"; raises UserError for another name."""
    if name not in CLASSES:
        raise UserError(f"{name!r} is no class of notes, such as 'A4 saw'; they are {', '.join(CLASSES)}")
    heard = read_note(clip, rate)
    return [heard.pitch, heard.timbre] == name.split()
