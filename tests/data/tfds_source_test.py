"""TFDS data sets without TensorFlow, and scikit-learn's digits."""

import importlib.resources
import io
import pickle
import shutil
import sys

import numpy as np
import pytest
import requests
import tensorflow_datasets as tfds
from PIL import Image
from sklearn.datasets import load_digits

from diffusion_jax.data import transforms
from diffusion_jax.data.sources import open_source
from diffusion_jax.data.tfds_source import SklearnDigits, digits, tfds_source
from diffusion_jax.errors import UserError


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return str(tmp_path_factory.mktemp("tfds"))


def decoded(example):
    return transforms.decode(example["image"], channels=1, name=example["name"])[..., 0]


def png(value):
    file = io.BytesIO()
    Image.fromarray(np.full((4, 6), value, np.uint8)).save(file, "PNG")
    return file.getvalue()


class Toy(tfds.core.GeneratorBasedBuilder):
    """Encoded images with two labels, one of which may be -1, TFDS's sign for unknown."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(4, 6, 1)),
            "mask": tfds.features.Image(shape=(4, 6, 1)),
            "label": tfds.features.ClassLabel(names=["a", "b", "c"]),
            "rest": tfds.features.ClassLabel(num_classes=2),
            "text": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(12), "test": self._generate_examples(3)}

    def _generate_examples(self, count):
        for i in range(count):
            yield i, {"image": png(i), "mask": png(100 + i), "label": i % 3, "rest": i % 3 - 1, "text": "x"}


class ToyTold(Toy):
    """Five captions for each image, as COCO has, and a semantic map."""

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(4, 6, 1)),
            "map": tfds.features.Image(shape=(4, 6, 1)),
            "captions": tfds.features.Sequence({"id": np.int64, "text": tfds.features.Text()}),
        }
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _generate_examples(self, count):
        for i in range(count):
            captions = [{"id": k, "text": f"{i} ½ {k}"} for k in range(5)]
            yield i, {"image": png(i), "map": png(50 + i), "captions": captions}


class ToyArrays(Toy):
    """Arrays, which TFDS encodes with TensorFlow, as its own MNIST and CIFAR-10 do."""

    def _generate_examples(self, count):
        yield 0, {"image": np.zeros((4, 6, 1), np.uint8), "mask": png(0), "label": 0, "rest": 0, "text": ""}


class ToyOffline(Toy):
    """A data set to download, on a machine without network."""

    def _split_generators(self, dl_manager):
        raise requests.ConnectionError("Failed to resolve 'example.org'")


class ToyLacking(Toy):
    """As TFDS's SVHN on a machine without SciPy."""

    def _split_generators(self, dl_manager):
        raise ModuleNotFoundError("No module named 'scipy.io'")


def test_digits_are_scikit_learns(data_dir):
    source, data = open_source("digits", data_dir=data_dir), load_digits()
    assert (len(source), source.num_classes, source.class_names) == (1797, 10, tuple("0123456789"))
    for i, example in enumerate(source):
        np.testing.assert_array_equal(decoded(example), np.floor(data.images[i] * 255 / 16 + 0.5))
        assert example["label"] == data.target[i]
    assert source[7]["name"] == "record 7 of sklearn_digits/1.0.0 train"


def test_digits_have_only_a_train_split(data_dir):
    with pytest.raises(UserError, match="'sklearn_digits' has no split 'test'; choose from train"):
        digits("test", data_dir=data_dir)


def test_digits_are_silent_and_built_once(tmp_path, capfd, monkeypatch):
    first = digits(data_dir=str(tmp_path))
    assert capfd.readouterr() == ("", "")
    monkeypatch.setattr(SklearnDigits, "_generate_examples", lambda self: pytest.fail("built again"))
    assert digits(data_dir=str(tmp_path)).fingerprint == first.fingerprint


def test_the_environment_says_where_data_sets_live(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert len(digits()) == 1797
    assert (tmp_path / "sklearn_digits/1.0.0/dataset_info.json").exists()


def test_another_process_may_build_digits_meanwhile(tmp_path, monkeypatch):
    generate = SklearnDigits._generate_examples
    won = []

    def overtaken(self):
        yield from generate(self)
        monkeypatch.setattr(SklearnDigits, "_generate_examples", generate)
        won.append(digits(data_dir=str(tmp_path)).fingerprint)

    monkeypatch.setattr(SklearnDigits, "_generate_examples", overtaken)
    source = digits(data_dir=str(tmp_path))
    assert won == [source.fingerprint]
    assert source[1796]["label"] == 8


def test_a_build_that_was_killed_does_no_harm(tmp_path):
    left = tmp_path / "sklearn_digits/incomplete.AB12CD_1.0.0"
    left.mkdir(parents=True)
    (left / "sklearn_digits-train.array_record-00000-of-00001").write_bytes(b"half a file")
    assert len(digits(data_dir=str(tmp_path))) == 1797


def test_a_folder_with_something_else_is_named(tmp_path):
    (tmp_path / "sklearn_digits/1.0.0").mkdir(parents=True)
    (tmp_path / "sklearn_digits/1.0.0/junk").write_text("junk")
    with pytest.raises(UserError, match=r"sklearn_digits/1.0.0 .*"):
        digits(data_dir=str(tmp_path))


def test_a_data_dir_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"'sklearn_digits' in .*/file/.*Not a directory"):
        digits(data_dir=str(tmp_path / "file"))


def test_any_data_set_of_encoded_images(data_dir):
    source = open_source("tfds:toy", data_dir=data_dir)
    assert (len(source), source.num_classes, source.class_names) == (12, 3, ("a", "b", "c"))
    assert [(decoded(e)[0, 0], e["label"]) for e in source] == [(i, i % 3) for i in range(12)]
    assert decoded(source[0]).shape == (4, 6)


def test_captions_and_maps_come_with_their_images(data_dir):
    toy, told = (tfds_source(name, data_dir=data_dir) for name in ("toy", "toy_told"))
    assert (toy[2]["caption"], "map" in toy[2]) == ("x", False)
    assert [told[i]["caption"] for i in range(12)] == [f"{i} ½ 0" for i in range(12)]
    assert [decoded({"image": e["map"], "name": ""})[0, 0] for e in told] == list(range(50, 62))
    assert "caption" not in open_source("digits", data_dir=data_dir)[0]


def test_captions_of_a_text_that_is_chosen(data_dir):
    with pytest.raises(UserError, match=r"'toy_told' has no text 'prompt'; its texts are captions"):
        open_source("tfds:toy_told", data_dir=data_dir, caption="prompt")
    assert open_source("tfds:toy_told", data_dir=data_dir, caption="captions")[3]["caption"] == "3 ½ 0"
    with pytest.raises(UserError, match="data.caption='prompt' is of data from folder:, parquet:, webdataset:"):
        open_source("digits", data_dir=data_dir, caption="prompt")


def test_splits_and_their_slices(data_dir):
    test = tfds_source("toy", "test", data_dir=data_dir)
    end = tfds_source("toy", "train[75%:]", data_dir=data_dir)
    assert [len(test), len(end)] == [3, 3]
    assert [e["label"] for e in end] == [0, 1, 2]
    assert decoded(end[0])[0, 0] == 9
    assert len({test.fingerprint, end.fingerprint, tfds_source("toy", data_dir=data_dir).fingerprint}) == 3


def test_keys_may_be_chosen(data_dir):
    source = tfds_source("toy", data_dir=data_dir, image_key="mask", label_key="rest")
    assert (decoded(source[1])[0, 0], source[1]["label"], source.num_classes) == (101, 0, 2)


def test_a_label_out_of_range_is_named(data_dir):
    source = tfds_source("toy", data_dir=data_dir, label_key="rest")
    with pytest.raises(
        UserError, match=r"^record 3 of toy/1.0.0 train has label -1, but a label must lie in \[0, 2\)$"
    ):
        source[3]


def test_a_pickled_source_reads_the_same(data_dir):
    source = tfds_source("toy", data_dir=data_dir)
    first = source[5]
    copy = pickle.loads(pickle.dumps(source))
    assert copy[5] == first
    assert (len(copy), copy.fingerprint) == (len(source), source.fingerprint)


def test_files_without_the_code_that_made_them(data_dir, tmp_path):
    tfds_source("toy", data_dir=data_dir)
    info = rename(shutil.copytree(f"{data_dir}/toy/1.0.0", tmp_path / "unheard_of/1.0.0"), "toy", "unheard_of")
    assert "unheard_of" in info.read_text()
    source = tfds_source("unheard_of", data_dir=str(tmp_path))
    assert [decoded(e)[0, 0] for e in source] == list(range(12))


def rename(folder, old, new):
    """Puts new for old in the names of the files and in dataset_info.json."""
    for file in list(folder.iterdir()):
        file.rename(folder / file.name.replace(old, new))
    info = folder / "dataset_info.json"
    info.write_text(info.read_text().replace(old, new))
    return info


def test_cifar10_as_tfds_defines_it_is_read_without_tensorflow(tmp_path, monkeypatch):
    # Its own generator needs TensorFlow to read the download and to encode; a machine with it writes what this writes.
    from tensorflow_datasets.image_classification.cifar import Cifar10

    pixels = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)

    def generate(self, dl_manager):
        def examples():
            for i, image in enumerate(pixels):
                file = io.BytesIO()
                Image.fromarray(image).save(file, "PNG")
                yield i, {"id": f"train_{i:05}", "image": file.getvalue(), "label": 9 - i}

        return {"train": examples()}

    with monkeypatch.context() as patch:
        patch.setattr(Cifar10, "_split_generators", generate)
        patch.setitem(sys.modules, "importlib_resources", importlib.resources)  # which TFDS needs to find checksums
        tfds_source("cifar10", data_dir=str(tmp_path))
    source = tfds_source("cifar10", data_dir=str(tmp_path))
    assert (len(source), source.num_classes) == (4, 10)
    read = {e["label"]: transforms.decode(e["image"], channels=3, name="") for e in source}
    for i in range(4):  # in a shuffled order
        np.testing.assert_array_equal(read[9 - i], pixels[i])


def test_unknown_names():
    with pytest.raises(
        UserError, match="unknown data source 'mnist'; write digits, shapes:SIZE,COUNT, tfds:NAME, folder:PATH"
    ):
        open_source("mnist")
    for spec in ("tfds", "tfds:", "folder:", "digits:8"):
        with pytest.raises(UserError, match=f"unknown data source '{spec}'"):
            open_source(spec)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cifar11", "TFDS has no data set 'cifar11'.*; did you mean .*cifar10"),
        ("qqqqqqqqqq", r"TFDS has no data set 'qqqqqqqqqq'.*; tfds.list_builders\(\) lists the names"),
        ("no name at all", "TFDS data set 'no name at all' can't be opened"),
        ("toy:9.9.9", "'toy:9.9.9' can't be opened: .*only: 1.0.0"),
        ("mnist/no_config", "'mnist/no_config' can't be opened: .*BuilderConfig no_config not found"),
    ],
)
def test_data_sets_that_tfds_does_not_have(data_dir, name, message):
    with pytest.raises(UserError, match=message) as caught:
        tfds_source(name, data_dir=data_dir)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "validation"}, "'toy' has no split 'validation'; choose from (test, train|train, test)"),
        ({"split": "train[a"}, "'toy' has no split"),
        ({"image_key": "photo"}, r"'toy' has no image 'photo'; its images are \['image', 'mask'\]"),
        ({"image_key": "label"}, "'toy' has no image 'label'"),
        ({"label_key": "text"}, r"'toy' has no class label 'text'; its class labels are \['label', 'rest'\]"),
    ],
)
def test_splits_and_keys_that_it_does_not_have(data_dir, options, message):
    with pytest.raises(UserError, match=message):
        tfds_source("toy", data_dir=data_dir, **options)


def test_tfrecord_files_are_refused(data_dir, tmp_path):
    tfds_source("toy", data_dir=data_dir)
    folder = shutil.copytree(f"{data_dir}/toy/1.0.0", tmp_path / "toy/1.0.0")
    rename(folder, "array_record", "tfrecord")
    with pytest.raises(UserError, match=r"'toy' lies in .*/toy/1.0.0 as tfrecord files.*--file_format=array_record"):
        tfds_source("toy", data_dir=str(tmp_path))


def test_what_only_tensorflow_can_prepare(data_dir):
    with pytest.raises(
        UserError, match=r"TFDS needs TensorFlow to prepare 'toy_arrays'; .*tfds build toy_arrays --file"
    ):
        tfds_source("toy_arrays", data_dir=data_dir)


def test_a_download_that_fails(data_dir):
    with pytest.raises(UserError, match=r"could not download or prepare 'toy_offline' in .*resolve 'example.org'"):
        tfds_source("toy_offline", data_dir=data_dir)


def test_a_package_that_tfds_lacks(data_dir):
    with pytest.raises(UserError, match="TFDS needs the package scipy to prepare 'toy_lacking'; install it"):
        tfds_source("toy_lacking", data_dir=data_dir)


def test_lost_files_are_named(data_dir, tmp_path):
    tfds_source("toy", data_dir=data_dir)
    folder = shutil.copytree(f"{data_dir}/toy/1.0.0", tmp_path / "toy/1.0.0")
    source = tfds_source("toy", data_dir=str(tmp_path))
    next(folder.glob("toy-train*")).unlink()
    with pytest.raises(UserError, match=r"record 2 of toy/1.0.0 train can't be read \(.*\); delete the data set"):
        source[2]
