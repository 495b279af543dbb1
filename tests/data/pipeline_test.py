"""The stream of training batches: what it depends on, and what it does not."""

import contextlib
import dataclasses
import io
import itertools
import json
import threading
import time

import numpy as np
import pytest
from PIL import Image as Picture
from taken_batches import assert_same, take, together

from diffusion_jax.data import masks
from diffusion_jax.data.order import example_indices
from diffusion_jax.data.pipeline import Order, Reading, train_batches
from diffusion_jax.data.readers import Captions, Labels, Maps, Masks
from diffusion_jax.data.sources import open_source
from diffusion_jax.errors import UserError
from diffusion_jax.modalities import Image


@dataclasses.dataclass(frozen=True)
class Ramps:
    """Image i is 2 x 4, all different from their mirror: 4 i, 4 i + 1, 4 i + 2, 4 i + 3 from left to right."""

    size: int
    labelled: bool = True
    broken: int = -1
    class_names: tuple[str, ...] | None = None

    @property
    def num_classes(self):
        return self.size if self.labelled else None

    @property
    def fingerprint(self):
        return f"{self.size} ramps"

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        file = io.BytesIO()
        Picture.fromarray(ramp(index)).save(file, "PNG")
        data = file.getvalue()[: 50 if index == self.broken else None]
        example = {"image": data, "name": f"ramp {index}"}
        return example | {"label": index} if self.labelled else example


@dataclasses.dataclass(frozen=True)
class Described(Ramps):
    """Ramps of which the odd ones lie in a caption to the left; the map of each says its columns, 10 to 13."""

    mapped: bool = True

    def __getitem__(self, index):
        file = io.BytesIO()
        Picture.fromarray(np.tile(10 + np.arange(4, dtype=np.uint8), (2, 1))).save(file, "PNG")
        example = super().__getitem__(index)
        example["caption"] = f"ramp {index}, {'Leftmost' if index % 2 else 'bright'}"
        return example | {"map": file.getvalue()} if self.mapped else example


def lengths_and_numbers(captions):
    return np.array([[len(caption), int(caption.split()[1].strip(","))] for caption in captions])


EVERYTHING = {"readers": (Labels(), Captions(lengths_and_numbers), Maps(14), Masks())}


def ramp(index):
    return np.tile(4 * index + np.arange(4, dtype=np.uint8), (2, 1))


ORDER, READING = ({field.name for field in dataclasses.fields(kind)} for kind in (Order, Reading))


def stream(source=None, **options):
    source = Ramps(10) if source is None else source
    readers = (Labels(),) if source.labelled else ()
    chosen = {"shape": (2, 4, 1), "batch_size": 4, "seed": 0, "flip": True, "readers": readers} | options
    shape = chosen.pop("shape")
    order = Order(**{name: chosen.pop(name) for name in ORDER if name in chosen})
    reading = Reading(**{name: chosen.pop(name) for name in READING if name in chosen})
    return train_batches(source, Image(), shape, order, reading=reading, **chosen)


def flips(batch):
    """Which images of a batch of ramps are mirrored."""
    return batch["x"][:, 0, 0, 0] > batch["x"][:, 0, 3, 0]


def test_a_batch_holds_what_it_promises():
    (batch,) = take(stream(), 1)
    assert {k: (v.shape, v.dtype.name) for k, v in batch.items()} == {
        "x": ((4, 2, 4, 1), "float32"),
        "label": ((4,), "int32"),
        "index": ((4,), "int64"),
    }
    np.testing.assert_array_equal(batch["label"], batch["index"])
    for image, index, flipped in zip(batch["x"], batch["index"], flips(batch), strict=True):
        expected = ramp(index)[:, ::-1] if flipped else ramp(index)
        np.testing.assert_allclose(image[..., 0], expected / 127.5 - 1, atol=1e-6)


def test_images_are_brought_to_size_and_channels():
    (batch,) = take(stream(shape=(6, 10, 3)), 1)
    assert batch["x"].shape == (4, 6, 10, 3)


def test_a_source_without_labels_gives_none():
    assert set(take(stream(Ramps(5, labelled=False)), 1)[0]) == {"x", "index"}


@pytest.mark.parametrize(("size", "batch_size"), [(10, 4), (3, 8), (1, 5), (12, 4)])
def test_every_example_comes_once_an_epoch(size, batch_size):
    indices = together(take(stream(Ramps(size), batch_size=batch_size), 6 * size))["index"]
    epochs = indices[: len(indices) // size * size].reshape(-1, size)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(size), (len(epochs), 1)))
    if size >= 10:
        assert len({tuple(epoch) for epoch in epochs}) == len(epochs)


def test_every_order_is_as_likely():
    # 6000 epochs of 3 examples: each of the 6 orders is binomial, 1000 +- 29.
    epochs = example_indices(seed=1, size=3, first=0, count=18_000).reshape(-1, 3)
    _, counts = np.unique(epochs, axis=0, return_counts=True)
    assert len(counts) == 6
    assert np.abs(counts - 1000).max() < 5 * 29


def test_a_seed_decides_everything():
    first = take(stream(), 8)
    assert_same(first, take(stream(), 8))
    other = take(stream(seed=1), 8)
    assert (together(first)["index"] != together(other)["index"]).any()
    assert (flips(together(first)) != flips(together(other))).any()


def test_the_next_seed_is_not_the_next_epoch():
    orders = [example_indices(seed, 20, epoch * 20, 20) for seed in range(4) for epoch in range(4)]
    assert len({tuple(order) for order in orders}) == 16


@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize("steps", [0, 1, 2, 3, 7, 50])  # of 4 in epochs of 10: at, in and across the edges
def test_a_saved_position_goes_on_exactly(steps, cache):
    batches = stream(cache=cache)
    list(itertools.islice(batches, steps))
    state = json.loads(json.dumps(batches.get_state()))
    rest = take(batches, 6)
    restored = stream(cache=cache)
    next(restored)  # wherever it was
    restored.set_state(state)
    assert restored.get_state() == state
    assert_same(take(restored, 6), rest)


def test_the_position_is_that_of_the_next_batch_not_of_the_prefetched():
    batches = stream(threads=4)
    assert batches.get_state()["position"] == 0
    for step in range(1, 4):
        next(batches)
        time.sleep(0.01)  # time to prefetch
        assert batches.get_state()["position"] == 4 * step
    batches.close()


@pytest.mark.parametrize("count", [2, 4])
def test_the_global_batch_does_not_depend_on_the_process_count(count):
    whole = take(stream(batch_size=8), 5)
    shares = [take(stream(batch_size=8, process_index=i, process_count=count), 5) for i in range(count)]
    assert_same([together(step) for step in zip(*shares, strict=True)], whole)


def test_the_position_of_one_process_serves_any_number():
    whole = take(stream(batch_size=8), 5)
    one_of_two = stream(batch_size=8, process_index=1, process_count=2)
    list(itertools.islice(one_of_two, 3))
    state = one_of_two.get_state()
    one_of_two.close()
    shares = []
    for i in range(4):
        share = stream(batch_size=8, process_index=i, process_count=4)
        share.set_state(state)
        shares.append(take(share, 2))
    assert_same([together(step) for step in zip(*shares, strict=True)], whole[3:])


def test_another_batch_size_goes_on_with_the_next_example():
    before, after = stream(batch_size=6), stream(batch_size=3)
    list(itertools.islice(before, 2))
    after.set_state(before.get_state())
    assert_same([together(take(after, 6))], [together(take(before, 3))])


@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize("threads", [0, 1, 8])
def test_threads_and_cache_change_nothing(threads, cache):
    assert_same(take(stream(threads=threads, cache=cache), 12), take(stream(threads=2), 12))


def test_workers_go_on_where_threads_stopped_and_back():
    expected = take(stream(), 9)
    threads, workers = stream(), stream(workers=2, cache=True)
    list(itertools.islice(threads, 4))
    workers.set_state(threads.get_state())
    got = list(itertools.islice(workers, 3))
    threads.set_state(workers.get_state())
    workers.close()
    assert_same(got + take(threads, 2), expected[4:])
    assert all(type(array) is np.ndarray and array.base is None for array in got[0].values())  # none shared


@pytest.mark.parametrize(("threads", "workers"), [(0, 0), (2, 0), (2, 1)])
def test_a_broken_image_is_one_sentence_wherever_it_is_read(threads, workers):
    with contextlib.closing(stream(Ramps(4, broken=2), threads=threads, workers=workers)) as batches:
        with pytest.raises(UserError) as caught:
            next(batches)
        assert str(caught.value) == "ramp 2 can't be decoded (image file is truncated); replace the file"
        assert batches.get_state()["position"] == 0


def test_half_of_the_images_are_mirrored_at_random():
    batches = together(take(stream(batch_size=100), 40))
    flipped = flips(batches)
    assert abs(flipped.mean() - 0.5) < 5 * 0.5 / 4000**0.5
    # Of each example, whatever its place in the batch.
    for index in range(10):
        assert abs(flipped[batches["index"] == index].mean() - 0.5) < 5 * 0.5 / 400**0.5
    # Independent of the neighbour's: a quarter each.
    pairs = 2 * flipped[:-1] + flipped[1:]
    assert np.abs(np.bincount(pairs, minlength=4) / len(pairs) - 0.25).max() < 5 * (0.1875 / 4000) ** 0.5


def test_without_flip_none_is_mirrored():
    assert not flips(together(take(stream(flip=False), 20))).any()


def test_the_cache_reads_each_example_once():
    reads = []

    class Counted(Ramps):
        def __getitem__(self, index):
            reads.append(index)
            return super().__getitem__(index)

    take(stream(Counted(10), cache=True, threads=0), 25)
    assert sorted(reads) == list(range(10))


def test_a_mirrored_image_leaves_the_cache_alone():
    batches = together(take(stream(cache=True), 50))
    upright = np.where(flips(batches)[:, None, None, None], batches["x"][:, :, ::-1], batches["x"])
    for image, index in zip(upright, batches["index"], strict=True):
        np.testing.assert_allclose(image[..., 0], ramp(index) / 127.5 - 1, atol=1e-6)


def test_a_batch_is_the_callers_to_change():
    batches = stream(cache=True, flip=False, batch_size=10)
    first = next(batches)
    expected = together([first])
    for array in first.values():
        array += 1
    second = next(batches)
    batches.close()
    np.testing.assert_array_equal(np.sort(second["label"]), np.sort(expected["label"]))
    order = np.argsort(second["index"])
    np.testing.assert_array_equal(second["x"][order], expected["x"][np.argsort(expected["index"])])


def test_closing_ends_the_threads():
    def running():
        return {thread.name for thread in threading.enumerate() if "grain" in thread.name}

    batches = stream(threads=3)
    next(batches)
    assert running()
    batches.close()
    batches.close()
    deadline = time.monotonic() + 5
    while running() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not running()


def test_a_stream_that_was_never_read_closes():
    """It has no thread then, and what is read of it later begins at the beginning."""
    batches = stream()
    batches.close()
    assert batches.get_state()["position"] == 0
    assert_same(take(batches, 2), take(stream(), 2))


def test_a_stream_whose_source_stalls_is_closed_all_the_same():
    """While a thread that was left behind still waits for a batch."""
    stalled, ended = threading.Event(), threading.Event()

    class Stalling(Ramps):
        def __getitem__(self, index):
            stalled.set()
            ended.wait(30)
            return super().__getitem__(index)

    batches = stream(Stalling(10))
    reader = threading.Thread(target=next, args=(batches,), daemon=True)
    reader.start()
    assert stalled.wait(10)
    threading.Timer(8, ended.set).start()  # of a test that fails
    begun = time.monotonic()
    batches.close()
    took = time.monotonic() - begun
    ended.set()
    assert took < 5
    reader.join(10)
    assert not reader.is_alive()
    batches.close()


def test_digits_go_on_exactly_in_the_middle_of_an_epoch(tmp_path):
    source = open_source("digits", data_dir=str(tmp_path))

    def digits():
        order = Order(seed=3, batch_size=128, flip=True)
        return train_batches(source, Image(), (8, 8, 1), order, reading=Reading(cache=True))

    batches = digits()
    list(itertools.islice(batches, 13))  # 13 x 128 of 1797: the next crosses the edge
    restored = digits()
    restored.set_state(batches.get_state())
    assert_same(take(restored, 3), take(batches, 3))


def test_captions_maps_and_masks_come_where_asked():
    (batch,) = take(stream(Described(10), **EVERYTHING), 1)
    plain = {"x": "float32", "index": "int64", "label": "int32"}
    assert {k: v.dtype.name for k, v in batch.items()} == plain | {"tokens": "int32", "map": "int32", "mask": "bool"}
    assert (batch["map"].shape, batch["mask"].shape) == ((4, 2, 4), (4, 2, 4))
    np.testing.assert_array_equal(batch["tokens"][:, 1], batch["index"])
    np.testing.assert_array_equal(batch["mask"], masks.random_masks(0, 0, 4, (2, 4)))
    assert set(take(stream(Described(10)), 1)[0]) == set(plain)
    # What is asked for beside changes nothing of the images and their order.
    asked, alone = (take(stream(Described(10), **o), 8) for o in ({"readers": (Labels(), Maps(14), Masks())}, {}))
    assert_same([{key: batch[key] for key in plain} for batch in asked], alone)


def test_maps_are_mirrored_with_their_images():
    batch = together(take(stream(Described(10), readers=[Maps(14)]), 20))
    flipped = batch["map"][:, 0, 0] > batch["map"][:, 0, 3]
    np.testing.assert_array_equal(flipped, flips(batch))
    np.testing.assert_array_equal(np.sort(batch["map"], axis=2), np.tile(np.arange(10, 14), (80, 2, 1)))


def test_captions_of_sides_keep_their_images_as_they_are():
    batch = together(take(stream(Described(10), readers=[Captions(lengths_and_numbers)]), 50))
    sided = batch["index"] % 2 == 1
    assert not flips(batch)[sided].any()
    free = flips(together(take(stream(Described(10)), 50)))  # captions that nobody reads do not count
    np.testing.assert_array_equal(flips(batch)[~sided], free[~sided])
    assert free[sided].any()


@pytest.mark.parametrize("options", [{"cache": True}, {"threads": 0}, {"workers": 1, "cache": True}])
def test_cache_threads_and_workers_change_nothing_of_what_is_asked(options):
    expected = take(stream(Described(10), **EVERYTHING), 8)
    assert_same(take(stream(Described(10), **EVERYTHING, **options), 8), expected)


def test_processes_and_positions_change_nothing_of_what_is_asked():
    def share(i):
        return stream(Described(10), batch_size=8, process_index=i, process_count=2, **EVERYTHING)

    whole = take(stream(Described(10), batch_size=8, **EVERYTHING), 5)
    resumed = share(0)
    resumed.set_state({"position": 24, "source": Described(10).fingerprint})
    halves = list(zip(take(share(0), 5)[3:], take(share(1), 5)[3:], strict=True))
    assert_same([together(half) for half in halves], whole[3:])
    assert_same(take(resumed, 2), [half[0] for half in halves])


def test_data_that_lacks_what_is_asked_is_refused():
    with pytest.raises(UserError, match="ramp 0 has no caption, which"):
        stream(Ramps(4), readers=[Captions(lengths_and_numbers)])
    with pytest.raises(UserError, match="ramp 0 has no map, which"):
        stream(Described(4, mapped=False), readers=[Maps(14)])
    refused = stream(Described(4), readers=[Maps(13)])
    with pytest.raises(UserError, match=r"ramp \d has class 13, and the model is told of 0 to 12"):
        next(refused)
    refused.close()
    with pytest.raises(UserError, match="masks need sides of at least 2, not 1 x 4"):
        stream(shape=(1, 4, 1), readers=[Masks()])
    with pytest.raises(UserError, match=r"would hold 16,200,000,000 bytes"):
        stream(Described(10), readers=[Maps(14)], cache=True, shape=(18_000, 18_000, 1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 10, "process_count": 4}, "batch_size=10 is not a positive multiple of the 4 processes"),
        ({"batch_size": 0}, "batch_size=0 is not a positive multiple"),
        ({"source": Ramps(0)}, "no examples; check its split"),
        ({"shape": (0, 4, 1)}, "data.shape=0 must be at least 1"),
        ({"shape": (2, 4, 2)}, r"\(2, 4, 2\) of images is .* channels 1 \(gray\)"),
        ({"threads": -1}, "threads=-1"),
        ({"workers": -1}, "workers=-1"),
        ({"seed": -1}, "seed=-1"),
        ({"cache": True, "shape": (40_000, 40_000, 1)}, "cache=True would hold 16,000,000,000 bytes .* cache=False"),
    ],
)
def test_numbers_that_do_not_fit(options, message):
    with pytest.raises(UserError, match=message):
        stream(**options)


def test_a_position_in_other_data_is_refused():
    batches = stream(Ramps(10))
    with pytest.raises(UserError, match="in the data '11 ramps', but the source is '10 ramps'"):
        batches.set_state(stream(Ramps(11)).get_state())
