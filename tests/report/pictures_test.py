import os

import ml_dtypes
import numpy as np
import pytest
from PIL import Image

from diffusion_jax.errors import UserError
from diffusion_jax.report import lettering
from diffusion_jax.report.pictures import (
    curve_png,
    grid,
    labelled_grid,
    labelled_rows,
    running_mean,
    save_png,
    to_uint8,
)


def random_images(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_to_uint8_inverts_the_scaling_of_every_pixel(dtype):
    pixels = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(to_uint8((pixels / 127.5 - 1).astype(dtype)), pixels)


def test_to_uint8_clips_rounds_and_keeps_the_shape():
    x = np.array([[-1e38, -7, -1, -1 + 0.6 / 127.5, 1 - 0.4 / 127.5, 1, 1.001, 1e38]], np.float32)
    np.testing.assert_array_equal(to_uint8(x), np.array([[0, 0, 0, 1, 255, 255, 255, 255]], np.uint8))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_to_uint8_rounds_half_precision_once(dtype):
    x = np.linspace(-1, 1, 2001).astype(dtype)
    exact = (x.astype(np.float64) + 1) * 127.5
    assert np.abs(to_uint8(x) - exact).max() <= 0.5


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_to_uint8_refuses_what_has_no_colour(value):
    with pytest.raises(UserError, match=r"25\.0%.*NaN or infinite; the network or the sampler has diverged"):
        to_uint8(np.array([0, 1, 2, value]))
    with pytest.raises(TypeError, match="uint8"):
        to_uint8(np.zeros(3, np.uint8))


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize(("n", "columns", "rows"), [(6, 3, 2), (7, 3, 3), (1, 1, 1), (2, 5, 1)])
def test_grid_places_each_image_and_fills_the_rest_with_background(n, columns, rows, channels):
    images = random_images(n, 4, 5, channels)
    picture = grid(images, columns, padding=3, scale=2)
    assert picture.shape == (3 + rows * 11, 3 + columns * 13, channels)
    rest = np.ones(picture.shape[:2], bool)
    for i, image in enumerate(images):
        top, left = 3 + i // columns * 11, 3 + i % columns * 13
        window = np.s_[top : top + 8, left : left + 10]
        np.testing.assert_array_equal(picture[window], np.kron(image, np.ones((2, 2, 1), np.uint8)))
        rest[window] = False
    background = np.unique(picture[rest].reshape(-1, channels), axis=0)
    assert len(background) == 1
    assert 50 < background[0, 0] < 230
    assert channels < 4 or background[0, 3] == 255


@pytest.mark.parametrize(("side", "scale"), [(8, 6), (28, 2), (32, 2), (48, 1), (64, 1), (256, 1)])
def test_grid_enlarges_small_images_until_they_can_be_seen(side, scale):
    assert grid(random_images(4, side, side, 1), padding=0).shape == (2 * side * scale, 2 * side * scale, 1)


@pytest.mark.parametrize(("n", "shape"), [(1, (1, 1)), (2, (1, 2)), (9, (3, 3)), (10, (3, 4)), (64, (8, 8))])
def test_grid_is_square_by_default(n, shape):
    assert grid(random_images(n, 1, 1, 1), padding=0, scale=1).shape[:2] == shape


@pytest.mark.parametrize("images", [np.zeros((2, 4, 4, 3)), random_images(4, 4, 3), random_images(0, 4, 4, 3)])
def test_grid_refuses_other_arrays(images):
    with pytest.raises(ValueError, match="uint8 images"):
        grid(images)


@pytest.mark.parametrize("channels", [1, 3])
def test_labelled_grid_is_the_grid_with_margins(channels):
    images = random_images(3, 2, 8, 8, channels)
    plain = np.broadcast_to(grid(images.reshape(6, 8, 8, channels), 2, scale=8), (200, 134, 3))
    np.testing.assert_array_equal(labelled_grid(images), plain)

    picture = labelled_grid(images, ["airplane", "β = 0.5", "a prompt " * 50], ["DDPM", "pneumonoultramicroscopic"])
    top, left = picture.shape[0] - 200, picture.shape[1] - 134
    np.testing.assert_array_equal(picture[top:, left:], plain)
    assert 20 < left < 200
    for row in range(3):  # a name stands beside its own row, and not only gray
        assert (picture[top + 2 + row * 66 :, :left][:64] < 100).any()
    for column in range(2):
        title = picture[:top, left + 2 + column * 66 :][:, :64]
        assert (title < 100).any()
        ink = np.nonzero((title < 100).any(axis=(0, 2)))[0]
        assert ink[0] + ink[-1] == pytest.approx(63, abs=3)  # centred, and so not running into its neighbour
    assert (picture[:, 0] > 100).all()


def test_labelled_grid_names_the_count_that_is_wrong():
    with pytest.raises(ValueError, match="3 row labels; got 2"):
        labelled_grid(random_images(3, 2, 4, 4, 1), ["a", "b"])


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 1), (5, 7, 3), (5, 7, 4)])
def test_png_round_trip(tmp_path, shape):
    image = random_images(*shape)
    save_png(tmp_path / "new" / "image.png", image)
    read = np.asarray(Image.open(tmp_path / "new" / "image.png"))
    np.testing.assert_array_equal(read.reshape(shape), image)
    assert os.listdir(tmp_path / "new") == ["image.png"]


def test_save_png_leaves_the_old_picture_where_it_cannot_write_the_new(tmp_path):
    path = tmp_path / "image.png"
    save_png(path, random_images(5, 7, 3))
    old = path.read_bytes()
    with pytest.raises(TypeError):
        save_png(path, random_images(5, 7, 3, 3))  # no picture has this shape
    with pytest.raises(TypeError, match="uint8"):
        save_png(path, np.zeros((5, 7, 3)))
    assert path.read_bytes() == old
    assert os.listdir(tmp_path) == ["image.png"]


NOISE = np.random.default_rng(0).gamma(20, 1 / 20, 1000)
CURVES = {
    "one": [{"step": 0, "loss": 1.0}],
    "two": [{"step": 0, "loss": 1.0}, {"step": 1_000_000, "loss": -0.5}],
    "many": [{"step": 50 * i, "loss": float((0.03 + np.exp(-i / 20)) * noise)} for i, noise in enumerate(NOISE)],
    "gaps": [{"step": i, "loss": [float("nan"), float("inf"), 1.0][min(i % 7, 2)]} for i in range(100)],
    "all nan": [{"step": i, "loss": float("nan")} for i in range(3)],
    "mixed": [{"step": 0, "fid": 300.0}, {"step": 1, "loss": 0.1}, {"step": 1, "fid": 200.0}],
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("records", CURVES.values(), ids=CURVES)
def test_curve_is_a_picture_of_readable_size(tmp_path, records):
    curve_png(tmp_path / "loss.png", records)
    with Image.open(tmp_path / "loss.png") as image:
        assert image.size == (960, 540)
        pixels = np.asarray(image.convert("RGB")).astype(int)
    plot = pixels[40:480, 100:950]
    drawn = (plot[..., 2] > plot[..., 0] + 20) | (plot[..., 0] > plot[..., 2] + 100)  # blue data or red ticks
    assert drawn.any()
    has_nonfinite = any(not np.isfinite(record.get("loss", 0)) for record in records)
    assert (plot[..., 0] > plot[..., 2] + 100).any() == has_nonfinite


def test_curve_without_the_metric_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no record holds 'loss'"):
        curve_png(tmp_path / "loss.png", [{"step": 0, "fid": 1.0}])


@pytest.mark.parametrize("slope", [-1, 1])
def test_curve_shows_the_data(tmp_path, slope):
    """The line's pixels lie on a line from corner to corner of the plot, which goes down where the loss does."""
    curve_png(tmp_path / "loss.png", [{"step": i, "loss": 2 + slope * i / 1000} for i in range(1000)])
    pixels = np.asarray(Image.open(tmp_path / "loss.png").convert("RGB")).astype(int)
    rows, columns = np.nonzero((pixels[..., 2] > pixels[..., 0] + 60) & (np.arange(540)[:, None] > 100))
    assert -slope * np.corrcoef(rows, columns)[0, 1] > 0.99
    assert np.ptp(rows) > 300
    assert np.ptp(columns) > 600


def test_running_mean_of_a_line_is_the_line_away_from_the_ends():
    line = np.arange(100.0)
    mean = running_mean(line, 6)
    np.testing.assert_allclose(mean[6:-6], line[6:-6])
    np.testing.assert_allclose(mean[0], line[:3].mean())
    np.testing.assert_allclose(mean[-1], line[-7:].mean())


def test_running_mean_leaves_nan_out_and_as_a_gap():
    values = np.random.default_rng(0).normal(size=50)
    values[[7, 20, 21, 22]] = np.nan
    mean = running_mean(values, 4)
    np.testing.assert_array_equal(np.isnan(mean), np.isnan(values))
    np.testing.assert_allclose(mean[19], np.nanmean(values[15:24]))


def test_running_mean_forgets_a_spike():
    values = np.ones(100)
    values[40] = 1e30
    mean = running_mean(values, 5)
    np.testing.assert_array_equal(np.nonzero(mean != 1)[0], np.arange(35, 46))


def test_a_label_writes_what_the_font_cannot_draw():
    """A missing glyph is drawn as the same box for every character; escapes tell them apart."""
    assert lettering.drawable("\u4e2d \U0001f680 \ufffe") == "\\u4e2d \\U0001f680 \\ufffe"
    assert lettering.drawable("Ωμέγα Привет é C:\\new") == "Ωμέγα Привет é C:\\new"
    images = random_images(1, 2, 8, 8, 1)
    drawn = [labelled_grid(images, rows=[text], columns=["", text]) for text in ("\u4e2d", "\u6587")]
    assert drawn[0].shape != drawn[1].shape or (drawn[0] != drawn[1]).any()


def test_a_label_of_escapes_alone_is_wrapped_between_them():
    font = lettering.font(12)
    lines = lettering.wrap("\u4e2d" * 9, font, 100, 9)
    assert "".join(lines) == "\\u4e2d" * 9
    assert all(line.startswith("\\u") and font.getlength(line) <= 100 for line in lines)


def coloured(r, k, h, w):
    """Images uint8 [R, K, H, W, 3], each of one colour of its own that neither names nor the background have."""
    images = np.zeros((r, k, h, w, 3), np.uint8)
    images[..., 0] = np.arange(r)[:, None, None, None]
    images[..., 1] = 100 + np.arange(k)[:, None, None]
    images[..., 2] = 255
    return images


def boxes(picture, r, k):
    """{(row, column): (top, bottom, left, right)} of the images of `coloured`, the ends excluded."""
    found = {}
    for row in range(r):
        for column in range(k):
            ys, xs = np.nonzero((picture == (row, 100 + column, 255)).all(axis=-1))
            found[row, column] = ys.min(), ys.max() + 1, xs.min(), xs.max() + 1
            assert len(ys) == (ys.max() + 1 - ys.min()) * (xs.max() + 1 - xs.min())
    return found


def test_rows_in_blocks_go_down_and_then_to_the_right():
    """Every image is at its place: its row's neighbours beside it, the next row below it or at the top of a block."""
    r, k = 14, 2
    picture = labelled_rows(coloured(r, k, 16, 16), [f"class {i}" for i in range(r)])
    found = boxes(picture, r, k)
    assert all(bottom - top == right - left == 64 for top, bottom, left, right in found.values())
    each = next(i for i in range(1, r) if found[i, 0][2] != found[0, 0][2])  # rows of a block
    assert 1 < each < r
    for row in range(r):
        top, _, left, _ = found[row, 0]
        assert top == 2 + row % each * 66
        assert left == found[row // each * each, 0][2]
        assert found[row, 1] == (top, top + 64, left + 66, left + 130)
        if row >= each:
            assert left > found[row - each, 1][3]


def test_a_name_in_a_block_stands_beside_its_own_row():
    """With one name in all the picture, the ink is left of that row's images, in its height."""
    r = 24
    for named in (0, 7, 23):
        picture = labelled_rows(coloured(r, 1, 8, 8), ["name" if i == named else "" for i in range(r)])
        assert picture.shape[1] > 4 * 64  # several blocks
        top, bottom, left, _ = boxes(picture, r, 1)[named, 0]
        ys, xs = np.nonzero((picture < 100).all(axis=-1))
        assert top <= ys.min() <= ys.max() < bottom
        assert left - 60 < xs.min() <= xs.max() < left


def test_blocks_are_labelled_grids_with_a_gap_between():
    images, names = coloured(11, 1, 8, 8), [f"class {i}" for i in range(11)]
    picture, left = labelled_rows(images, names), 0
    for start in range(0, 11, 4):
        block = labelled_grid(images[start : start + 4], names[start : start + 4])
        height, width, _ = block.shape
        np.testing.assert_array_equal(picture[:height, left : left + width], block)
        assert (picture[height:, left : left + width] == 200).all()
        assert (picture[:, left + width : left + width + 16] == 200).all()
        left += width + 16
    assert picture.shape[1] == left - 16


def test_one_block_is_the_labelled_grid():
    for shape in ((3, 4, 8, 8, 1), (10, 8, 8, 8, 3)):
        images, names = random_images(*shape), [f"class {i}" for i in range(shape[0])]
        np.testing.assert_array_equal(labelled_rows(images, names), labelled_grid(images, names))


@pytest.mark.parametrize("size", [(8, 8), (24, 40), (168, 240)])
@pytest.mark.parametrize(("r", "k"), [(12, 1), (16, 4), (20, 3), (40, 2), (100, 1)])
def test_a_picture_of_many_rows_has_about_the_shape_of_a_screen(r, k, size):
    height, width, _ = labelled_rows(coloured(r, k, *size), [f"class {i}" for i in range(r)]).shape
    assert 2 / 3 < width / height / (4 / 3) < 3 / 2


def test_labelled_rows_names_the_count_that_is_wrong():
    with pytest.raises(ValueError, match="3 rows takes 3 names; got 2"):
        labelled_rows(random_images(3, 2, 4, 4, 1), ["a", "b"])
