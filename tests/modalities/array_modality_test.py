"""Plain arrays: their statistics, their units and their pictures."""

import io
import pickle

import numpy as np
import pytest

from diffusion_jax.errors import UserError
from diffusion_jax.modalities import modality
from diffusion_jax.modalities.array import Array


class Held:
    """A source of arrays in memory."""

    num_classes = class_names = None
    modality, fingerprint = "array", "held"

    def __init__(self, arrays):
        self.arrays = arrays

    def __len__(self):
        return len(self.arrays)

    def __getitem__(self, index):
        return {"array": self.arrays[index], "name": f"array {index}"}


def drawn(shape=(700, 6, 2), dtype=np.float32):
    scale, shift = np.array([3.0, 0.01]), np.array([1e4, -2.0])
    return (np.random.default_rng(0).standard_normal(shape) * scale + shift).astype(dtype)


def test_mean_and_deviation_are_those_of_all_values_even_far_from_zero():
    values = drawn()
    kind = modality(Array().measured(Held(values), (6, 2)))
    exact = values.reshape(-1, 2).astype(np.float64)
    np.testing.assert_allclose(kind.mean, exact.mean(0), rtol=1e-6)
    np.testing.assert_allclose(kind.deviation, exact.std(0), rtol=1e-6)
    assert kind.complete
    assert kind.measured(Held(values * 2), (6, 2)) == modality(kind.measured(Held(values), (6, 2))).measured(
        Held(values), (6, 2)
    )  # what is known is not measured again


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int16])
def test_the_model_sees_unit_variance_and_samples_come_back_in_own_units(dtype):
    values = (
        drawn(dtype=dtype) if dtype != np.int16 else np.random.default_rng(0).integers(-900, 900, (500, 6, 2), dtype)
    )
    kind = modality(Array().measured(Held(values), (6, 2)))
    decoded = np.stack([kind.decode({"array": a, "name": ""}, (6, 2)) for a in values])
    x = kind.to_model(decoded)
    np.testing.assert_allclose(x.reshape(-1, 2).astype(np.float64).mean(0), 0, atol=1e-3)
    np.testing.assert_allclose(x.reshape(-1, 2).std(0), 1, atol=1e-3)
    np.testing.assert_allclose(kind.from_model(x), values.astype(np.float32), rtol=1e-6, atol=1e-3)
    assert pickle.loads(pickle.dumps(kind)) == kind


def test_a_file_of_a_sample_is_the_sample():
    values = drawn()[0]
    np.testing.assert_array_equal(np.load(io.BytesIO(Array().encode(values))), values)


@pytest.mark.parametrize(
    ("shape", "size"), [((5, 40, 2), (96, 160)), ((5, 16, 24, 1), (64, 96)), ((5, 8, 8, 8, 1), (64, 196))]
)
def test_arrays_of_each_rank_have_a_picture_that_follows_their_values(shape, size):
    values = np.random.default_rng(1).standard_normal(shape)
    tiles = Array().tiles(values)
    assert (tiles.shape, tiles.dtype) == ((5, *size, 3), np.uint8)
    assert len({tile.tobytes() for tile in tiles}) == 5
    np.testing.assert_array_equal(Array().tiles(3 * values + 7), tiles)  # the scale is the data's own


def test_a_line_goes_up_where_the_values_do():
    (tile,) = Array().tiles(np.linspace(0, 1, 50)[None, :, None])
    ink = 255 - tile[..., 0].astype(float)
    height = (ink * np.arange(96)[:, None]).sum(axis=0) / ink.sum(axis=0)  # of the line from above, by column
    np.testing.assert_allclose(height[2:-2], np.linspace(95, 0, 160)[2:-2], atol=1.5)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Array(mean=(0.0,), deviation=()), "as many numbers of mean as of deviation"),
        (lambda: Array(mean=(0.0,), deviation=(0.0,)), "each deviation is above 0"),
        (
            lambda: Array(mean=(0.0,) * 2, deviation=(1.0,) * 2).check_shape((8, 8, 3)),
            "has 3 channels, and data.modality",
        ),
        (lambda: Array().check_shape((8,)), "1 to 3 sides and the channels"),
        (lambda: Array().check_shape((8,) * 5), "1 to 3 sides and the channels"),
        (lambda: Array().measured(Held(np.ones((9, 4, 2))), (4, 2)), "channel 0 of the data is 1 everywhere"),
        (lambda: Array().measured(Held(np.full((9, 4, 1), np.nan)), (4, 1)), "array 0 has values that are NaN"),
        (lambda: Array().measured(Held(np.ones((9, 4, 1))), (5, 1)), r"shape \(4, 1\), and data.shape is \(5, 1\)"),
        (lambda: Array().decode({"image": b"", "name": "x.png"}, (4, 1)), "x.png has no array"),
        (lambda: Array(mean=(0.0,), deviation=(1.0,)).from_model(np.full((1, 2, 1), np.inf)), "NaN or infinite"),
        (lambda: modality("volume"), "unknown modality 'volume'; choose from array, "),
    ],
)
def test_what_cannot_be_is_said(make, said):
    with pytest.raises(UserError, match=said):
        make()
