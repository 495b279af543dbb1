"""Features of batches: the same whatever the batches and devices, in order, by one program."""

from functools import reduce

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from diffusion_jax.errors import UserError
from diffusion_jax.evals.features import extract
from diffusion_jax.evals.moments import merge, moments

WEIGHT = np.random.default_rng(1).standard_normal((48, 6)).astype(np.float32)


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (37, 4, 4, 3), np.uint8)


def sharding(devices):
    return NamedSharding(Mesh(np.array(jax.devices()[:devices]), ("data",)), PartitionSpec("data"))


def net(images):
    x = images.reshape(len(images), -1).astype(jnp.float32) / 255
    return {"pool": jnp.tanh(x @ WEIGHT), "first": images[:, 0, 0, 0]}


def split(images, size):
    return [images[i : i + size] for i in range(0, len(images), size)]


@pytest.mark.parametrize("devices", [None, 1, 8])
@pytest.mark.parametrize("size", [1, 10, 37])
def test_neither_batches_nor_devices_change_the_features(images, devices, size):
    where = devices and sharding(devices)
    parts = list(extract(jax.jit(net), split(images, size), sharding=where))
    assert [len(part["pool"]) for part in parts] == [len(part) for part in split(images, size)]
    expected = {name: np.asarray(value) for name, value in net(images).items()}
    np.testing.assert_array_equal(np.concatenate([part["first"] for part in parts]), expected["first"])
    np.testing.assert_allclose(np.concatenate([part["pool"] for part in parts]), expected["pool"], atol=1e-6)
    found, whole = reduce(merge, [moments(part["pool"]) for part in parts]), moments(expected["pool"])
    assert found.count == 37
    np.testing.assert_allclose(found.covariance, whole.covariance, atol=1e-6)


def test_eight_devices_share_the_work_and_one_program_does_it(images):
    traced, shards = [], []

    @jax.jit
    def counted(x):
        traced.append(x.shape)
        return net(x)

    def apply(x):
        shards.append([s.data.shape[0] for s in x.addressable_shards])
        return counted(x)

    list(extract(apply, split(images, 10), sharding=sharding(8)))
    assert traced == [(16, 4, 4, 3)]
    assert shards == [[2] * 8] * 4


def test_the_next_batch_is_under_way_before_one_is_handed_over(images):
    begun = []
    parts = extract(lambda x: begun.append(len(x)) or net(x), split(images, 10))
    next(parts)
    assert len(begun) == 2
    assert sum(len(part["pool"]) for part in parts) == 27
    assert len(begun) == 4


def test_a_sharding_that_copies_needs_no_padding(images):
    mesh = sharding(8).mesh
    copied = NamedSharding(mesh, PartitionSpec())
    seen = []
    list(extract(lambda x: seen.append(x.shape[0]) or net(x), split(images, 10), sharding=copied))
    assert seen == [10] * 4


def test_larger_and_empty_batches_are_refused(images):
    with pytest.raises(UserError, match="hold 1 to 5 images; got 6"):
        list(extract(net, [images[:5], images[:6]]))
    with pytest.raises(UserError, match="got 0"):
        list(extract(net, [images[:0]]))
    assert list(extract(net, [])) == []
