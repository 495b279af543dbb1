"""Files of sound: decoding, resampling against a float64 re-derivation, crops, channels, WAV out and in again."""

import builtins
import io
import wave

import numpy as np
import pytest
import scipy.signal
import soundfile

from diffusion_jax.data import sound
from diffusion_jax.errors import UserError


def written(samples, rate, kind="WAV", subtype=None):
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kind, subtype=subtype)
    return file.getvalue()


def tones(rate, seconds, hertz):
    times = np.arange(round(rate * seconds)) / rate
    return sum(np.sin(2 * np.pi * f * times + i) for i, f in enumerate(hertz))[:, None] / len(hertz)


def noise(length, channels=1, seed=0):
    return np.random.default_rng(seed).uniform(-0.9, 0.9, (length, channels))


@pytest.mark.parametrize(
    ("kind", "subtype", "tolerance"),
    [
        ("WAV", "PCM_16", 2**-15),
        ("WAV", "FLOAT", 1e-7),
        ("FLAC", "PCM_24", 2**-23),
        ("OGG", "VORBIS", 0.05),
    ],
)
@pytest.mark.parametrize("channels", [1, 2])
def test_formats_are_read(kind, subtype, tolerance, channels):
    samples = np.repeat(0.5 * tones(8000, 0.5, [200, 331]), channels, axis=1)
    clip = sound.decode_clip(written(samples, 8000, kind, subtype), (4000, channels), 8000)
    assert (clip.shape, clip.dtype) == ((4000, channels), np.float32)
    np.testing.assert_allclose(clip, samples, atol=tolerance)


@pytest.mark.parametrize(("own", "rate"), [(44100, 16000), (8000, 44100), (48000, 16000), (11025, 8000)])
def test_resampling_keeps_what_both_rates_hold(own, rate):
    """Tones below half of both rates are, away from the ends, the same tones sampled at the other rate."""
    hertz = [110.0, 997.0, 0.4 * min(own, rate)]
    clip = sound.decode_clip(written(tones(own, 1.0, hertz), own, "WAV", "FLOAT"), (rate, 1), rate)
    inside = slice(rate // 20, -rate // 20)
    np.testing.assert_allclose(clip[inside], tones(rate, 1.0, hertz)[inside], atol=2e-4)  # HQ: 20 bits less ripple


def test_resampling_removes_what_would_alias():
    clip = sound.decode_clip(written(tones(48000, 1.0, [9000]), 48000, "WAV", "FLOAT"), (16000, 1), 16000)
    assert abs(clip[800:-800]).max() < 1e-4


@pytest.mark.parametrize(("own", "rate"), [(32000, 16000), (44100, 22050), (8000, 16000)])
def test_resampling_agrees_with_a_sinc(own, rate):
    """Against Whittaker's sum in float64 of noise that was limited to a quarter of the lower rate."""
    samples = scipy.signal.firwin(401, 0.25 * min(own, rate), fs=own)
    samples = scipy.signal.fftconvolve(noise(own // 20)[:, 0], samples, mode="same") * np.hanning(own // 20)
    places = np.arange(rate // 20) / rate * own
    expected = np.sinc(places[:, None] - np.arange(len(samples))) @ samples
    clip = sound.decode_clip(written(samples, own, "WAV", "DOUBLE"), (rate // 20, 1), rate)
    np.testing.assert_allclose(clip[:, 0], expected, atol=1e-4)


@pytest.mark.parametrize(("own", "rate"), [(16000, 16000), (44100, 16000), (8000, 44100), (22050, 8000)])
@pytest.mark.parametrize("crop", ["start", "random"])
def test_a_crop_is_a_piece_of_the_whole(own, rate, crop):
    """A file of which a piece is read and resampled gives what the whole gives: the filter sees beyond the piece.

    The file is of whole numbers: libsndfile writes the time of day into WAV of floats, and a random place is drawn from
    the bytes.
    """
    data = written(noise(2 * own), own, "WAV", "PCM_24")
    whole = sound.decode_clip(data, (2 * rate, 1), rate)[:, 0]
    clip = sound.decode_clip(data, (rate // 4, 1), rate, crop=crop)[:, 0]
    found = np.correlate(whole, clip, mode="valid").argmax()
    assert (found == 0) == (crop == "start")
    np.testing.assert_allclose(clip, whole[found : found + len(clip)], atol=1e-5)


def test_random_places_are_of_the_bytes_and_spread():
    files = [written(noise(4000, seed=i), 8000) for i in range(60)]
    starts = []
    for data in files:
        whole = sound.decode_clip(data, (4000, 1), 8000)[:, 0]
        clips = [sound.decode_clip(data, (400, 1), 8000, crop="random", name=name)[:, 0] for name in "ab"]
        np.testing.assert_array_equal(*clips)
        starts.append(np.correlate(whole, clips[0], mode="valid").argmax())
    assert len(set(starts)) > 50
    assert min(starts) < 700 < 2900 < max(starts) <= 3600
    exact = sound.decode_clip(files[0], (4000, 1), 8000, crop="random")
    np.testing.assert_array_equal(exact, sound.decode_clip(files[0], (4000, 1), 8000))


def test_channels_are_averaged_or_doubled():
    samples = noise(800, 2)
    data = written(samples, 8000, "WAV", "FLOAT")
    np.testing.assert_allclose(sound.decode_clip(data, (800, 1), 8000)[:, 0], samples.mean(axis=1), atol=1e-7)
    both = sound.decode_clip(written(samples[:, :1], 8000, "WAV", "FLOAT"), (800, 2), 8000)
    np.testing.assert_array_equal(both[:, 0], both[:, 1])
    six = written(noise(800, 6), 8000, "WAV", "FLOAT")
    assert sound.decode_clip(six, (800, 1), 8000).shape == (800, 1)
    with pytest.raises(UserError, match="six.wav has 6 channels, which do not become 2"):
        sound.decode_clip(six, (800, 2), 8000, name="six.wav")


def test_floats_beyond_one_are_clipped():
    clip = sound.decode_clip(written(np.array([[1.5], [-2.0], [0.5]]), 8000, "WAV", "FLOAT"), (3, 1), 8000)
    np.testing.assert_array_equal(clip[:, 0], [1, -1, 0.5])


def _cut(data):
    return data[: len(data) // 2]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "a.wav is not a file of sound that can be read"),
        (b"RIFF nothing", "a.wav is not a file of sound that can be read"),
        (b"some text" * 100, "a.wav is not a file of sound that can be read"),
        (written(np.zeros((0, 1)), 8000), "a.wav is empty"),
        (written(noise(500), 8000), r"a.wav is 0.0625 s long, and a clip of 800 samples at 8000 Hz is 0.1 s"),
        (_cut(written(noise(1000), 8000)), r"a.wav is 0.06\d* s long"),
        (_cut(written(noise(1000), 8000, "FLAC")), "a.wav (can't be decoded|breaks off after)"),
        (written(noise(1000), 8000, "AIFF"), "a.wav is of the format AIFF"),
        (written(np.full((800, 1), np.nan), 8000, "WAV", "FLOAT"), "a.wav has values that are NaN"),
    ],
)
def test_what_cannot_be_a_clip_is_named(data, says):
    with pytest.raises(UserError, match=says):
        sound.decode_clip(data, (800, 1), 8000, name="a.wav")


@pytest.mark.parametrize("channels", [1, 2])
def test_wav_out_and_in_again_is_exact(channels):
    values = np.random.default_rng(0).integers(-(2**15), 2**15, (1000, channels)) / 2**15
    data = sound.encode_wav(values.astype(np.float32), 8000)
    np.testing.assert_array_equal(sound.decode_clip(data, (1000, channels), 8000), values)
    assert sound.read_header(data, "") == (8000, 1000, channels)
    with wave.open(io.BytesIO(data)) as read:  # the standard library's own reading
        found = np.frombuffer(read.readframes(1000), "<i2").reshape(-1, channels)
        assert read.getparams()[:4] == (channels, 2, 8000, 1000)
    np.testing.assert_array_equal(found, np.rint(values * 2**15))


def test_wav_rounds_to_the_nearest_and_clips():
    values = np.array([[0.4 / 2**15], [0.6 / 2**15], [1.0], [3.0], [-1.0], [-3.0]], np.float32)
    read = sound.decode_clip(sound.encode_wav(values, 8000), (6, 1), 8000)[:, 0] * 2**15
    np.testing.assert_array_equal(read, [0, 1, 2**15 - 1, 2**15 - 1, -(2**15), -(2**15)])


@pytest.mark.parametrize(("missing", "says"), [("soundfile", "needs soundfile; pip"), ("soxr", "needs soxr; pip")])
def test_a_missing_package_is_named_with_its_extra(monkeypatch, missing, says):
    data = written(noise(1000), 8000)
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == missing:
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=rf"{says} install 'diffusion-jax\[audio\]'"):
        sound.decode_clip(data, (100, 1), 4000)
    assert sound.encode_wav(np.zeros((4, 1)), 8000)[:4] == b"RIFF"
