import dataclasses
import pickle

import numpy as np
import pytest
from PIL import Image as Picture

from diffusion_jax.data.image_folder import image_folder
from diffusion_jax.data.pipeline import Order, train_batches
from diffusion_jax.data.precomputed import open_precomputed, write_precomputed
from diffusion_jax.data.readers import Masks
from diffusion_jax.errors import UserError
from diffusion_jax.modalities import Image

COUNT = 7


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Seven images, image i of one gray level i, its left half black."""
    root = tmp_path_factory.mktemp("images")
    for i in range(COUNT):
        pixels = np.full((4, 4), 30 * (i + 1), np.uint8)
        pixels[:, :2] = 0
        Picture.fromarray(pixels).save(root / f"{i}.png")
    return image_folder(str(root), "train")


def record(i, mirrored=False, dtype=np.float32):
    mean = np.full((2, 2, 3), i + 100 * mirrored, dtype) + np.arange(3, dtype=dtype) / 8
    return {"mean": mean, "logvar": -mean, "text_mask": np.arange(4) < i}


def write(folder, source, *, flip=False, dtype=np.float32, count=COUNT):
    records = [record(i, mirrored, dtype) for mirrored in ((False, True) if flip else (False,)) for i in range(count)]
    write_precomputed(
        folder, records, fingerprint=source.fingerprint, count=COUNT, flip=flip, weights={"autoencoder": "ab"}
    )
    return folder


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_arrays_come_back_at_any_place(tmp_path, source, dtype):
    found = open_precomputed(str(write(tmp_path / "a", source, dtype=dtype)))
    for opened in (found, pickle.loads(pickle.dumps(found))):
        read = opened.read(np.array([5, 0, 5]))
        assert {name: array.dtype for name, array in read.items()} == {
            "mean": np.float32,
            "logvar": np.float32,
            "text_mask": np.bool_,
        }
        for row, i in enumerate((5, 0, 5)):
            for name, array in record(i).items():
                np.testing.assert_array_equal(read[name][row], array)


def test_a_batch_has_the_arrays_of_the_examples_and_mirrorings_that_it_would_have(tmp_path, source):
    folder = write(tmp_path / "a", source, flip=True)
    like = (Image(), (4, 4, 1), Order(seed=1, batch_size=16, flip=True))
    with_pixels, with_arrays = (
        train_batches(source, *like, precomputed=found) for found in (None, open_precomputed(str(folder)))
    )
    pixels, arrays = next(with_pixels), next(with_arrays)
    with_pixels.close(), with_arrays.close()
    np.testing.assert_array_equal(pixels["index"], arrays["index"])
    assert "image" not in arrays
    mirrored = pixels["x"][:, 0, 0, 0] > -1  # the black half is on the right
    assert 0 < mirrored.sum() < 16
    np.testing.assert_array_equal(arrays["mean"][:, 0, 0, 0], arrays["index"] + 100 * mirrored)


def test_a_failed_writing_leaves_nothing(tmp_path, source):
    def records():
        yield record(0)
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        write_precomputed(
            tmp_path / "a", records(), fingerprint=source.fingerprint, count=COUNT, flip=False, weights={}
        )
    assert not list(tmp_path.iterdir())
    write(tmp_path / "a", source)
    with pytest.raises(UserError, match="exists already"):
        write(tmp_path / "a", source)


def test_what_does_not_belong_together_is_refused(tmp_path, source):
    order = Order(seed=1, batch_size=2)
    like = (Image(), (4, 4, 1))
    with pytest.raises(UserError, match="no precomputed arrays"):
        open_precomputed(str(tmp_path))
    write(tmp_path / "few", source, count=COUNT - 1)
    with pytest.raises(UserError, match="does not hold the 7 records"):
        open_precomputed(str(tmp_path / "few"))
    found = open_precomputed(str(write(tmp_path / "a", source)))
    with pytest.raises(UserError, match="no latents of mirror images"):
        train_batches(source, *like, dataclasses.replace(order, flip=True), precomputed=found)
    with pytest.raises(UserError, match="goes with an image"):
        train_batches(source, *like, order, precomputed=found, readers=[Masks()])
    (tmp_path / "other").mkdir()
    Picture.new("L", (4, 4)).save(tmp_path / "other/0.png")
    with pytest.raises(UserError, match="precompute them of this data"):
        train_batches(image_folder(str(tmp_path / "other"), "train"), *like, order, precomputed=found)
