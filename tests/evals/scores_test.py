"""KID and the Inception score against what they are by definition."""

import itertools

import numpy as np
import pytest

from diffusion_jax.errors import UserError
from diffusion_jax.evals.scores import inception_score, kernel_distance


def test_kid_is_the_mean_kernel_within_less_that_between():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 6, 3))

    def kernel(u, v):
        return (u @ v / 3 + 1) ** 3

    within = [np.mean([kernel(u, v) for u, v in itertools.permutations(s, 2)]) for s in (x, y)]
    between = np.mean([kernel(u, v) for u in x for v in y])
    found = kernel_distance(x, y, subsets=3, size=6)  # a subset is the whole set, in another order
    assert found.mean == pytest.approx(sum(within) - 2 * between, rel=1e-12)
    assert found.std == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("size", [2, 5, 20])
def test_kid_is_unbiased_at_any_size(size):
    """Over random subsets the unbiased estimate is on average that of the whole sets; a biased one is off by O(1/n)."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((40, 3)), rng.standard_normal((40, 3)) + 0.3
    whole = kernel_distance(x, y, subsets=1, size=40).mean
    found = kernel_distance(x, y, subsets=2000, size=size, seed=1)
    error = found.std / np.sqrt(2000)
    assert abs(found.mean - whole) < 4 * error
    biased = (
        np.mean(((x * x).sum(1) / 3 + 1) ** 3) + np.mean(((y * y).sum(1) / 3 + 1) ** 3)
    ) / size  # of x with itself
    assert biased > 8 * error  # what the test would tell


def test_kid_is_indifferent_to_rotation_and_repeats_with_its_seed():
    rng = np.random.default_rng(3)
    x, y = rng.standard_normal((60, 5)), rng.standard_normal((50, 5)) + 0.3
    q = np.linalg.qr(rng.standard_normal((5, 5)))[0]
    found = kernel_distance(x, y, subsets=10, size=20)
    np.testing.assert_allclose(kernel_distance(x @ q, y @ q, subsets=10, size=20), found, rtol=1e-10)
    assert kernel_distance(x, y, subsets=10, size=20) == found
    assert kernel_distance(x, y, subsets=10, size=20, seed=1) != found


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((30, 5), {"size": 31}, "here of 40 and 30; got size 31"),
        ((30, 4), {"size": 10}, r"\(40, 5\) and \(30, 4\)"),
        ((30, 5), {"size": 10, "subsets": 0}, "got 0"),
    ],
)
def test_kid_refuses(shape, options, message):
    with pytest.raises(UserError, match=message):
        kernel_distance(np.zeros((40, 5)), np.zeros(shape), **options)


def test_inception_score_of_certain_and_uncertain_classes():
    """C for certain predictions spread over C classes, 1 where each image's equal the mean."""
    certain = np.tile(np.eye(7), (10, 1))
    assert inception_score(certain, 1) == pytest.approx((7, 0))
    assert inception_score(certain, 10, seed=None) == pytest.approx((7, 0))
    unsure = np.broadcast_to([0.5, 0.2, 0.3, 0], (20, 4))
    assert inception_score(unsure, 5) == pytest.approx((1, 0))
    # Sorted by class, each split would know but one: hence the shuffle.
    ordered = np.repeat(np.eye(2), 50, axis=0)
    assert inception_score(ordered, 2, seed=None).mean == pytest.approx(1)
    assert inception_score(ordered, 2).mean > 1.8


def test_inception_score_is_of_mutual_information():
    """A symmetric channel over 4 classes with error e: exp(log 4 - H)."""
    e = 0.1
    rows = np.full((4, 4), e / 3) + np.eye(4) * (1 - e - e / 3)
    entropy = -(1 - e) * np.log(1 - e) - e * np.log(e / 3)
    assert inception_score(np.tile(rows, (5, 1)), 1).mean == pytest.approx(4 * np.exp(-entropy), rel=1e-12)


def test_inception_score_refuses_logits_and_too_many_splits():
    with pytest.raises(UserError, match="each row at least 0 and of sum 1"):
        inception_score(np.random.default_rng(0).standard_normal((20, 4)))
    with pytest.raises(UserError, match="each row at least 0 and of sum 1"):
        inception_score(np.array([[1.5, -0.5], [0.5, 0.5]]), 1)
    with pytest.raises(UserError, match="1 to 3 splits of 3 images; got 4"):
        inception_score(np.eye(3), 4)
