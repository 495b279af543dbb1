"""Batches of shards: exact, whatever reads them; and the order within a window of blocks, of which they are made."""

import itertools
import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import shard_files as files
from shard_files import KINDS, WRITE
from taken_batches import assert_same, take, together

from diffusion_jax.data.example import Blocks
from diffusion_jax.data.order import example_indices
from diffusion_jax.data.pipeline import Order, Reading, train_batches
from diffusion_jax.data.readers import Captions, Labels
from diffusion_jax.data.sources import open_source
from diffusion_jax.errors import UserError
from diffusion_jax.modalities import Image

COUNT = 36
GROUP = 4  # rows of a row group
WINDOW = 2500  # bytes, of some 9 row groups of 180

each = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    root = tmp_path_factory.mktemp("shards")
    for kind, write in WRITE.items():
        write(root / kind, COUNT, shards=3)
    return root


def lengths(captions):
    return np.array([[len(caption)] for caption in captions])


def stream(root, kind, *, window=WINDOW, batch_size=6, process_index=0, process_count=1, **options):
    source = open_source(f"{kind}:{root}", needs=frozenset({"label", "caption"}), shuffle_bytes=window)
    order = Order(3, batch_size, flip=True, process_index=process_index, process_count=process_count)
    reading = Reading(**{"threads": 2} | options)
    return train_batches(source, Image(), (4, 6, 1), order, readers=(Labels(), Captions(lengths)), reading=reading)


@each
def test_an_example_is_itself_wherever_it_comes(shards, kind):
    batch = together(take(stream(shards / kind, kind), 12))  # two epochs
    for image, label, index in zip(batch["x"], batch["label"], batch["index"], strict=True):
        expected = (index + 10 * np.arange(24).reshape(4, 6) % 130) / 127.5 - 1
        assert min(abs(image[..., 0] - expected).max(), abs(image[..., 0] - expected[:, ::-1]).max()) < 1e-6
        assert label == index * 3 // COUNT
    for epoch in np.split(batch["index"], 2):
        np.testing.assert_array_equal(np.sort(epoch), np.arange(COUNT))


@each
@pytest.mark.parametrize("steps", [1, 4, 9])
def test_a_saved_position_goes_on_exactly(shards, kind, steps):
    batches = stream(shards / kind, kind)
    list(itertools.islice(batches, steps))
    state = json.loads(json.dumps(batches.get_state()))
    rest = take(batches, 5)
    restored = stream(shards / kind, kind)
    restored.set_state(state)
    assert_same(take(restored, 5), rest)


@each
@pytest.mark.parametrize("options", [{"threads": 0}, {"threads": 7}, {"cache": True}])
def test_who_reads_changes_nothing(shards, kind, options):
    assert_same(take(stream(shards / kind, kind, **options), 8), take(stream(shards / kind, kind), 8))


@pytest.mark.slow  # a worker takes seconds to start; that a source is pickled is tests/data/shards_test.py's
@each
def test_workers_change_nothing(shards, kind):
    assert_same(take(stream(shards / kind, kind, workers=2), 8), take(stream(shards / kind, kind), 8))


@each
@pytest.mark.parametrize("count", [2, 3])
def test_processes_are_one(shards, kind, count):
    whole = take(stream(shards / kind, kind), 8)
    shares = [take(stream(shards / kind, kind, process_index=i, process_count=count), 8) for i in range(count)]
    assert_same([together(step) for step in zip(*shares, strict=True)], whole)


def test_another_batch_size_goes_on_with_the_next_example(shards):
    before, after = stream(shards / "parquet", "parquet"), stream(shards / "parquet", "parquet", batch_size=4)
    list(itertools.islice(before, 2))
    after.set_state(before.get_state())
    assert_same([together(take(after, 6))], [together(take(before, 4))])


def test_another_window_is_another_order_and_is_refused(shards):
    saved = stream(shards / "parquet", "parquet").get_state()
    with pytest.raises(UserError, match=rf"data.shuffle_bytes={WINDOW}, and it is {2 * WINDOW}; set it back"):
        stream(shards / "parquet", "parquet", window=2 * WINDOW).set_state(saved)
    assert "window" not in stream(shards / "webdataset", "webdataset").get_state()


@each
def test_damaged_examples_are_named_and_replaced(tmp_path, kind, capfd):
    damaged = (5, 6, 17)
    WRITE[kind](tmp_path, COUNT, damaged=damaged)
    batches = stream(tmp_path, kind, corrupt_limit=3)
    batch = together(take(batches, COUNT // 6))
    asked = batches._rows.indices(0)
    assert set(batches.skipped.found) == set(damaged)
    expected = np.concatenate([example_indices(3, COUNT, 0, COUNT, batches._rows.order.blocks)])
    instead = {5: 7, 6: 7, 17: 18}
    np.testing.assert_array_equal(batch["index"], [instead.get(i, i) for i in expected])
    assert len(asked) == 6
    assert capfd.readouterr().err.count("skipped") == 3
    with pytest.raises(UserError, match="data.corrupt_limit=2"):
        take(stream(tmp_path, kind, corrupt_limit=2), COUNT // 6)


@pytest.mark.parametrize("kind", ["parquet", "webdataset"])
def test_a_file_that_was_damaged_since_is_damaged_examples(tmp_path, kind, capfd):
    """Row groups that cannot be unpacked, and a tar that has become shorter."""
    WRITE[kind](tmp_path, COUNT, shards=3)
    batches = stream(tmp_path, kind, corrupt_limit=COUNT)
    damaged = sorted(tmp_path.iterdir())[1]
    damaged.write_bytes(bytes(damaged.stat().st_size) if kind == "parquet" else b"")
    taken = together(take(batches, COUNT // 6))
    assert set(batches.skipped.found) == set(range(12, 24))
    assert not set(taken["index"]) & set(range(12, 24))
    told = capfd.readouterr().err
    assert told.count("skipped") == 12
    assert told.count("can't be read from row group" if kind == "parquet" else "cut off after 0 of") == 12


@pytest.mark.parametrize("kind", ["parquet", "webdataset"])
def test_a_disk_that_fails_ends_the_run_and_skips_nothing(tmp_path, kind):
    WRITE[kind](tmp_path, COUNT)
    batches = stream(tmp_path, kind, corrupt_limit=COUNT, threads=0)
    for path in tmp_path.iterdir():
        path.unlink()
    with pytest.raises(UserError, match=r"can't be read \(.*No such file"):
        take(batches, COUNT // 6)  # parquet has read one row group
    assert not batches.skipped.found


def test_what_was_read_is_counted(shards):
    sizes = [len(files.picture(i)) for i in range(COUNT)]
    for kind in ("webdataset", "array_record"):
        batches = stream(shards / kind, kind, threads=0)
        take(batches, COUNT // 6)
        assert batches.bytes_read == sum(sizes)
        batches = stream(shards / kind, kind, threads=0, cache=True)
        take(batches, 3 * COUNT // 6)  # of the later epochs nothing
        assert batches.bytes_read == sum(sizes)
    batches = stream(shards / "parquet", "parquet", threads=0, window=10**9)
    take(batches, COUNT // 6)
    groups = batches._rows.decoded._source.groups  # the first was read to see which fields an example has
    assert batches.bytes_read == sum(group.stored for group in groups[1:])


# The order of blocks


SIZES = np.random.default_rng(0).integers(1, 40, 200)
BYTES = SIZES * np.random.default_rng(1).integers(50, 150, 200)
OF = np.repeat(np.arange(200), SIZES)  # the block of each example


def blocks(window):
    return Blocks(tuple(map(int, SIZES)), tuple(map(int, BYTES)), window)


def epoch(window, number=0, seed=0):
    return example_indices(seed, len(OF), number * len(OF), len(OF), blocks(window))


@pytest.mark.parametrize("part", [0, 0.02, 0.1, 0.5, 1])
def test_an_epoch_is_a_permutation_that_needs_a_window_of_blocks(part):
    window = int(part * BYTES.sum())
    order = epoch(window)
    np.testing.assert_array_equal(np.sort(order), np.arange(len(OF)))
    came = OF[order]
    first, last = np.full(200, len(OF)), np.zeros(200, int)
    np.minimum.at(first, came, np.arange(len(OF)))
    np.maximum.at(last, came, np.arange(len(OF)))
    held = [(BYTES * ((first <= i) & (i <= last))).sum() for i in range(0, len(OF), 7)]
    assert max(held) <= window + BYTES.max()
    if 0 < part < 1:
        assert max(held) > 0.8 * window  # and what may be held is used


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = [tuple(epoch(50_000, number, seed)) for number in range(3) for seed in range(3)]
    assert len(set(orders)) == 9


def test_a_window_of_all_is_a_uniform_order():
    """That of a source without blocks."""
    np.testing.assert_array_equal(epoch(int(BYTES.sum())), example_indices(0, len(OF), 0, len(OF)))


def test_every_block_is_as_likely_to_come_first():
    one = Blocks((2,) * 10, (1,) * 10, 2)
    firsts = [example_indices(0, 20, 20 * number, 1, one)[0] for number in range(4000)]
    counts = np.bincount(np.array(firsts) // 2, minlength=10)  # each binomial, 400 +- 19
    assert abs(counts - 400).max() < 5 * 19
    assert abs(np.bincount(np.array(firsts) % 2) - 2000).max() < 5 * 32


def test_a_row_group_is_read_once_an_epoch(tmp_path):
    """By threads that are ahead of each other, with a window of an eighth of the data."""
    files.write_parquet(tmp_path, 128, shards=2, group=2)
    whole = sum(open_source(f"parquet:{tmp_path}").blocks.bytes)
    source = open_source(f"parquet:{tmp_path}", shuffle_bytes=whole // 8)
    read = []
    load = source._cache._load
    source._cache._load = lambda number: read.append(number) or load(number)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: source[int(i)], example_indices(0, 128, 0, 128, source.blocks)))
    assert set(read) == set(range(64))
    assert len(read) <= 1.1 * 64
