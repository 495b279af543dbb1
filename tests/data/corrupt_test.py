"""Examples that cannot be read: another takes the place of each, the same for any workers, until they are too many."""

import io

import numpy as np
import pytest
from PIL import Image as Picture

from diffusion_jax.data import corrupt
from diffusion_jax.data.order import example_indices
from diffusion_jax.data.pipeline import Order, Reading, train_batches
from diffusion_jax.data.readers import Captions
from diffusion_jax.errors import UserError
from diffusion_jax.modalities import Image

SIZE = 40


class Broken:
    """Gray images whose pixels are their place; of those in `broken` the bytes are cut, those in `gone` raise."""

    num_classes, class_names, fingerprint = None, None, "broken"

    def __init__(self, broken=(), gone=()):
        self.broken, self.gone = set(broken), set(gone)

    def __len__(self):
        return SIZE

    def __getitem__(self, index):
        if index in self.gone:
            raise UserError(f"{index}.png is gone")
        buffer = io.BytesIO()
        Picture.fromarray(np.full((2, 2), index, np.uint8)).save(buffer, "PNG")
        data = buffer.getvalue()
        return {"image": data[: len(data) // 2] if index in self.broken else data, "name": f"{index}.png"}


def epoch(source, *, count=5, **options):
    """The examples of the first epoch, in batches of 8, and the iterator."""
    of_order = {name: options.pop(name) for name in ("process_index", "process_count", "batch_size") if name in options}
    order, readers = Order(**{"seed": 3, "batch_size": 8} | of_order), options.pop("readers", ())
    reading = Reading(**{"threads": 2} | options)
    batches = train_batches(source, Image(), (2, 2, 1), order, readers=readers, reading=reading)
    try:
        parts = [next(batches) for _ in range(count)]
    finally:
        batches.close()
    index = np.concatenate([part["index"] for part in parts])
    pixels = np.concatenate([part["x"][:, 0, 0, 0] for part in parts])
    np.testing.assert_allclose(pixels, index / 127.5 - 1, atol=1e-6)  # "index" tells the truth of what was read
    return index, batches


@pytest.mark.parametrize("options", [{}, {"cache": True}, {"threads": 0}, {"batch_size": 16, "count": 3}])
def test_the_next_readable_one_takes_the_place(options, capfd):
    source = Broken(broken=[7, 8, 39], gone=[20])
    index, batches = epoch(source, corrupt_limit=4, **options)
    asked = example_indices(3, SIZE, 0, len(index))
    instead = {7: 9, 8: 9, 39: 0, 20: 21}
    np.testing.assert_array_equal(index, [instead.get(i, i) for i in asked])
    assert set(batches.skipped.found) == {7, 8, 39, 20}
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 4, "each is named once, however often it is met"
    for name in ("7.png is not an image", "8.png", "39.png", "20.png is gone"):
        assert sum(f"skipped {name}" in line for line in said) == 1
    assert said[-1].endswith("(4 of 4)")


def test_two_processes_read_what_one_reads():
    source = Broken(broken=[7, 8, 39])
    whole, _ = epoch(source, corrupt_limit=3)
    halves = [epoch(source, corrupt_limit=3, process_index=i, process_count=2)[0].reshape(5, 4) for i in range(2)]
    np.testing.assert_array_equal(np.concatenate(halves, axis=1).ravel(), whole)


@pytest.mark.parametrize("cache", [False, True])
def test_one_too_many_ends_the_run(cache):
    with pytest.raises(UserError, match=r"png .*; it is corrupt example 3, and data.corrupt_limit=2"):
        epoch(Broken(broken=[7, 12, 30]), corrupt_limit=2, cache=cache)


def test_without_a_limit_the_first_ends_it_as_it_is():
    with pytest.raises(UserError, match=r"^7.png is not an image"):
        epoch(Broken(broken=[7]))


def test_where_all_are_corrupt_none_is_looked_for_without_end():
    with pytest.raises(UserError, match="is not an image"):
        epoch(Broken(broken=range(SIZE)), corrupt_limit=3)


def test_what_is_the_models_to_ask_for_is_not_skipped():
    """No caption anywhere is a mistake of the config."""
    with pytest.raises(UserError, match="has no caption"):
        epoch(Broken(), corrupt_limit=5, readers=[Captions(len)])


def test_a_negative_limit_is_refused():
    with pytest.raises(UserError, match="corrupt_limit=-1 must be at least 0"):
        epoch(Broken(), corrupt_limit=-1)


def test_the_replacement_wraps_around():
    assert corrupt.readable(3, 4, 1, lambda i: i) == (3, 3)

    def read(index):
        if index == 3:
            raise corrupt.CorruptError("3")
        return index

    assert corrupt.readable(3, 4, 1, read) == (0, 0)
