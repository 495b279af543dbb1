"""From encoded sound to clips, float32 [L, C] in [-1, 1], and back: per-example, pure.

soundfile and soxr, of the extra `audio`, are imported where a file is read or resampled; WAV is written without them.
"""

import io
import math
import wave
import zlib
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from diffusion_jax.errors import UserError

if TYPE_CHECKING:
    import soundfile

SUFFIXES = (".wav", ".flac", ".ogg", ".oga")
FORMATS = ("WAV", "WAVEX", "RF64", "FLAC", "OGG")
"""libsndfile's names of the formats of these files."""

CROPS = ("start", "random")

_MARGIN = 128  # samples at the lower rate, in which soxr's filter forgets where a piece was cut
_LOUDEST = 2**15  # of 16 bits


class SoundHeader(NamedTuple):
    """The header of a file of sound."""

    rate: int  # Hz
    frames: int  # samples a channel
    channels: int


def read_header(file: bytes | str, name: str) -> SoundHeader:
    """The header of a file of sound, its content or its path; raises UserError that names it where there is none."""
    with _opened(file, name) as sound:
        return SoundHeader(sound.samplerate, sound.frames, sound.channels)


def decode_clip(data: bytes, shape: tuple[int, ...], rate: int, *, crop: str = "start", name: str = "") -> np.ndarray:
    """A piece of a file of sound at rate Hz: float32 [L, C] in [-1, 1], shape being (L, C), C of 1 or 2.

    crop "start" takes the first L samples; "random" takes a place that is drawn from a checksum of the file's bytes, so
    that a file gives the same piece in every epoch and process. Another rate is resampled by soxr (its quality HQ), of
    the piece and what its filter reaches beyond. Mono is doubled to stereo, several channels are averaged to mono. What
    a codec or a file of floats has beyond [-1, 1] is clipped. Raises UserError that names the file where it is empty,
    shorter than L samples, broken, of another format, or not finite.
    """
    length, channels = shape
    with _opened(data, name) as sound:
        frames, file_rate = sound.frames, sound.samplerate
        if not frames:
            raise UserError(f"{name} is empty; leave it out")
        if frames * rate < length * file_rate:
            raise UserError(
                f"{name} is {frames / file_rate:.4g} s long, and a clip of {length} samples at {rate} Hz is "
                f"{length / rate:.4g} s; leave it out, or make data.shape shorter"
            )
        # Pieces begin where a sample of the file and one of the clip fall together.
        step, step_out = (each // math.gcd(file_rate, rate) for each in (file_rate, rate))
        needed = -(-length * file_rate // rate)
        begin = step * _place(data, (frames - needed) // step) if crop == "random" else 0
        margin = 0 if file_rate == rate else step * math.ceil(_MARGIN * max(file_rate / rate, 1) / step)
        before = min(begin, margin)
        count = min(before + needed + margin, frames - begin + before)
        samples = _read(sound, begin - before, count, name)
    if file_rate != rate:
        samples = _soxr().resample(samples, file_rate, rate, quality="HQ")[before // step * step_out :]
    samples = to_channels(samples[:length], channels, name)
    if not np.isfinite(samples).all():
        raise UserError(f"{name} has values that are NaN or infinite; leave it out, or mend it")
    return np.clip(samples, -1, 1)


def _place(data: bytes, last: int) -> int:
    """A number from 0 to last, the same for the same bytes."""
    return zlib.crc32(data) * (last + 1) >> 32


def _read(sound: "soundfile.SoundFile", start: int, count: int, name: str) -> np.ndarray:
    """float32 [count, C] from the frame start on."""
    try:
        sound.seek(start)
        samples = sound.read(count, dtype="float32", always_2d=True)
    except Exception as error:  # libsndfile's, whatever the format
        raise UserError(f"{name} can't be decoded ({error}); replace the file") from error
    if len(samples) < count:
        raise UserError(f"{name} breaks off after {start + len(samples):,} of its {sound.frames:,} samples; replace it")
    return samples


def to_channels(samples: np.ndarray, channels: int, name: str) -> np.ndarray:
    """samples [L, C'] with this many channels: mono doubled to stereo, or the mean of several.

    Raises UserError that names the clip where more than two channels were to become two.
    """
    count = samples.shape[1]
    if count == channels:
        return samples
    if channels == 1:
        return samples.mean(axis=1, keepdims=True, dtype=np.float32)
    if count == 1:
        return np.repeat(samples, channels, axis=1)
    raise UserError(
        f"{name} has {count} channels, which do not become {channels}; mix it down, or set data.shape=(L, 1)"
    )


def encode_wav(clip: np.ndarray, rate: int) -> bytes:
    """A clip [L, C] in [-1, 1] as WAV of 16-bit PCM: rint(32768 x), at most 32767; what lies outside is clipped.

    The inverse of reading by soundfile, v / 32768, but for a value of 1, which 16 bits do not have.
    """
    values = np.clip(np.rint(clip.astype(np.float64) * _LOUDEST), -_LOUDEST, _LOUDEST - 1).astype("<i2")
    file = io.BytesIO()
    with wave.open(file, "wb") as written:
        written.setnchannels(clip.shape[1])
        written.setsampwidth(2)
        written.setframerate(rate)
        written.writeframes(values.tobytes())
    return file.getvalue()


def _opened(file: bytes | str, name: str) -> "soundfile.SoundFile":
    """The open file, to be closed by `with`; raises UserError that names it where it is not sound of FORMATS."""
    library = _soundfile()
    try:
        sound = library.SoundFile(io.BytesIO(file) if isinstance(file, bytes) else file)
    except (library.SoundFileError, TypeError, OSError) as error:
        reason = getattr(error, "error_string", str(error)).rstrip(".")
        raise UserError(
            f"{name} is not a file of sound that can be read ({reason}); convert it to WAV or FLAC"
        ) from error
    if sound.format not in FORMATS:
        sound.close()
        raise UserError(f"{name} is of the format {sound.format}, not WAV, FLAC or OGG; convert it")
    return sound


def _soundfile() -> ModuleType:
    try:
        import soundfile
    except (ImportError, OSError):  # OSError: the package without the library libsndfile
        raise UserError("reading WAV, FLAC and OGG needs soundfile; pip install 'diffusion-jax[audio]'") from None
    return soundfile


def _soxr() -> ModuleType:
    try:
        import soxr
    except ImportError:
        raise UserError(
            "another sampling rate than the file's needs soxr; pip install 'diffusion-jax[audio]'"
        ) from None
    return soxr
