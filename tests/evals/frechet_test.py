"""The Fréchet distance against closed forms, where covariances are singular too."""

import warnings

import numpy as np
import pytest

from diffusion_jax.errors import UserError
from diffusion_jax.evals.moments import moments_of
from diffusion_jax.evals.scores import frechet_distance


def rotation(rng, size):
    return np.linalg.qr(rng.standard_normal((size, size)))[0]


def commuting(rng, size, rank):
    """Two Gaussians whose covariances share their axes: |m_a - m_b|^2 + sum (sqrt a - sqrt b)^2."""
    a, b = 10 ** rng.uniform(-4, 2, (2, size))
    a[rank:] = b[rank:] = 0
    shift = rng.standard_normal(size)
    return a, b, shift, shift @ shift + np.sum((np.sqrt(a) - np.sqrt(b)) ** 2)


@pytest.mark.parametrize("rank", [40, 17, 1])
def test_gaussians_with_common_axes(rank):
    rng = np.random.default_rng(rank)
    a, b, shift, expected = commuting(rng, 40, rank)
    q = rotation(rng, 40)
    with warnings.catch_warnings():
        warnings.simplefilter("error" if rank == 40 else "ignore")
        found = frechet_distance(q @ shift, q * a @ q.T, np.zeros(40), q * b @ q.T)
    assert found == pytest.approx(expected, rel=1e-10)


def test_two_dimensions_in_closed_form():
    """tr (A B)^1/2 = sqrt(tr A B + 2 sqrt(det A B)) for 2 x 2: covariances that do not commute."""
    a, b = np.array([[2.0, 0.7], [0.7, 1.0]]), np.array([[1.0, -0.9], [-0.9, 3.0]])
    cross = np.sqrt(np.trace(a @ b) + 2 * np.sqrt(np.linalg.det(a @ b)))
    expected = 5 + np.trace(a) + np.trace(b) - 2 * cross
    assert frechet_distance([1, 2], a, [0, 0], b) == pytest.approx(expected, rel=1e-12)


def test_planes_that_meet_in_a_line():
    """Singular covariances with different null spaces: span(e1, e2) and span(e2, e3); they share 4 and 9 on e2."""
    a, b = np.diag([1.0, 4, 0]), np.diag([0.0, 9, 25])
    q = rotation(np.random.default_rng(0), 3)
    with pytest.warns(UserWarning, match="rank 2 of 3"):
        found = frechet_distance(np.zeros(3), q @ a @ q.T, np.zeros(3), q @ b @ q.T)
    assert found == pytest.approx(1 + 25 + (3 - 2) ** 2, rel=1e-12)


def test_a_point_is_as_far_as_its_mean_and_the_others_spread():
    with pytest.warns(UserWarning, match="rank 0 of 2"):
        assert frechet_distance([3, 4], np.zeros((2, 2)), [0, 0], np.diag([2.0, 5])) == pytest.approx(25 + 7)


def test_symmetric_indifferent_to_rotation_and_quadratic_in_scale():
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((100, 8)) @ rng.standard_normal((8, 8)), rng.gamma(2.0, size=(90, 8))
    q, shift = rotation(rng, 8), rng.standard_normal(8)

    def distance(x, y):
        a, b = moments_of(x), moments_of(y)
        return frechet_distance(a.mean, a.covariance, b.mean, b.covariance)

    found = distance(x, y)
    assert found > 1
    assert distance(y, x) == pytest.approx(found, rel=1e-12)
    assert distance(x @ q + shift, y @ q + shift) == pytest.approx(found, rel=1e-11)
    assert distance(3 * x, 3 * y) == pytest.approx(9 * found, rel=1e-12)
    assert 0 <= distance(x, x) < 1e-10 * found


def test_few_images_are_exact_and_warned_about():
    """n <= D: the nuclear norm of the two centred matrices is tr (A B)^1/2, computed without any covariance."""
    rng = np.random.default_rng(2)
    x, y = rng.standard_normal((20, 64)), rng.standard_normal((500, 64)) + 0.1
    a, b = moments_of(x), moments_of(y)
    u, v = (x - x.mean(0)) / np.sqrt(19), (y - y.mean(0)) / np.sqrt(499)
    cross = np.linalg.norm(u @ v.T, "nuc")
    expected = np.sum((a.mean - b.mean) ** 2) + np.sum(u**2) + np.sum(v**2) - 2 * cross
    with pytest.warns(UserWarning, match="first covariance is of rank 19 of 64, as 64 or fewer images") as told:
        found = frechet_distance(a.mean, a.covariance, b.mean, b.covariance)
    assert found == pytest.approx(expected, rel=1e-10)
    assert len(told) == 1
    assert told[0].filename == __file__


@pytest.mark.parametrize(
    ("mean", "cov", "message"),
    [
        (np.zeros(3), np.eye(3), r"different features: \(2,\) and \(3,\)"),
        (np.zeros(2), np.eye(3), r"\[D, D\]; got \(2,\) and \(3, 3\)"),
        (np.zeros(2), np.array([[1, np.nan], [np.nan, 1]]), "second covariance has values that are not finite"),
        (np.zeros(2), np.diag([1.0, -1]), "negative eigenvalue -1"),
    ],
)
def test_what_is_no_pair_of_statistics_is_refused(mean, cov, message):
    with pytest.raises(UserError, match=message):
        frechet_distance(np.zeros(2), np.eye(2), mean, cov)
