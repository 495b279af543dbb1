import io

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.errors import UserError
from diffusion_jax.report.figures import EXAMPLE_IMAGE, loss_by_time_png, schedules_png, strips_png


def decoded(png):
    image = Image.open(io.BytesIO(png))
    image.load()
    assert image.format == "PNG"
    return image


@pytest.mark.parametrize("channels", [1, 3])
def test_strips_show_each_image_at_its_scale(channels):
    """A tile is its image times its scale, enlarged; the rest of the picture is labels on gray."""
    x = np.random.default_rng(0).uniform(-1, 1, (2, 3, 8, 8, channels)).astype(np.float32)
    scale = np.array([[1, 0.5, 0.1], [2, 1, 0]], np.float32)
    picture = np.asarray(decoded(strips_png(x, scale, [0, 0.5, 1], ["first", "second"], "A title")))
    tiles = picture[-8 - 2 * 98 : -8, -8 - 3 * 98 : -8]
    for r in range(2):
        for k in range(3):
            tile = tiles[r * 98 : r * 98 + 96, k * 98 : k * 98 + 96]
            expected = np.rint((np.clip(x[r, k] * scale[r, k], -1, 1) + 1) * 127.5).astype(np.uint8)
            np.testing.assert_array_equal(tile[::12, ::12], np.broadcast_to(expected, (8, 8, 3)))


def test_strips_are_as_wide_as_their_title():
    x = np.zeros((1, 1, 8, 8, 1), np.float32)
    narrow, wide = (decoded(strips_png(x, np.ones((1, 1)), [1], [""], "title " * n)).width for n in (1, 40))
    assert wide > narrow + 500


def test_diverged_samples_are_said_to_be():
    with pytest.raises(UserError, match="NaN"):
        strips_png(np.full((1, 1, 8, 8, 1), np.nan), np.ones((1, 1)), [1], [""], "")


def test_schedules_of_any_range_are_drawn():
    t = np.linspace(0.01, 1, 100)
    vp = (np.cos(t * np.pi / 2), np.sin(t * np.pi / 2), -2 * np.log(np.tan(t * np.pi / 2).clip(1e-6, 1e6)))
    ve = (np.ones(100), 50 * t, -2 * np.log(50 * t))
    assert decoded(schedules_png(t, {"cosine": vp})).size > (900, 400)
    assert decoded(schedules_png(t, {"cosine": vp, "ve": ve})).size > (900, 400)


@pytest.mark.parametrize("n", [1, 4, 200])
def test_loss_by_time_of_short_and_long_runs_with_holes(n):
    losses = np.random.default_rng(0).uniform(0.1, 1, (n, 10))
    losses[n // 2, 3] = np.nan
    losses[:, 7] = np.nan
    assert decoded(loss_by_time_png(np.arange(1, n + 1) * 50, losses)).size > (900, 400)


def test_loss_by_time_bars_are_means_of_the_last_quarter(monkeypatch):
    """Steps 100 to 400: only the record of 400 lies beyond 300; a hole is left out of its mean."""
    from matplotlib.axes import Axes

    heights = []
    bar = Axes.bar
    monkeypatch.setattr(Axes, "bar", lambda self, x, h, **options: heights.append(h) or bar(self, x, h, **options))
    losses = np.array([[9.0, 9.0, 9.0], [9.0, 9.0, 9.0], [1.0, 4.0, np.nan], [3.0, np.nan, np.nan]])
    loss_by_time_png(np.array([100, 300, 390, 400]), losses)
    np.testing.assert_array_equal(heights[0], [2.0, 4.0, np.nan])


def test_the_example_image_comes_with_the_installation():
    assert Image.open(EXAMPLE_IMAGE).size == (512, 600)
