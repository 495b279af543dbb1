"""Streaming moments: of any split, in any order, those of all at once; and the files they go to."""

import hashlib
import pickle
from functools import reduce

import numpy as np
import pytest

from diffusion_jax.errors import UserError
from diffusion_jax.evals.moments import (
    Statistics,
    load_statistics,
    merge,
    moments_of,
    save_statistics,
    sha256,
    statistics,
)


@pytest.fixture
def features():
    rng = np.random.default_rng(0)
    return 1e4 + rng.standard_normal((200, 5)) @ rng.standard_normal((5, 5))  # far from 0: E x^2 - (E x)^2 fails


def same(a, b, rtol=1e-10):
    assert a.count == b.count
    np.testing.assert_allclose(a.mean, b.mean, rtol=1e-14)
    np.testing.assert_allclose(a.scatter, b.scatter, rtol=rtol, atol=rtol * np.abs(b.scatter).max())


@pytest.mark.parametrize("cuts", [[], [1], [1, 2, 3], [50, 199], [7, 100, 101, 160]])
def test_any_split_gives_np_cov_of_all(features, cuts):
    found = reduce(merge, [moments_of(part) for part in np.split(features, cuts)])
    assert found.count == 200
    np.testing.assert_allclose(found.mean, features.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(found.covariance, np.cov(features, rowvar=False), rtol=1e-9, atol=1e-9)
    same(found, moments_of(features))


def test_merge_is_associative_and_commutative(features):
    a, b, c = (moments_of(part) for part in np.split(features, [13, 150]))
    same(merge(merge(a, b), c), merge(a, merge(b, c)))
    same(merge(a, b), merge(b, a))


def test_float32_batches_are_summed_in_float64():
    x = np.full((100_000, 1), 0.1, np.float32)
    found = reduce(merge, [moments_of(part) for part in np.split(x, 100)])
    assert found.mean[0] == pytest.approx(np.float64(np.float32(0.1)), rel=1e-14)
    assert found.scatter[0, 0] == pytest.approx(0, abs=1e-20)


def test_moments_refuse_what_they_are_not_of(features):
    with pytest.raises(UserError, match=r"\[N, D\], at least one; got \(0, 5\)"):
        moments_of(features[:0])
    with pytest.raises(UserError, match=r"\(5,\) and \(4,\)"):
        merge(moments_of(features), moments_of(features[:, :4]))
    with pytest.raises(UserError, match="2 or more images; got 1"):
        _ = moments_of(features[:1]).covariance


def test_a_file_gives_back_what_it_was_given(tmp_path, features):
    pooled, spatial = statistics(moments_of(features)), statistics(moments_of(features[:, :3]))
    save_statistics(tmp_path / "a.npz", pooled, spatial)
    for expected, found in (
        (pooled, load_statistics(tmp_path / "a.npz")),
        (spatial, load_statistics(tmp_path / "a.npz", spatial=True)),
    ):
        np.testing.assert_array_equal(found.mean, expected.mean)
        np.testing.assert_array_equal(found.covariance, expected.covariance)
        assert found.count == 200
    with np.load(tmp_path / "a.npz") as file:
        assert set(file.files) == {"mu", "sigma", "mu_s", "sigma_s", "count"}
    save_statistics(tmp_path / "b.npz", pooled, spatial)
    assert sha256(tmp_path / "a.npz") == sha256(tmp_path / "b.npz")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.npz", "b.npz"]


def test_sha256_is_of_the_bytes(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    assert sha256(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-4
    assert sha256(tmp_path / "x") == hashlib.sha256(b"abc").hexdigest()
    with pytest.raises(UserError, match="No such file"):
        sha256(tmp_path / "y")


def test_published_layouts_are_read(tmp_path):
    """EDM's has mu and sigma; ADM's also sFID's, and images, which are left in the file."""
    mu, sigma = np.arange(3, dtype=np.float32), np.eye(3, dtype=np.float32)
    np.savez(tmp_path / "edm.npz", mu=mu, sigma=sigma)
    np.savez(tmp_path / "adm.npz", mu=mu, sigma=sigma, mu_s=mu[:2], sigma_s=sigma[:2, :2], arr_0=np.zeros((2, 4, 4, 3)))
    for name in ("edm.npz", "adm.npz"):
        found = load_statistics(tmp_path / name)
        assert isinstance(found, Statistics)
        assert (found.mean.dtype, found.covariance.dtype, found.count) == (np.float64, np.float64, None)
        np.testing.assert_array_equal(found.mean, mu)
    assert load_statistics(tmp_path / "adm.npz", spatial=True).mean.shape == (2,)
    with pytest.raises(UserError, match="holds mu, sigma; statistics are an .npz with mu_s and sigma_s"):
        load_statistics(tmp_path / "edm.npz", spatial=True)


class Harm:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was run",))


def test_pickles_are_not_run(tmp_path):
    (tmp_path / "edm2.pkl").write_bytes(pickle.dumps(Harm()))
    with pytest.raises(UserError, match="a pickle, which is not read"):
        load_statistics(tmp_path / "edm2.pkl")
    np.savez(tmp_path / "object.npz", mu=np.array([Harm()], object), sigma=np.eye(1), allow_pickle=True)
    with pytest.raises(UserError, match=r"no .npz file of numbers"):
        load_statistics(tmp_path / "object.npz")
    (tmp_path / "named.npz").write_bytes(pickle.dumps(Harm()))
    with pytest.raises(UserError, match=r"no .npz file of numbers"):
        load_statistics(tmp_path / "named.npz")


def test_what_holds_no_statistics_is_refused(tmp_path, features):
    with pytest.raises(UserError, match="no statistics file"):
        load_statistics(tmp_path / "none.npz")
    with pytest.raises(UserError, match="written to an .npz file"):
        save_statistics(tmp_path / "a.npy", statistics(moments_of(features)))
    save_statistics(tmp_path / "whole.npz", statistics(moments_of(features)))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:300])
    with pytest.raises(UserError, match="fetch it anew"):
        load_statistics(tmp_path / "cut.npz")
    np.savez(tmp_path / "square.npz", mu=np.zeros(3), sigma=np.eye(2))
    with pytest.raises(UserError, match=r"got \(3,\) and \(2, 2\)"):
        load_statistics(tmp_path / "square.npz")
    np.savez(tmp_path / "nan.npz", mu=np.full(2, np.nan), sigma=np.eye(2))
    with pytest.raises(UserError, match="not finite"):
        load_statistics(tmp_path / "nan.npz")
