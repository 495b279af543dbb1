"""Masks of unknown pixels, and semantic maps brought to size."""

import io

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.data import masks, transforms
from diffusion_jax.errors import UserError


def test_masks_are_a_function_of_seed_and_position():
    whole = masks.random_masks(3, 0, 60, (20, 28))
    parts = [masks.random_masks(3, first, count, (20, 28)) for first, count in ((0, 7), (7, 1), (8, 52))]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert (whole.dtype, whole.shape) == (bool, (60, 20, 28))
    assert (masks.random_masks(4, 0, 60, (20, 28)) != whole).any()
    assert len({mask.tobytes() for mask in whole}) > 50  # two halves may be one


@pytest.mark.parametrize("size", [(2, 2), (2, 7), (8, 8), (32, 48), (64, 64)])
def test_some_pixels_are_unknown_and_some_known(size):
    covered = masks.random_masks(0, 0, 600, size).mean(axis=(1, 2))
    assert covered.min() > 0
    assert covered.max() < 1
    assert 0.15 < covered.mean() < 0.6


def test_coverage_varies_and_every_pixel_is_hidden_and_shown():
    drawn = masks.random_masks(1, 0, 2000, (32, 32))
    covered = drawn.mean(axis=(1, 2))
    assert np.quantile(covered, 0.05) < 0.25
    assert np.quantile(covered, 0.95) > 0.5
    often = drawn.mean(axis=0)
    assert 0.1 < often.min() < often.max() < 0.7
    # No side is preferred: 5 standard errors of a fair coin.
    assert np.abs(often - often[::-1]).mean() < 5 * 0.5 / 2000**0.5
    assert np.abs(often - often.T).mean() < 5 * 0.5 / 2000**0.5


def test_sides_boxes_and_strokes_all_come():
    drawn = masks.random_masks(2, 0, 1000, (32, 32))
    rows, columns = drawn.any(axis=2), drawn.any(axis=1)
    rectangle = drawn.sum(axis=(1, 2)) == rows.sum(axis=1) * columns.sum(axis=1)
    side = rectangle & ((rows.all(axis=1)) | columns.all(axis=1))
    assert abs((~rectangle).mean() - 0.5) < 0.08
    assert abs((rectangle & ~side).mean() - 0.3) < 0.08
    for edge in (drawn[side][:, 0].all(1), drawn[side][:, -1].all(1), drawn[side][..., 0].all(1)):
        assert abs(edge.mean() - 0.25) < 0.12


def test_one_row_has_no_part_to_hide():
    with pytest.raises(UserError, match="sides of at least 2, not 1 x 8"):
        masks.random_masks(0, 0, 1, (1, 8))


def encoded(pixels):
    file = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("size", "new"), [((12, 20), (6, 6)), ((8, 8), (24, 16)), ((30, 10), (5, 5)), ((9, 7), (9, 7))]
)
def test_maps_are_cropped_as_images_are(size, new):
    for ramp in np.meshgrid(6 * np.arange(size[0]), 6 * np.arange(size[1]), indexing="ij"):
        ramp = ramp.astype(np.uint8)
        map = masks.read_map(encoded(ramp), size, new, name="x")
        assert (map.dtype, map.shape) == (np.int32, new)
        assert set(np.unique(map)) <= set(np.unique(ramp))
        # Bicubic reproduces a ramp off the border: the nearest pixel is half a pixel off at most.
        image = transforms.resize_crop(ramp[..., None], *new)[..., 0].astype(int)
        assert np.abs(map - image)[1:-1, 1:-1].max() <= 6 / 2 + 0.5


def test_classes_of_sixteen_bits_and_palettes_survive():
    wide = np.array([[0, 300], [40_000, 65_535]], np.uint16)
    np.testing.assert_array_equal(masks.read_map(encoded(wide), (2, 2), (2, 2), name="x"), wide)
    palette = Image.fromarray(np.array([[0, 3], [2, 1]], np.uint8), "P")
    palette.putpalette([9, 9, 9, 200, 0, 0, 0, 200, 0, 0, 0, 200])
    np.testing.assert_array_equal(masks.read_map(encoded(palette), (2, 2), (2, 2), name="x"), [[0, 3], [2, 1]])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"none", "the map of x is not an image of a known format"),
        (encoded(np.zeros((3, 2), np.uint8)), "the map of x is 2 x 3, but its image 2 x 2; draw it"),
        (encoded(np.zeros((2, 2, 3), np.uint8)), r"the map of x holds colours \(RGB\)"),
    ],
)
def test_what_is_no_map_is_named(data, message):
    with pytest.raises(UserError, match=message):
        masks.read_map(data, (2, 2), (2, 2), name="x")


def test_a_map_is_turned_upright_as_its_image_is():
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: to be turned clockwise by a quarter
    stored, file = np.array([[1, 2, 3], [4, 5, 6]], np.uint8), io.BytesIO()
    Image.fromarray(stored).save(file, "PNG", exif=exif)
    np.testing.assert_array_equal(masks.read_map(file.getvalue(), (3, 2), (3, 2), name="x"), np.rot90(stored, -1))


@pytest.mark.parametrize("size", [(50,), (2,), (6, 7, 8)])
def test_arrays_of_other_ranks_lose_a_box_or_a_side(size):
    drawn = masks.random_masks(0, 0, 400, size)
    hidden = drawn.reshape(400, -1)
    assert drawn.shape == (400, *size)
    assert hidden.any(axis=1).all()
    assert not hidden.all(axis=1).any()
    for axis in range(1, drawn.ndim):  # each is one block: along an axis, what is hidden is one run
        along = np.moveaxis(drawn, axis, -1).astype(int).reshape(-1, size[axis - 1])
        starts = (np.diff(along, axis=1, prepend=0) == 1).sum(axis=1)
        assert starts.max() == 1
    if size == (50,):  # gaps in the middle, starts and ends are all drawn
        first, last = hidden[:, 0], hidden[:, -1]
        for share in (~first & ~last, first, last):
            assert 0.1 < share.mean() < 0.6
