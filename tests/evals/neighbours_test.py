"""Nearest neighbours, precision and recall, memorisation: by brute force, by construction, in blocks of any size."""

import numpy as np
import pytest

from diffusion_jax.errors import UserError
from diffusion_jax.evals.neighbours import memorisation, nearest, precision_recall


def brute(x, y):
    return np.linalg.norm(x[:, None] - y[None], axis=-1)  # [N, M]


@pytest.fixture
def sets():
    rng = np.random.default_rng(0)
    return rng.standard_normal((23, 6)), 0.8 * rng.standard_normal((31, 6)) + 0.9


@pytest.mark.parametrize("block", [1, 4, 10, 100])
@pytest.mark.parametrize("k", [1, 5, 25])
def test_nearest_are_the_least_distances_in_any_blocks(sets, k, block):
    x, y = sets
    found = nearest(x, y, k, block=block)
    distances = brute(x, y)
    np.testing.assert_array_equal(found.index, np.argsort(distances, axis=1)[:, :k])
    np.testing.assert_allclose(found.distance, np.sort(distances, axis=1)[:, :k], rtol=1e-14)


def test_many_neighbours_come_nearest_first():
    y = np.random.default_rng(0).permutation(3000)[:, None]
    found = nearest([[-1.0]], y, 900)
    np.testing.assert_array_equal(found.distance[0], np.arange(1, 901))
    np.testing.assert_array_equal(y[found.index[0], 0], np.arange(900))


def test_a_copy_is_at_distance_0_though_features_are_far_from_0():
    """float32 features around 1e4 that differ by 1e-2, where |x|^2 - 2 x.y + |y|^2 alone would be noise."""
    rng = np.random.default_rng(0)
    y = (1e4 + 1e-2 * rng.standard_normal((50, 2048))).astype(np.float32)
    found = nearest(y[::-1], y, 2, block=16)
    np.testing.assert_array_equal(found.index[:, 0], np.arange(50)[::-1])
    assert (found.distance[:, 0] == 0).all()
    assert (found.distance[:, 1] > 0.1).all()


@pytest.mark.parametrize("block", [3, 7, 100])
@pytest.mark.parametrize("k", [1, 3])
def test_precision_and_recall_are_by_definition(sets, k, block):
    samples, real = sets

    def covered(x, y):
        radius = np.sort(brute(y, y), axis=1)[:, k]
        return np.mean((brute(x, y) <= radius).any(axis=1))

    found = precision_recall(samples, real, k, block=block)
    assert found == pytest.approx((covered(samples, real), covered(real, samples)))
    assert 0 < found.precision < 1
    assert 0 < found.recall < 1


def test_precision_tells_quality_and_recall_variety():
    """Samples of one mode of two: all precise, half recalled; samples of a third mode too: fewer precise."""
    rng = np.random.default_rng(1)
    modes = 100 * np.eye(3)
    real = np.concatenate([m + rng.uniform(-1, 1, (200, 3)) for m in modes[:2]])
    one = modes[0] + rng.uniform(-0.5, 0.5, (200, 3))
    found = precision_recall(one, real)
    assert found.precision > 0.95
    assert found.recall < 0.3
    strays = np.concatenate([one, modes[2] + rng.uniform(-1, 1, (200, 3))])
    assert precision_recall(strays, real).precision == pytest.approx(found.precision / 2)
    assert precision_recall(real, real) == (1, 1)


def test_copies_are_covered_where_a_ball_has_no_extent():
    real = np.repeat(np.random.default_rng(0).standard_normal((5, 2048)) + 100, 4, axis=0)
    assert precision_recall(real[::2], real, 1) == (1, 1)
    assert precision_recall(real[::2] + 1e-3, real, 1).precision == 0


def test_rotation_and_shift_change_nothing(sets):
    samples, real = sets
    rng = np.random.default_rng(5)
    q, shift = np.linalg.qr(rng.standard_normal((6, 6)))[0], rng.standard_normal(6)
    moved = precision_recall(samples @ q + shift, real @ q + shift)
    assert moved == precision_recall(samples, real)


def test_memorisation_tells_copies_from_fresh_samples():
    rng = np.random.default_rng(0)
    training, fresh = rng.standard_normal((2, 400, 8))
    copies = training[:100] + 1e-3 * rng.standard_normal((100, 8))
    found = memorisation(np.concatenate([fresh[:300], copies]), training, k=3, block=64)
    assert found.copied == pytest.approx(0.25, abs=0.02)
    assert (found.ratio[300:] < 0.05).all()
    assert 0.8 < np.median(found.ratio[:300]) < 1.3
    np.testing.assert_array_equal(found.neighbours.index[300:, 0], np.arange(100))
    assert found.neighbours.index.shape == (400, 3)


def test_memorisation_where_the_training_set_repeats_itself():
    training = np.array([[0.0, 0], [0, 0], [3, 0], [3, 4]])
    found = memorisation([[0, 0], [0, 1], [3, 1], [3, 4]], training)
    np.testing.assert_allclose(found.ratio, [0, np.inf, 1 / 3, 0])
    assert found.copied == 0.75


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: nearest(x, x[:3], 4), "1 to 3 nearest ones; got 4"),
        (lambda x: nearest(x, x[:, :2]), r"\(9, 4\) and \(9, 2\)"),
        (lambda x: nearest(x, np.full((2, 4), np.nan)), "not finite"),
        (lambda x: precision_recall(x, x[:3]), "3 of 9 samples and 3 real images"),
        (lambda x: memorisation(x, x[:1]), "it has 1 image"),
    ],
)
def test_what_has_no_neighbours_is_refused(call, message):
    with pytest.raises(UserError, match=message):
        call(np.arange(36.0).reshape(9, 4))
