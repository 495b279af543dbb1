"""Spectrograms: a tone lies where the axes say, at its level, and when it sounds."""

import numpy as np
import pytest

from diffusion_jax.report import spectrogram
from diffusion_jax.report.spectrogram import level_map, nice_step, spectrograms


def tone(hertz, rate, seconds, amplitude=1.0):
    return amplitude * np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate)[:, None]


def row_of(hertz, rate, height):
    """By the mel scale of O'Shaughnessy (1987), rows from rate / 2 down to 0."""
    mel = [1127.01 * np.log(1 + f / 700) for f in (hertz, rate / 2)]
    return height - 1 - int(mel[0] / mel[1] * height)


@pytest.mark.parametrize("rate", [4000, 16000, 44100])
def test_a_tone_lies_at_its_frequency_and_level(rate):
    for part in (0.05, 0.11, 0.3, 0.47):
        hertz = part * rate
        levels = level_map(tone(hertz, rate, 1.0, 0.1), rate, 100, 120)[:, 50]
        assert abs(levels.argmax() - row_of(hertz, rate, 120)) <= 1
        assert levels.max() == pytest.approx(-20, abs=0.2)


def test_a_tone_lies_in_its_time():
    clip = np.concatenate([np.zeros((4000, 1)), tone(1000, 8000, 0.5)])
    levels = level_map(clip, 8000, 100, 120).max(axis=0)
    assert levels[:45].max() < -60
    assert levels[55:95].min() > -1


def test_channels_are_averaged_in_power():
    left = tone(1000, 8000, 0.5)
    both = level_map(np.concatenate([left, 0 * left], axis=1), 8000, 50, 60)
    np.testing.assert_allclose(both.max(), level_map(left, 8000, 50, 60).max() - 10 * np.log10(2), atol=0.01)


def test_clips_of_any_length_are_drawn():
    for length in (1, 2, 15, 100, 3000):
        pictures = spectrograms(np.zeros((1, length, 1), np.float32), 8000)
        assert pictures.shape == (1, spectrogram.HEIGHT, spectrogram.WIDTH, 3)


def test_loud_is_bright_silence_is_black_and_full_scale_is_red():
    loud, silent = spectrograms(np.stack([tone(1000, 8000, 0.5), 0 * tone(1000, 8000, 0.5)]), 8000).astype(int)
    inside = (slice(26, 150), slice(36, 225))
    assert silent[inside].max() < 10
    assert loud[inside].sum(axis=2).max() > 600
    red = (loud[:24, :, 0] > 200) & (loud[:24, :, 1] < 60)
    assert red.any()
    assert not ((silent[:24, :, 0] > 200) & (silent[:24, :, 1] < 60)).any()


def test_ticks_have_round_numbers():
    assert [nice_step(x) for x in (0.03, 0.05, 0.051, 0.9, 1.0, 3.0)] == pytest.approx([0.05, 0.05, 0.1, 1, 1, 5])
