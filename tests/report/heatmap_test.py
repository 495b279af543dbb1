"""A heatmap: a cell a value, the best one framed."""

import io

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.report.heatmap import heatmap_png

FRAME = np.array([214, 39, 40])


def picture(values, axes, **options):
    data = heatmap_png(np.asarray(values, float), axes, "FD, n = 10", **options)
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


def framed(pixels):
    """The middle of what is framed, as fractions of height and width."""
    y, x = np.nonzero(np.abs(pixels - FRAME).sum(axis=2) < 30)
    return y.mean() / pixels.shape[0], x.mean() / pixels.shape[1]


@pytest.mark.parametrize(("higher", "left", "top"), [(False, True, True), (True, False, False)])
def test_the_best_cell_is_framed(higher, left, top):
    values = [[1.0, 2.0], [3.0, 4.0]]
    y, x = framed(picture(values, [("step", ["10", "20"]), ("guidance", ["1", "2"])], higher=higher))
    assert ((x < 0.5), (y < 0.5)) == (left, top)


def test_a_third_axis_makes_panels_and_one_axis_is_a_column():
    axes = [("step", ["10", "20"]), ("guidance", ["1", "2"]), ("ema", ["a", "b", "c"])]
    wide = picture(np.arange(12.0).reshape(2, 2, 3), axes)
    assert wide.shape[1] > 1.5 * picture(np.ones((2, 2)), axes[:2]).shape[1]
    assert picture([3.0, 1.0, 2.0], [("step", ["1", "2", "3"])]).shape[2] == 3
    y, _ = framed(picture([3.0, 2.0, 1.0], [("step", ["1", "2", "3"])]))
    assert y > 0.5
