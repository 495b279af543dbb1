"""Metrics by name: batches change nothing, only what is needed is kept, and FID is a name of InceptionV3's alone."""

import numpy as np
import pytest

from diffusion_jax.errors import UserError
from diffusion_jax.evals import moments, scores
from diffusion_jax.evals.sample_metrics import METRICS, Options, check, gather, label

OPTIONS = Options(kid_size=20, kid_subsets=3, neighbours=3, splits=4)


def features(seed, shift=0.0, n=60):
    rng = np.random.default_rng(seed)
    logits = np.exp(rng.standard_normal((n, 3)))
    return rng.standard_normal((n, 5)) + shift, logits / logits.sum(1, keepdims=True)


def batches(pooled, probabilities, sizes):
    cuts = np.cumsum(sizes)[:-1]
    for a, b in zip(np.split(pooled, cuts), np.split(probabilities, cuts), strict=True):
        yield {"pooled": a, "probabilities": b}


def test_scores_of_batches_are_those_of_the_whole():
    ours, theirs = features(0), features(1, shift=0.5)
    gathered = gather(batches(*ours, [7, 30, 23]), METRICS)
    real = gather(batches(*theirs, [60]), METRICS)
    found = {}
    for name, metric in METRICS.items():
        other = moments.statistics(real.moments) if name == "fd" else real
        found |= metric.scores(gathered, other, OPTIONS)
    assert set(found) == {"fd", "kid", "precision", "recall", "inception_score"}
    (a, _), (b, _) = ours, theirs
    fd = scores.frechet_distance(a.mean(0), np.cov(a.T), b.mean(0), np.cov(b.T))
    np.testing.assert_allclose(found["fd"].value, fd, rtol=1e-10)
    kid = scores.kernel_distance(a, b, size=20, subsets=3)
    assert (found["kid"].value, found["kid"].std) == kid
    assert found["inception_score"].value == scores.inception_score(ours[1], 4).mean


def test_moments_alone_are_kept_where_they_are_enough():
    gathered = gather(batches(*features(0), [30, 30]), ["fd"])
    assert gathered.count == gathered.moments.count == 60
    assert gathered.pooled is None
    assert gathered.probabilities is None


def test_too_few_images_for_a_covariance_are_noted_with_the_value():
    gathered = gather(batches(*features(0, n=4), [4]), ["fd"])
    other = moments.Statistics(np.zeros(5), np.eye(5))
    (note,) = METRICS["fd"].scores(gathered, other, OPTIONS)["fd"].notes
    assert "rank 3 of 5" in note


@pytest.mark.parametrize("name", METRICS)
def test_no_name_says_inception_where_it_is_not(name):
    text = label(name, "precision", "classifier runs/c", published=False)
    assert text.endswith("(features: classifier runs/c)")
    assert not any(word in text for word in ("FID", "KID", "Inception"))
    assert label("fd", "fd", "inception", published=True) == "FID"


@pytest.mark.parametrize(
    ("name", "num", "message"),
    [
        ("fd", 1, "a covariance takes 2 images, and --num is 1"),
        ("kid", 19, r"a subset of kid \(--kid_size\) takes 20 images, and --num is 19"),
        ("precision_recall", 3, "takes 4 images"),
        ("inception_score", 3, "takes 4 images"),
    ],
)
def test_too_few_images_are_said_beforehand(name, num, message):
    with pytest.raises(UserError, match=message):
        check([name], num, OPTIONS)
    check([name], METRICS[name].least(OPTIONS)[0], OPTIONS)
