"""Metrics by name: batches change nothing, only what is needed is kept, and FID is a name of InceptionV3's alone."""

import dataclasses

import numpy as np
import pytest

from diffusion_jax.errors import UserError
from diffusion_jax.evals import moments, scores
from diffusion_jax.evals.gathering import Gathered, Gathering
from diffusion_jax.evals.sample_metrics import METRICS, Options, check_counts, label, of_features, score_names, wanted

OPTIONS = Options(kid_size=20, kid_subsets=3, neighbours=3, splits=4)


def features(seed, shift=0.0, n=60):
    rng = np.random.default_rng(seed)
    logits = np.exp(rng.standard_normal((n, 3)))
    return rng.standard_normal((n, 5)) + shift, logits / logits.sum(1, keepdims=True)


IN_SPACE = [name for name in of_features(METRICS) if name != "sfd"]


def gather(pooled, probabilities, sizes, names):
    gathering = Gathering(wanted(names))
    cuts = np.cumsum(sizes)[:-1]
    for a, b in zip(np.split(pooled, cuts), np.split(probabilities, cuts), strict=True):
        gathering.add(len(a), {"pooled": a, "probabilities": b})
    return gathering.so_far()


def test_scores_of_batches_are_those_of_the_whole():
    ours, theirs = features(0), features(1, shift=0.5)
    gathered = gather(*ours, [7, 30, 23], IN_SPACE)
    real = gather(*theirs, [60], IN_SPACE)
    found = {}
    for name in IN_SPACE:
        other = moments.statistics(real.moments["pooled"]) if name == "fd" else real
        found |= METRICS[name].scores(gathered, other, OPTIONS)
    assert list(found) == score_names(IN_SPACE)
    (a, _), (b, _) = ours, theirs
    fd = scores.frechet_distance(a.mean(0), np.cov(a.T), b.mean(0), np.cov(b.T))
    np.testing.assert_allclose(found["fd"].value, fd, rtol=1e-10)
    kid = scores.kernel_distance(a, b, size=20, subsets=3)
    assert found["kid"].value == pytest.approx(kid.mean, rel=1e-5)  # features are kept in float32
    assert found["kid"].std == pytest.approx(kid.std, rel=1e-4)
    assert found["inception_score"].value == pytest.approx(scores.inception_score(ours[1], 4).mean, rel=1e-6)


def test_subsets_that_are_all_images_have_no_spread():
    ours, theirs = (gather(*features(seed), [60], IN_SPACE) for seed in (0, 1))
    whole = METRICS["kid"].scores(ours, theirs, dataclasses.replace(OPTIONS, kid_size=60))["kid"]
    assert whole.std is None
    assert "smaller --kid_size" in whole.notes[0]


def test_moments_alone_are_kept_where_they_are_enough():
    gathered = gather(*features(0), [30, 30], ["fd"])
    assert gathered.count == gathered.moments["pooled"].count == 60
    assert not gathered.kept


def test_copies_of_training_images_are_found_and_pointed_out():
    real, fresh = features(0, n=50)[0], features(1, n=18)[0]
    samples = np.concatenate([fresh, real[[31, 4]]])
    found = METRICS["memorisation"].scores(
        Gathered(20, {}, {"pooled": samples}), Gathered(50, {}, {"pooled": real}), OPTIONS
    )
    nearest = found["copied"].nearest
    assert nearest.samples[:2].tolist() == [18, 19]
    assert nearest.images[:2, 0].tolist() == [31, 4]
    assert nearest.ratio[:2].tolist() == [0, 0]
    assert found["copied"].value >= 0.1
    assert found["median_ratio"].value > 0.5


def test_the_mean_psnr_leaves_out_images_that_are_equal_and_says_so():
    psnr = METRICS["psnr"].scores
    found = psnr(Gathered(3, {}, {"psnr": np.array([20.0, np.inf, 30.0])}), None, OPTIONS)["psnr"]
    assert (found.value, found.std) == (25, 5)
    assert found.notes == ("1 of 3 images are their originals to the byte and are left out of the mean",)
    with pytest.raises(UserError, match="every image is its original"):
        psnr(Gathered(2, {}, {"psnr": np.array([np.inf, np.inf])}), None, OPTIONS)


def test_too_few_images_for_a_covariance_are_noted_with_the_value():
    gathered = gather(*features(0, n=4), [4], ["fd"])
    other = moments.Statistics(np.zeros(5), np.eye(5))
    (note,) = METRICS["fd"].scores(gathered, other, OPTIONS)["fd"].notes
    assert "rank 3 of 5" in note


@pytest.mark.parametrize("name", of_features(METRICS))
def test_no_name_says_inception_where_it_is_not(name):
    text = label(name, "precision", "classifier runs/c", published=False)
    assert text.endswith("(features: classifier runs/c)")
    assert not any(word in text for word in ("FID", "KID", "Inception"))
    assert label("fd", "fd", "inception", published=True) == "FID"
    assert label("sfd", "sfd", "inception", published=True) == "sFID"
    assert label("psnr", "psnr", "", published=False) == "PSNR (dB)"


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
        check_counts([name], num, OPTIONS)
    check_counts([name], METRICS[name].least(OPTIONS)[0], OPTIONS)
