"""Drawn shapes: their captions are true of their pixels, and the reader that says so is right."""

import io

import numpy as np
import pytest
from PIL import Image as Picture

from diffusion_jax.data import shape_reader, shapes, transforms
from diffusion_jax.data.pipeline import Order, train_batches
from diffusion_jax.data.readers import Maps
from diffusion_jax.data.sources import open_source
from diffusion_jax.errors import UserError
from diffusion_jax.modalities import Image

PICTURES = [shapes.picture("test", index) for index in range(500)]


@pytest.fixture(scope="module")
def images():
    return [shapes.draw(picture, 32)[0] for picture in PICTURES]


def noisy(image):
    noise = np.random.default_rng(image.astype(int).sum()).normal(0, 0.05, image.shape)
    return transforms.to_uint8(transforms.to_float(image) + noise)


def jpeg(image, **options):
    file = io.BytesIO()
    Picture.fromarray(image).save(file, "JPEG", **options)
    return np.asarray(Picture.open(file))


@pytest.mark.parametrize("change", [lambda image: image, noisy, lambda image: jpeg(image, quality=90, subsampling=0)])
def test_the_reader_agrees_with_what_was_drawn(images, change):
    right = [shape_reader.related(change(image), p.caption) for image, p in zip(images, PICTURES, strict=True)]
    assert np.mean(right) >= 0.99


def test_jpeg_with_half_as_many_colours_is_read_at_64():
    right = [shape_reader.matches(jpeg(shapes.draw(p, 64)[0], quality=90), p.caption) for p in PICTURES[:100]]
    assert np.mean(right) >= 0.99


def test_centres_are_those_of_the_boxes(images):
    for image, picture in zip(images, PICTURES, strict=True):
        seen = {(s.shape, s.colour): s.centre for s in shape_reader.read_picture(image)}
        for shape in picture.shapes:
            np.testing.assert_allclose(seen[shape.shape, shape.colour], (shape.x, shape.y), atol=0.5 / 32)


def swapped(word, words):
    return words[(words.index(word) + 1) % len(words)]


def test_wrong_captions_are_refused(images):
    for image, picture in list(zip(images, PICTURES, strict=True))[:200]:
        one = picture.shapes[0]
        true = picture.caption
        assert not shape_reader.matches(image, true.replace(one.colour, swapped(one.colour, list(shapes.COLOURS)), 1))
        assert not shape_reader.matches(image, true.replace(one.shape, swapped(one.shape, shapes.SHAPES), 1))
        if picture.relation is None:
            assert not shape_reader.matches(image, f"{true} left of a {one.colour} {one.shape}")
            continue
        assert not shape_reader.matches(image, true.split(f" {picture.relation}")[0])  # one of two
        for other in {"left of", "right of", "above", "below"} - {picture.relation}:
            caption = true.replace(picture.relation, other)
            assert shape_reader.matches(image, caption)
            assert not shape_reader.related(image, caption)


def test_what_is_no_shape_matches_nothing():
    gray = np.full((32, 32, 3), 90, np.uint8)
    assert shape_reader.read_picture(gray) == []
    bar = gray.copy()
    bar[14:18, 2:30] = shapes.COLOURS["red"]
    assert [(seen.shape, seen.colour) for seen in shape_reader.read_picture(bar)] == [(None, "red")]
    assert not shape_reader.matches(bar, "a large red square")
    with pytest.raises(UserError, match="'a red dog' is no caption of shapes"):
        shape_reader.matches(bar, "a red dog")


def test_captions_are_true_of_the_places():
    kinds, relations = set(), set()
    for picture in (shapes.picture("train", index) for index in range(2000)):
        one = picture.shapes[0]
        kinds.add((one.shape, one.colour, one.size))
        for shape in picture.shapes:
            assert shape.extent < min(shape.x, 1 - shape.x, shape.y, 1 - shape.y)
        if picture.relation is not None:
            relations.add(picture.relation)
            other = picture.shapes[1]
            axis, sign = {"left of": ("x", 1), "right of": ("x", -1), "above": ("y", 1), "below": ("y", -1)}[
                picture.relation
            ]
            gap = sign * (getattr(other, axis) - getattr(one, axis)) - one.extent - other.extent
            assert gap > 0.05, picture
    assert (len(kinds), len(relations)) == (36, 4)


def test_pixels_are_the_mean_of_their_area_and_maps_of_their_class():
    for picture in PICTURES[:20]:
        image, classes = shapes.draw(picture, 32)
        fine, fine_classes = shapes.draw(picture, 32 * 8)
        mean = fine.reshape(32, 8, 32, 8, 3).mean((1, 3))
        assert np.abs(image - mean).mean() < 1
        np.testing.assert_allclose(image, mean, atol=40)  # 4 x 4 points against 8 x 8, on an edge
        assert np.mean(classes == fine_classes[4::8, 4::8]) > 0.985
        assert set(np.unique(classes)) == {0, *(shapes.SHAPES.index(s.shape) + 1 for s in picture.shapes)}


def test_backgrounds_stay_in_range():
    for index in range(2000):
        gray, (across, down) = (p := shapes.picture("train", index)).gray, p.slope
        assert (abs(across) + abs(down)) / 2 < min(gray, 255 - gray)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("shapes"))
    return lambda spec, split="train": open_source(spec, split=split, data_dir=folder)


def test_the_source_holds_the_pictures(built):
    source = built("shapes:16,30")
    assert (len(source), source.class_names) == (30, shapes.SHAPES)
    for index in (0, 7, 29):
        picture, example = shapes.picture("train", index), source[index]
        image, classes = shapes.draw(picture, 16)
        np.testing.assert_array_equal(transforms.decode(example["image"], channels=3, name=""), image)
        np.testing.assert_array_equal(transforms.decode(example["map"], channels=1, name="")[..., 0], classes)
        assert (example["caption"], example["label"]) == (picture.caption, picture.label)
    test = built("shapes:16,30", "test")
    assert len(test) == 1000
    assert test[3]["caption"] == PICTURES[3].caption
    assert not {test[i]["image"] for i in range(1000)} & {source[i]["image"] for i in range(30)}


def test_a_batch_of_shapes_is_aligned(built):
    source = built("shapes:16,30")
    order = Order(seed=0, batch_size=30, flip=True)
    batches = train_batches(source, Image(), (16, 16, 3), order, readers=[Maps(4)])
    batch = next(batches)
    batches.close()
    for image, classes in zip(transforms.to_uint8(batch["x"]), batch["map"], strict=True):
        hue = np.ptp(image.astype(int), axis=2)
        assert hue[classes > 0].min() > 20 > np.median(hue[classes == 0])


@pytest.mark.parametrize("spec", ["shapes:a", "shapes:8,9,10", "shapes:4", "shapes:8,0", "shapes:-8"])
def test_sizes_that_are_none(built, spec):
    with pytest.raises(UserError, match="shapes"):
        built(spec)


def test_the_map_is_read_from_the_pixels():
    """Re-segmenting real pictures gives their own maps, but for pixels on the edges."""
    overlap = np.zeros((4, 2))
    for i in range(100):
        image, classes = shapes.draw(shapes.picture("test", i), 32)
        read = shape_reader.read_map(image)
        for k in range(4):
            overlap[k] += [((read == k) & (classes == k)).sum(), ((read == k) | (classes == k)).sum()]
    assert (overlap[:, 0] / overlap[:, 1]).min() > 0.93
