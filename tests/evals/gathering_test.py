"""What is gathered of features: the same whatever the batches, the devices and the interruptions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from diffusion_jax.errors import UserError
from diffusion_jax.evals.gathering import NOTHING, Gathering, Wanted
from diffusion_jax.evals.moments import moments_of

WANTED = Wanted(moments=("pooled",), kept=("pooled", "class"))
X = (np.random.default_rng(0).standard_normal((37, 6)) * 10.0 ** np.arange(-2, 4) + 1000).astype(np.float32)
"""Features of scales from 0.01 to 1000 about a mean of 1000: what sums of squares would lose in float32."""


def batches(size, x=X):
    """(how many count, features of size rows, the rest of them infinite)."""
    for start in range(0, len(x), size):
        part = x[start : start + size]
        padded = np.concatenate([part, np.full((size - len(part), x.shape[1]), np.inf, np.float32)])
        yield len(part), {"pooled": padded, "class": padded[:, 0]}


def gathered(size, devices=1, start=NOTHING, first=0, stop=None):
    mesh = Mesh(np.array(jax.devices()[:devices]), ("data",))
    split, everywhere = (NamedSharding(mesh, PartitionSpec(*names)) for names in (("data",), ()))
    gathering = Gathering(WANTED, start, everywhere=everywhere)
    for count, features in list(batches(size))[first:stop]:
        gathering.add(count, {name: jax.device_put(a, split) for name, a in features.items()})
    return gathering.so_far()


@pytest.mark.parametrize(("size", "devices"), [(37, 1), (8, 1), (8, 8), (16, 8)])
def test_neither_batches_nor_devices_change_what_is_gathered(size, devices):
    found, whole = gathered(size, devices), moments_of(X)
    assert (found.count, found.moments["pooled"].count) == (37, 37)
    np.testing.assert_allclose(found.moments["pooled"].mean, whole.mean, rtol=1e-14)
    np.testing.assert_allclose(
        found.moments["pooled"].covariance, np.cov(X.astype(np.float64).T), rtol=1e-9, atol=1e-12
    )
    np.testing.assert_array_equal(found.kept["pooled"], X)
    np.testing.assert_array_equal(found.kept["class"], X[:, 0])


def test_going_on_from_what_was_gathered_gives_the_bits_of_one_that_was_not_stopped():
    half = gathered(8, stop=3)
    assert half.count == 24
    whole, rest = gathered(8), gathered(8, start=half, first=3)
    parts = [(x.moments["pooled"].mean, x.moments["pooled"].scatter, *x.kept.values()) for x in (whole, rest)]
    for a, b in zip(*parts, strict=True):
        np.testing.assert_array_equal(a, b)


def test_moments_are_reduced_on_the_devices_in_float64():
    gathering = Gathering(Wanted(moments=("pooled",)))
    for count, features in batches(8):
        gathering.add(count, features)
    assert [a.dtype for a in gathering._total["pooled"]] == [jnp.float64] * 3
    assert all(isinstance(a, jax.Array) for a in gathering._total["pooled"])
    assert not gathering.so_far().kept
    assert jnp.ones(1).dtype == jnp.float32  # nothing else has become float64


def test_a_batch_is_inspected_before_the_next_but_one_is_drawn():
    seen = []
    gathering = Gathering(WANTED, inspect=lambda kept: seen.append(len(kept["pooled"])))
    for count, features in batches(8):
        gathering.add(count, features)
    assert seen == [8] * 4
    gathering.so_far()
    assert seen == [8] * 4 + [5]


def test_features_that_lack_and_batches_that_are_none_are_refused():
    with pytest.raises(UserError, match="these features have class, and no pooled"):
        Gathering(WANTED).add(1, {"class": X[:, 0]})
    for count in (0, 38):
        with pytest.raises(UserError, match=f"of a batch of 37 images 1 to 37 count; got {count}"):
            Gathering(WANTED).add(count, {"pooled": X, "class": X[:, 0]})
