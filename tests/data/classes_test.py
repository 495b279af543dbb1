"""The numbers of classes: their order, and labels of one data set by the numbers of another's."""

import hashlib
import itertools
import json
import pickle

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.data import classes, transforms
from diffusion_jax.data.image_folder import image_folder
from diffusion_jax.errors import UserError


def write(folder, *names):
    """One gray image a class, whose value is the place of the class in names."""
    for i, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        Image.fromarray(np.full((2, 2), i, np.uint8)).save(folder / name / "0.png")
    return image_folder(str(folder), needs={"label"})


def values(source):
    """{gray: label}"""
    return {int(transforms.decode(e["image"], channels=1, name="")[0, 0, 0]): e["label"] for e in source}


def test_numbers_in_names_are_ordered_by_value():
    names = [str(n) for n in range(12, 0, -1)] + ["007", "7a", "a", "a10", "a2", "a2b1", "", "9" * 5000]
    ordered = classes.natural_order(names)
    assert [int(n) for n in ordered if n.isdigit() and len(n) < 3] == list(range(1, 13))
    assert ordered.index("a2") < ordered.index("a2b1") < ordered.index("a10")
    assert ordered[0] == ""
    assert ordered.index("9" * 5000) > ordered.index("12")
    for permuted in itertools.islice(itertools.permutations(names), 0, 5000, 700):
        assert classes.natural_order(permuted) == ordered


def test_class_folders_with_numbers_are_numbered_in_their_order(tmp_path):
    source = write(tmp_path, *map(str, range(1, 13)))
    assert source.class_names == tuple(map(str, range(1, 13)))
    assert values(source) == {i: i for i in range(12)}


def test_the_fingerprint_is_that_of_the_order_by_text(tmp_path):
    """By which the saved position of a run of an earlier version knows its data."""
    source = write(tmp_path, "1", "2", "10")
    content = json.dumps([["1/0.png", "10/0.png", "2/0.png"], [0, 1, 2], None, ["1", "10", "2"]])
    assert source.fingerprint == f"3 images, {hashlib.sha256(content.encode()).hexdigest()[:16]}"
    assert classes.renumbered(source, ("1", "10", "2"), 3, "x").fingerprint == source.fingerprint


def test_another_data_set_has_the_labels_of_the_names(tmp_path):
    trained = ("fox", "cafe\u0301", "cat")  # the accent as macOS writes it
    source = write(tmp_path / "a", "cat", "caf\u00e9")
    got = classes.renumbered(source, trained, 3, "it")
    assert (got.num_classes, got.class_names, values(got)) == (3, trained, {0: 2, 1: 1})
    assert values(pickle.loads(pickle.dumps(got))) == {0: 2, 1: 1}
    one = write(tmp_path / "b", "cat")  # a split with one of the classes alone
    assert values(classes.renumbered(one, trained, 3, "it")) == {0: 2}
    same = classes.renumbered(source, source.class_names, 2, "it")
    assert same is source


def test_a_class_that_was_not_trained_is_named(tmp_path):
    source = write(tmp_path, "dog", "fox", "elk")
    with pytest.raises(UserError, match="^split validation has classes elk, fox, .* it was trained on cat, dog; leave"):
        classes.renumbered(source, ("cat", "dog"), 2, "split validation")
    with pytest.raises(UserError, match=r"classes by name \(dog, elk, fox\), and the model was trained on numbers"):
        classes.renumbered(source, None, 3, "split validation")


def test_labels_that_are_numbers_are_their_own(tmp_path):
    write(tmp_path, "x")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "x/0.png", "label": 4}')
    source = image_folder(str(tmp_path))
    assert values(classes.renumbered(source, None, 7, "it")) == {0: 4}
    with pytest.raises(UserError, match="labels up to 4, and the model was trained on 4 classes, 0 to 3"):
        classes.renumbered(source, None, 4, "it")
