"""Notes: their captions are true of their waves, they do not alias, and the reader that says so is right."""

import pickle

import numpy as np
import pytest
import scipy.signal

from diffusion_jax.data import notes
from diffusion_jax.data.sources import open_source
from diffusion_jax.errors import UserError

RATE, SECONDS, LENGTH = 4000, 0.256, 1024
NOTES = [notes.note("validation", index) for index in range(1000)]


@pytest.fixture(scope="module")
def source():
    return open_source(f"notes:{RATE},{SECONDS},50")


@pytest.fixture(scope="module")
def clips():
    validation = open_source(f"notes:{RATE},{SECONDS},1", split="validation")
    return [validation[index]["array"] for index in range(len(validation))]


def noisy(clip, decibels):
    """The clip with white noise, decibels below its own power."""
    noise = np.random.default_rng(int(1e6 * abs(clip).sum())).normal(size=clip.shape)
    return clip + noise * np.sqrt(np.mean(clip**2)) * 10 ** (-decibels / 20)


def shifted(clip, cents):
    """The clip at another pitch: played faster by a factor, between the samples by a cubic spline."""
    places = np.arange(len(clip)) * 2 ** (cents / 1200)
    inside = places[places <= len(clip) - 1]
    return scipy.interpolate.CubicSpline(np.arange(len(clip)), clip[:, 0])(inside)[:, None]


@pytest.mark.parametrize("change", [lambda clip: clip, lambda clip: noisy(clip, 30)], ids=["clean", "noise of -30 dB"])
def test_the_reader_agrees_with_what_was_computed(clips, change):
    right = [
        notes.matches(change(clip), RATE, notes.CLASSES[note.label]) for clip, note in zip(clips, NOTES, strict=True)
    ]
    assert np.mean(right) >= 0.995


def test_the_reader_agrees_at_another_rate_and_length():
    for index in range(100):
        source = notes.notes_source("44100,0.5,100")
        example = source[index]
        assert notes.matches(example["array"], 44100, source.class_names[example["label"]])


def test_other_classes_are_refused(clips):
    for clip, note in list(zip(clips, NOTES, strict=True))[:100]:
        others = set(notes.CLASSES) - {notes.CLASSES[note.label]}
        assert not any(notes.matches(clip, RATE, name) for name in others)


def test_a_shifted_pitch_is_refused(clips):
    for clip, note in list(zip(clips, NOTES, strict=True))[:50]:
        assert notes.read_note(shifted(clip, 50), RATE).pitch is None
        assert notes.read_note(shifted(clip, 200), RATE).pitch != note.pitch


def test_what_is_no_note_has_no_timbre():
    """Silence, white noise, a chord and a clip that diverged."""
    noise = np.random.default_rng(0).normal(size=(LENGTH, 1))
    times = np.arange(LENGTH) / RATE
    chord = sum(notes.wave(notes.Note(p, "sine", "holds", 0.3, 0, 0), times, SECONDS, RATE) for p in ("C4", "E4"))
    for clip in (np.zeros((LENGTH, 1)), noise, chord[:, None], np.full((LENGTH, 1), np.nan)):
        assert notes.read_note(clip, RATE).timbre is None


def test_a_half_present_harmonic_is_no_timbre():
    times = np.arange(LENGTH) / RATE
    clip = np.sin(2 * np.pi * 440 * times) + 0.18 * np.sin(2 * np.pi * 880 * times)
    assert notes.read_note(clip[:, None], RATE)[1:3] == ("A4", None)


def test_pitches_are_in_tune(source):
    """Against the definition of the scale, with the phase's slope over the clip in place of a spectrum."""
    for pitch, semitones in notes.SCALE.items():
        note = notes.Note(pitch, "sine", "holds", 0.3, 0.2, 0.0)
        times = np.arange(LENGTH) / RATE
        analytic = scipy.signal.hilbert(notes.wave(note, times, SECONDS, RATE))
        middle = slice(LENGTH // 4, -LENGTH // 4)
        slope = np.polyfit(times[middle], np.unwrap(np.angle(analytic))[middle], 1)[0]
        assert abs(1200 * np.log2(slope / (2 * np.pi) / 440) - 100 * semitones) < 1
        assert abs(1200 * np.log2(notes.read_note(np.real(analytic)[:, None], RATE).hertz / 440) - 100 * semitones) < 1


@pytest.mark.parametrize("timbre", notes.TIMBRES)
def test_harmonics_are_those_of_the_ideal_wave(timbre):
    """Fourier coefficients of the ideal saw, square and pulse wave, by their values over one period."""
    period = (np.arange(6144) + 0.5) / 6144
    ideal = {
        "sine": np.sin(2 * np.pi * period),
        "square": np.where(period < 0.5, 1.0, -1.0),
        "saw": 0.5 - period,
        "plucked": np.where((period < 1 / 6) | (period > 5 / 6), 2 / 3, -1 / 3),  # a pulse of a third of the period
    }[timbre]
    expected = abs(np.fft.rfft(ideal))[1:13]
    found = abs(notes.amplitudes(timbre, 12))
    np.testing.assert_allclose(found / found[0], expected / expected[0], atol=2e-4)
    assert np.sum(found**2) / 2 == pytest.approx(1)


def test_a_wave_holds_nothing_above_half_the_rate():
    """What sampling would alias, measured on the same wave sampled sixteen times as densely."""
    times = np.arange(16 * LENGTH) / (16 * RATE)
    hertz = np.fft.rfftfreq(len(times), 1 / (16 * RATE))
    for note in NOTES[:200]:
        power = abs(np.fft.rfft(notes.wave(note, times, SECONDS, RATE))) ** 2
        assert power[hertz >= RATE / 2].sum() < 1e-6 * power.sum()


def test_clips_are_the_same_notes_at_every_rate():
    low, high = notes.notes_source("4000,0.25,5"), notes.notes_source("8000,0.25,5")
    for index in range(5):
        assert low[index]["caption"] == high[index]["caption"]
        note = notes.note("train", index)
        np.testing.assert_array_equal(
            low[index]["array"][:, 0], notes.wave(note, np.arange(1000) / 4000, 0.25, 4000).astype(np.float32)
        )


def test_the_source_is_a_function_of_its_numbers(source):
    again = pickle.loads(pickle.dumps(source))
    assert (len(source), source.num_classes, source.modality) == (50, 32, "audio(rate=4000)")
    for index in (0, 7, 49):
        first, second = source[index], again[index]
        assert first["array"].shape == (LENGTH, 1)
        assert first["array"].dtype == np.float32
        np.testing.assert_array_equal(first["array"], second["array"])
        assert (first["label"], first["caption"]) == (second["label"], second["caption"])
    with pytest.raises(IndexError):
        source[50]
    specs = ["notes", "notes:4000", "notes:4000,0.256", "notes:4000,.256,20000"]
    assert len({open_source(spec).fingerprint for spec in specs}) == 1
    others = ["notes:8000", "notes:4000,0.512", "notes:4000,0.256,10"]
    assert len({open_source(spec).fingerprint for spec in (*others, "notes")}) == 4
    assert open_source("notes", split="validation").fingerprint != open_source("notes").fingerprint


def test_splits_share_no_note():
    train = {notes.note("train", index) for index in range(2000)}
    assert len(train) == 2000
    assert not train & set(NOTES)


def test_every_class_and_fade_is_drawn_alike_and_no_clip_is_clipped(clips):
    drawn = [notes.note("train", index) for index in range(6400)]
    counts = np.bincount([note.label for note in drawn], minlength=32)
    assert abs(counts - 200).max() < 5 * np.sqrt(200)
    assert {note.fade for note in drawn} == set(notes.FADES)
    assert max(abs(clip).max() for clip in clips) < 1


def test_fades_are_true_of_the_waves():
    """The level of the second half against the first, in the order of their names."""
    times = np.arange(LENGTH) / RATE
    level = {}
    for fade in notes.FADES:
        wave = notes.wave(notes.Note("C4", "saw", fade, 0.3, 0.0, 0.0), times, SECONDS, RATE)
        first, second = (np.mean(part**2) for part in np.split(wave, 2))
        level[fade] = second / first
    assert level["holds"] > 0.8 > 0.4 > level["fades slowly"] > 0.05 > level["fades fast"]


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("notes:a", "cannot read"),
        ("notes:4000,0.256,10,2", "cannot read"),
        ("notes:4000;0.256", "cannot read"),
        ("notes:2000", "at least 3500 Hz"),
        ("notes:4000,0.05", "at least 0.1 seconds"),
        ("notes:4000,0.256,0", "count of at least 1"),
        ("notes:4000,0.2561", "1024.4 samples, and a clip has a whole number; 0.256 seconds are 1024"),
    ],
)
def test_numbers_that_fit_no_notes(spec, says):
    with pytest.raises(UserError, match=says):
        open_source(spec)


def test_splits_and_names_that_are_none(clips):
    with pytest.raises(UserError, match="no split 'test'; choose from train, validation"):
        open_source("notes", split="test")
    with pytest.raises(UserError, match="'H4 saw' is no class of notes"):
        notes.matches(clips[0], RATE, "H4 saw")
