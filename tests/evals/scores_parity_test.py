"""Every score from given features against torch-fidelity's, to 1e-6."""

import importlib.util
import sys
import types
from unittest import mock

import numpy as np
import pytest

from diffusion_jax.evals.moments import moments_of
from diffusion_jax.evals.neighbours import precision_recall
from diffusion_jax.evals.scores import frechet_distance, inception_score, kernel_distance

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module", autouse=True)
def without_torchvision():
    """torch-fidelity's package file and `utils` import torchvision, for what is not compared here."""
    package = types.ModuleType("torch_fidelity")
    package.__path__ = list(importlib.util.find_spec("torch_fidelity").submodule_search_locations)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "torch_fidelity", package)
        patch.setitem(sys.modules, "torch_fidelity.utils", mock.MagicMock())
        yield


@pytest.fixture(scope="module")
def sets():
    """Correlated, positive, skewed, as pooled features are: [700, 96] and [800, 96]."""
    rng = np.random.default_rng(0)
    mix = rng.standard_normal((96, 96)) / 10
    a = np.maximum(rng.standard_normal((700, 96)) @ mix + 0.3, 0)
    b = np.maximum(rng.standard_normal((800, 96)) @ (mix + 0.02) + 0.5, 0)
    return a, b


def tensors(*arrays):
    import torch

    return [torch.from_numpy(x) for x in arrays]


def close(found, expected):
    expected = list(expected)
    print([f"{abs(f - e) / abs(e):.1e}" for f, e in zip(np.atleast_1d(found), expected, strict=True)])
    np.testing.assert_allclose(np.atleast_1d(found), expected, rtol=1e-6)


def test_frechet_distance(sets):
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    expected = fid_statistics_to_metric(*(fid_features_to_statistics(x) for x in tensors(*sets)), verbose=False)
    a, b = map(moments_of, sets)
    close(frechet_distance(a.mean, a.covariance, b.mean, b.covariance), expected.values())


def test_kernel_distance(sets):
    from torch_fidelity.metric_kid import kid_features_to_metric

    for subsets, size, seed in ((10, 200, 2020), (3, 700, 1)):
        expected = kid_features_to_metric(
            *tensors(*sets), kid_subsets=subsets, kid_subset_size=size, rng_seed=seed, verbose=False
        )
        close(kernel_distance(*sets, subsets=subsets, size=size, seed=seed), expected.values())


def test_inception_score():
    import torch
    from torch_fidelity.metric_isc import isc_features_to_metric

    logits = 3 * torch.from_numpy(np.random.default_rng(0).standard_normal((505, 20)))
    probabilities = torch.softmax(logits, dim=1).numpy()
    close(inception_score(probabilities, 10), isc_features_to_metric(logits).values())
    close(inception_score(probabilities, 7, seed=None), isc_features_to_metric(logits, 7, shuffle=False).values())


@pytest.mark.parametrize("k", [1, 3, 10])
def test_precision_and_recall(sets, k):
    from torch_fidelity.metric_prc import prc_features_to_metric

    samples, real = sets[0][:, :6], sets[1][:, :6]
    theirs = prc_features_to_metric(*tensors(samples, real), prc_neighborhood=k, verbose=False)
    expected = [theirs["precision"], theirs["recall"]]
    assert all(0.05 < e < 1 for e in expected)
    close(precision_recall(samples, real, k, block=100), expected)
