"""Losses that jump, and stay."""

import pytest

from diffusion_jax.train.spikes import Spikes


def told(losses, **options):
    spikes = Spikes(**{"factor": 3.0, "window": 5, "limit": 2} | options)
    return [n for n, loss in enumerate(losses) if spikes.add(loss)]


def test_a_row_of_spikes_is_told_at_its_end():
    assert told([1] * 5 + [3.1, 3.1, 3.1]) == [6, 7]
    assert told([1] * 5 + [3.1, 3.1, 3.1], limit=3) == [7]


def test_three_times_the_median_is_not_above_it():
    assert told([1] * 5 + [3.0] * 4) == []


def test_single_spikes_are_passed_over_and_leave_the_median_as_it_was():
    assert told([1] * 5 + [9, 1] * 20) == []
    assert told([1] * 5 + [9, 1] * 20 + [3.1, 3.1]) == [46]


def test_nothing_is_told_until_the_window_is_full():
    assert told([1, 1, 1, 1, 100, 100]) == []
    assert told([1, 1, 1, 1, 1, 100, 100]) == [6]


def test_the_median_follows_the_last_window():
    assert told([10] * 5 + [1] * 5 + [4, 4]) == [11]
    assert told([1] * 5 + [2.9] * 5 + [4, 4]) == []


def test_negative_losses_have_no_spikes():
    """Of log-likelihoods; a multiple of their median says nothing."""
    assert told([-1] * 5 + [5, 5, 5]) == []


def test_what_is_said_has_the_figures():
    spikes = Spikes(factor=2, window=3, limit=1)
    said = [spikes.add(loss) for loss in (0.5, 0.5, 0.5, 1.25)]
    assert said[:3] == ["", "", ""]
    assert said[3] == "the loss is 1.25, over 2 times its median of 0.5, 1 in a row"
    assert spikes.in_a_row == 1
    assert not spikes.add(pytest.approx(0.5).expected)
    assert spikes.in_a_row == 0
