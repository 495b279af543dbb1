"""Buckets: the sizes that batches may have, the size of each image, and what the headers of images say."""

import itertools
import math
import zipfile

import numpy as np
import pytest
from PIL import Image as Picture

from diffusion_jax.data.buckets import LONGEST, bucket_sizes, bucketed
from diffusion_jax.data.example import Blocks
from diffusion_jax.data.image_sizes import image_ratios
from diffusion_jax.data.sources import open_source
from diffusion_jax.errors import UserError


@pytest.mark.parametrize(
    ("height", "width", "unit"), [(64, 64, 8), (32, 32, 1), (48, 80, 4), (1024, 1024, 64), (512, 768, 64), (24, 48, 8)]
)
def test_sizes_fill_the_area_and_are_all_that_do(height, width, unit):
    """By trying every pair of sides: those within the area to which no side can be added a unit."""
    found = bucket_sizes(height, width, unit)
    sides = range(unit, height * width // unit + 1, unit) if unit > 1 else range(1, height * width + 1)
    sides = [side for side in sides if side <= LONGEST * max(height, width)]
    wanted = [
        (h, w)
        for h, w in itertools.product(sides, sides)
        if h * w <= height * width < min((h + unit) * w, h * (w + unit)) and 1 / LONGEST <= h / w <= LONGEST
    ]
    assert list(found) == wanted
    assert (height, width) in found
    if height == width:
        assert {(w, h) for h, w in found} == set(found)


def test_the_sizes_of_64_by_units_of_8_are_known():
    assert bucket_sizes(64, 64, 8) == ((48, 80), (56, 72), (64, 64), (72, 56), (80, 48))


def test_a_long_size_that_is_asked_for_is_there_all_the_same():
    assert (32, 128) in bucket_sizes(32, 128, 8)


@pytest.fixture
def ratios():
    return np.exp(np.random.default_rng(0).uniform(-1.2, 1.2, 500))


def test_an_image_goes_to_the_nearest_size(ratios):
    sizes = bucket_sizes(64, 64, 8)
    found = bucketed(ratios, sizes, 2)
    assert found.sizes == sizes
    for ratio, number in zip(ratios, found.numbers, strict=True):
        apart = [abs(math.log(ratio / (h / w))) for h, w in sizes]
        assert apart[number] == min(apart)
    assert found.counts == tuple((found.numbers == k).sum() for k in range(len(sizes)))


def test_what_is_told_of_cropping_is_what_covering_crops(ratios):
    """An image of ratio r and area 1 that is scaled to cover h x w shows h w / scale^2 of itself."""
    found = bucketed(ratios, bucket_sizes(64, 64, 8), 2)
    shown = []
    for ratio, number in zip(ratios, found.numbers, strict=True):
        h, w = found.sizes[number]
        scale = max(h / math.sqrt(ratio), w * math.sqrt(ratio))
        shown.append(h * w / scale**2)
    assert found.least_kept == pytest.approx(min(shown))


def test_a_size_with_less_than_a_batch_gives_its_images_to_the_nearest(ratios):
    ratios = np.concatenate([ratios[np.abs(np.log(ratios)) < 0.4], [1.7, 1.8, 0.6]])
    every = bucketed(ratios, bucket_sizes(64, 64, 8), 1)
    assert min(every.counts) < 4
    found = bucketed(ratios, bucket_sizes(64, 64, 8), 4)
    assert min(found.counts) >= 4
    assert sum(found.counts) == len(ratios)
    assert set(found.sizes) == {s for s, count in zip(every.sizes, every.counts, strict=True) if count >= 4}
    for ratio, number in zip(ratios, found.numbers, strict=True):
        apart = [abs(math.log(ratio / (h / w))) for h, w in found.sizes]
        assert apart[number] == min(apart)


def test_where_no_size_has_a_batch_the_largest_takes_all():
    found = bucketed(np.array([1.0, 1.7, 1.6, 1.65, 0.6]), bucket_sizes(64, 64, 8), 100)
    assert found.sizes == ((80, 48),)
    assert found.counts == (5,)


def test_the_digest_is_of_sizes_and_numbers(ratios):
    sizes = bucket_sizes(64, 64, 8)
    first = bucketed(ratios, sizes, 1)
    assert first.digest == bucketed(ratios.copy(), sizes, 1).digest
    others = [bucketed(ratios, bucket_sizes(128, 128, 16), 1), bucketed(ratios[::-1], sizes, 1)]
    assert first.digest not in [other.digest for other in others]


def test_the_sentence_lists_sizes_by_their_images():
    found = bucketed(np.array([1.0, 1.0, 1.0, 80 / 48]), bucket_sizes(64, 64, 8), 1)
    assert found.sentence() == "to 2 sizes by shape: 64 x 64 (3), 80 x 48 (1)"
    found = bucketed(np.array([1.0, 4.0]), bucket_sizes(64, 64, 8), 1)
    assert found.sentence().endswith(", at least 42% of each picture")


def write(folder):
    """A PNG of 40 x 60, a JPEG that is turned to 60 x 40, a camera's with a long header, a broken file."""
    rng = np.random.default_rng(0)
    turned, long = Picture.Exif(), Picture.Exif()
    turned[0x0112], long[0x0112], long[0x010E] = 6, 6, "a" * 30_000
    noise = Picture.fromarray(rng.integers(0, 255, (40, 60, 3), np.uint8))
    folder.mkdir()
    noise.save(folder / "0.png")
    noise.save(folder / "1.jpg", exif=turned)
    noise.save(folder / "2.jpg", exif=long)
    (folder / "3.png").write_bytes(b"no image")
    Picture.new("L", (30, 30)).save(folder / "4.webp")
    with zipfile.ZipFile(f"{folder}.zip", "w") as archive:
        for path in sorted(folder.iterdir()):
            archive.write(path, path.name)
    return folder


def test_ratios_are_those_of_upright_images(tmp_path):
    folder = write(tmp_path / "own")
    for path in (folder, f"{folder}.zip"):
        found = image_ratios(open_source(f"folder:{path}"), unknown=7.0)
        np.testing.assert_allclose(found, [40 / 60, 60 / 40, 60 / 40, 7.0, 1.0])


def test_of_a_header_no_more_is_read_than_it_takes(tmp_path, monkeypatch):
    source = open_source(f"folder:{write(tmp_path / 'own')}")
    asked, read = [], type(source).read_head
    monkeypatch.setattr(
        type(source), "read_head", lambda self, index, most: asked.append((index, most)) or read(self, index, most)
    )
    image_ratios(source, unknown=1.0)
    assert sorted(asked) == [(0, 4096), (1, 4096), (2, 4096), (2, 131072), (3, 4096), (3, 131072), (4, 4096)]


def test_a_source_that_reads_blocks_is_refused(tmp_path):
    source = open_source(f"folder:{write(tmp_path / 'own')}")
    object.__setattr__(source, "blocks", Blocks((5,), (100,), 50))
    with pytest.raises(UserError, match="^images in buckets are read one by one, and this source reads whole blocks"):
        image_ratios(source, unknown=1.0)
