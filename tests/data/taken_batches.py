"""Batches of a stream, taken, compared and put together."""

import itertools

import numpy as np


def take(batches, count):
    """The next count batches; closes the stream."""
    taken = list(itertools.islice(batches, count))
    batches.close()
    return taken


def assert_same(some, others):
    """Raises AssertionError unless two lists of batches are equal."""
    assert len(some) == len(others)
    for a, b in zip(some, others, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])


def together(batches):
    """Batches one after another, or the shares of one batch, as one."""
    return {key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]}
