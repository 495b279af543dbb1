"""The order of images in buckets: a function of the seed and a batch's number, in which all come equally often."""

import dataclasses
import io
import pickle
from collections import Counter

import numpy as np
import pytest
from PIL import Image as Picture
from taken_batches import assert_same, take, together

from diffusion_jax.data.bucket_order import BucketOrder
from diffusion_jax.data.buckets import Buckets, bucket_sizes, bucketed
from diffusion_jax.data.pipeline import Order, Reading, train_batches
from diffusion_jax.data.precomputed import Precomputed
from diffusion_jax.data.readers import Labels, Maps, Masks
from diffusion_jax.errors import UserError
from diffusion_jax.modalities import Image

SIDES = ((20, 20), (16, 26), (26, 16))  # of the images: height, width


@dataclasses.dataclass(frozen=True)
class Gradients:
    """Images of three shapes in turn, of which image i is gray i; the map of each is its left half, 1."""

    size: int = 31
    class_names = None

    @property
    def num_classes(self):
        return self.size

    @property
    def fingerprint(self):
        return f"{self.size} gradients"

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        height, width = SIDES[index % 3]
        left = np.zeros((height, width), np.uint8)
        left[:, : width // 2] = 1
        image, halves = (png(a) for a in (np.full((height, width), index, np.uint8), left))
        return {"image": image, "map": halves, "label": index, "name": f"gradient {index}"}


def png(pixels):
    file = io.BytesIO()
    Picture.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


SOURCE = Gradients()
RATIOS = np.array([SIDES[i % 3][0] / SIDES[i % 3][1] for i in range(len(SOURCE))])
BUCKETS = bucketed(RATIOS, bucket_sizes(12, 12, 2), 4)


LABELS = (Labels(),)


def stream(buckets=BUCKETS, source=SOURCE, reading=None, readers=LABELS, precomputed=None, **order):
    return train_batches(
        source,
        Image(resize="buckets"),
        (12, 12, 1),
        Order(**{"seed": 0, "batch_size": 4} | order, buckets=buckets),
        readers=readers,
        precomputed=precomputed,
        reading=reading or Reading(),
    )


def test_a_batch_has_one_size_and_images_of_its_bucket_alone():
    seen = set()
    for batch in take(stream(), 24):
        size = batch["x"].shape[1:3]
        seen.add(size)
        assert [BUCKETS.sizes[BUCKETS.numbers[i]] for i in batch["index"]] == [size] * 4
        np.testing.assert_array_equal(batch["label"], batch["index"])
        grays = np.broadcast_to(batch["index"][:, None, None, None], batch["x"].shape)
        np.testing.assert_allclose(batch["x"], grays / 127.5 - 1, atol=1e-6)
    assert seen == set(BUCKETS.sizes)
    assert len(seen) == 3


@pytest.mark.parametrize("counts", [(11, 10, 10), (4, 9, 30), (7,), (3,), (4, 4)])
@pytest.mark.parametrize("epochs", [1, 3, 8])
def test_every_image_comes_equally_often(counts, epochs):
    """After the batches of e epochs: e times or once less, of a bucket with a batch or more."""
    buckets = Buckets(tuple((8, 8 + k) for k in range(len(counts))), np.repeat(np.arange(len(counts)), counts))
    order, batches = BucketOrder(3, 4, 1, buckets), sum(epochs * n // 4 for n in counts)
    drawn = Counter(int(i) for n in range(batches) for i in order.examples(4 * n, 4))
    for k, n in enumerate(counts):
        times = [drawn[int(i)] for i in np.flatnonzero(buckets.numbers == k)]
        assert sum(times) == epochs * n // 4 * 4
        assert max(times) - min(times) <= 1
        assert max(times) <= epochs


def test_images_of_a_bucket_come_once_before_one_comes_twice():
    """The stream of each bucket, across the edges of batches and epochs, is one permutation after another."""
    order = BucketOrder(0, 4, 1, BUCKETS)
    drawn = {k: [] for k in range(3)}
    for n in range(60):
        batch = order.examples(4 * n, 4)
        drawn[int(BUCKETS.numbers[batch[0]])].extend(batch.tolist())
    for k, images in drawn.items():
        size = BUCKETS.counts[k]
        epochs = [images[i : i + size] for i in range(0, len(images) - size + 1, size)]
        assert all(set(epoch) == set(np.flatnonzero(BUCKETS.numbers == k)) for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) == len(epochs) > 3


def test_sizes_come_in_a_random_order():
    """In 20 epochs of six batches each, two of each size; there are 90 orders."""
    buckets = Buckets(((6, 10), (8, 8), (10, 6)), np.repeat(np.arange(3), 8))
    orders = [[BucketOrder(seed, 4, 1, buckets).shape(4 * n) for n in range(120)] for seed in (0, 1)]
    assert orders[0] != orders[1]
    epochs = [tuple(orders[0][i : i + 6]) for i in range(0, 120, 6)]
    assert {tuple(sorted(epoch)) for epoch in epochs} == {tuple((*size, 1) for size in buckets.sizes for _ in range(2))}
    assert len(set(epochs)) > 12


@pytest.mark.parametrize("steps", [1, 2, 5, 7, 8, 40])
def test_a_saved_position_goes_on_exactly(steps):
    whole = take(stream(flip=True), steps + 3)
    first = stream(flip=True)
    for _ in range(steps):
        next(first)
    state = first.get_state()
    first.close()
    assert state["position"] == 4 * steps
    rest = stream(flip=True)
    rest.set_state(state)
    assert_same(take(rest, 3), whole[steps:])


def test_the_shares_of_two_processes_are_one_batch():
    whole = take(stream(flip=True), 12)
    shares = [take(stream(flip=True, process_index=i, process_count=2), 12) for i in range(2)]
    assert_same(whole, [together(rows) for rows in zip(*shares, strict=True)])


def test_a_worker_reads_the_same():
    """Workers are given a pickled copy."""
    batches = stream(flip=True)
    copy = pickle.loads(pickle.dumps(batches._rows))
    assert_same([batches._rows(4 * n) for n in range(9)], [copy(4 * n) for n in range(9)])
    batches.close()


def test_masks_and_maps_have_the_size_of_their_batch():
    for batch in take(stream(readers=(Maps(2), Masks())), 9):
        height, width = batch["x"].shape[1:3]
        assert batch["mask"].shape == batch["map"].shape == (4, height, width)
        np.testing.assert_array_equal(batch["map"], np.broadcast_to(np.arange(width) < width // 2, (4, height, width)))


OTHERS = {
    "batch size": ({"batch_size": 2}, "batches of 2 in 3 sizes"),
    "shape or unit": ({"buckets": bucketed(RATIOS, bucket_sizes(12, 12, 4), 4)}, "batches of 4 in"),
    "one size": ({"buckets": None}, "batches of one size"),
}


@pytest.mark.parametrize(("other", "called"), OTHERS.values(), ids=OTHERS)
def test_a_position_of_other_batches_is_refused(other, called):
    own = "batches of 4 in 3 sizes"
    for saved, now, before, after in (
        (stream(), stream(**other), own, called),
        (stream(**other), stream(), called, own),
    ):
        with pytest.raises(UserError, match=f"^the saved position is one of {before}.*, and training has {after}"):
            now.set_state(saved.get_state())


def test_what_does_not_go_with_buckets_is_refused():
    with pytest.raises(UserError, match="^a cache holds images of one size, and those in buckets have several"):
        stream(reading=Reading(cache=True))
    latents = Precomputed("a", SOURCE.fingerprint, 31, False, (("mean", (4, 4, 4), "float32"),), ())
    with pytest.raises(UserError, match="^precomputed latents have one size, and images in buckets have several"):
        stream(precomputed=latents)


def test_a_broken_image_is_replaced_in_the_size_of_its_batch():
    class Broken(Gradients):
        def __getitem__(self, index):
            example = super().__getitem__(index)
            return example | {"image": example["image"][:40]} if index == 3 else example

    batches = stream(source=Broken(), reading=Reading(corrupt_limit=1))
    for _ in range(9):
        batch = next(batches)
        assert 3 not in batch["index"]
    assert list(batches.skipped.found) == [3]
    batches.close()
