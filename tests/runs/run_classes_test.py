"""The classes of a run: by name in its workdir, so that every later reader means the same by a number."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from diffusion_jax import experiment
from diffusion_jax.config import base
from diffusion_jax.data.classes import Classes, known
from diffusion_jax.errors import UserError
from diffusion_jax.models.conditions.label import labels_for
from diffusion_jax.runs.evaluate.real_images import RealImages, plain
from diffusion_jax.runs.train import training_data
from diffusion_jax.runs.workdir import classes
from diffusion_jax.runs.workdir.mirror import Mirror
from diffusion_jax.runs.workdir.paths import Workdir

NUMBERS = tuple(map(str, range(1, 13)))
BY_TEXT = tuple(sorted(NUMBERS))


def write(folder, **grays):
    """One image a class, of its gray."""
    for name, gray in grays.items():
        (folder / name).mkdir(parents=True)
        Image.fromarray(np.full((8, 8), gray, np.uint8)).save(folder / name / "0.png")


def config_of(folder, count, **changes):
    config = base()
    config.data.shape = (8, 8, 1)
    config.data.source = f"folder:{folder}"
    config.model.update(channels=4, multipliers=(1,), blocks=1, attention=(), groups=2, num_classes=count)
    config.schedule, config.prediction = "cosine(steps=50)", "v"
    config.update_from_flattened_dict(changes)
    return config


@pytest.fixture
def numbered(tmp_path):
    """A config whose data has the folders 1 to 12, and a workdir."""
    write(tmp_path / "numbers", **{name: 20 * int(name) for name in NUMBERS})
    config, workdir = config_of(tmp_path / "numbers", 12), Workdir(tmp_path / "run")
    workdir.write_config(config)
    return config, workdir


def trained_before(workdir):
    """As a run of an earlier version leaves a workdir."""
    (workdir.checkpoints / "5").mkdir(parents=True)


def grays(source):
    images = {}
    for example in source:
        path = example["name"]
        images[int(np.asarray(Image.open(path))[0, 0])] = example["label"]
    return images


def test_a_new_run_numbers_in_natural_order_and_keeps_the_names(numbered):
    config, workdir = numbered
    source, found = training_data.opened(config, workdir)
    assert grays(source) == {20 * (i + 1): i for i in range(12)}
    classes.keep(workdir, found)
    assert json.loads(workdir.classes.read_text()) == {"format": "diffusion_jax classes 1", "names": list(NUMBERS)}
    read = classes.of_workdir(config, workdir)
    assert labels_for(np.arange(4), ["2", "10", "12", "none"], 12, read).tolist() == [1, 9, 11, 12]


def test_a_run_of_an_earlier_version_goes_on_in_its_own_order(numbered):
    config, workdir = numbered
    trained_before(workdir)
    read = classes.of_workdir(config, workdir)
    assert labels_for(np.arange(2), ["2", "11"], 12, read).tolist() == [2, 11]  # numbers are numbers, as before
    assert [read.name(i) for i in (0, 12)] == ["0", "none"]
    assert read.names == BY_TEXT
    source, found = training_data.opened(config, workdir)
    assert grays(source) == {20 * int(name): i for i, name in enumerate(BY_TEXT)}
    classes.keep(workdir, found)
    assert labels_for(np.arange(1), ["2"], 12, classes.of_workdir(config, workdir)) == BY_TEXT.index("2")
    again, _ = training_data.opened(config, workdir)
    assert (again.class_names, again.fingerprint) == (BY_TEXT, source.fingerprint)


def test_names_without_a_checkpoint_decide_nothing(numbered):
    config, workdir = numbered
    classes.keep(workdir, known(BY_TEXT, 12))
    source, found = training_data.opened(config, workdir)
    assert source.class_names == found.names == NUMBERS


def test_an_earlier_run_whose_data_is_gone_takes_numbers(tmp_path):
    workdir = Workdir(tmp_path / "run")
    trained_before(workdir)
    read = classes.of_workdir(config_of(tmp_path / "gone", 3), workdir)
    assert labels_for(np.arange(1), ["2"], 3, read) == 2
    with pytest.raises(UserError, match=r"--label=cat: this run .* did not keep .*gone.* give a number from 0 to 2"):
        labels_for(np.arange(1), ["cat"], 3, read)


@pytest.mark.parametrize(
    ("names", "text", "number"),
    [
        (("cat", "dog"), "dog", 1),
        (("cat", "dog"), "1", 1),
        (("dog", "7"), "7", 1),
        (None, "1", 1),
        (("a", "b\u00e9"), "be\u0301", 1),
    ],
)
def test_a_class_is_asked_for_by_name_or_where_no_name_is_a_number_by_number(names, text, number):
    assert labels_for(np.arange(1), [text], 2, known(names, 2)) == number


@pytest.mark.parametrize(
    ("names", "text", "message"),
    [
        (("cat", "dog"), "2", "--label is one of cat, dog, or none; got 2"),
        (("dog", "7"), "1", "--label is one of dog, 7, or none; got 1"),
        (("0", "1"), "2", "--label is a class from 0 to 1, or none; got 2"),
        (None, "cat", "--label is a class from 0 to 1, or none; got cat"),
    ],
)
def test_what_is_no_class_is_refused(names, text, message):
    with pytest.raises(UserError) as error:
        labels_for(np.arange(1), [text], 2, known(names, 2))
    assert str(error.value) == message


@pytest.fixture
def splits(tmp_path):
    """Trained on cat and dog; a split with dog and fox, and one with dog alone."""
    write(tmp_path / "set/train", cat=50, dog=90)
    write(tmp_path / "set/validation", dog=90, fox=130)
    write(tmp_path / "set/test", dog=90)
    return config_of(tmp_path / "set", 2), tmp_path


@pytest.mark.parametrize("recorded", [True, False])
def test_another_split_is_measured_by_the_names_of_the_training_data(splits, recorded):
    config, tmp_path = splits
    workdir = Workdir(tmp_path / "run")
    if recorded:
        classes.keep(workdir, training_data.opened(config, workdir)[1])
    trained_before(workdir)
    model = dataclasses.replace(experiment.model(config), classes=classes.of_workdir(config, workdir))
    dogs = RealImages(plain(config, "test", 1), 0, model)
    ((_, batch),) = dogs.batches()
    assert batch["label"].tolist() == [1]
    foxes = RealImages(plain(config, "validation", 1), 0, model)
    with pytest.raises(UserError, match="^split validation of folder:.* has class fox, .* it was trained on cat, dog"):
        next(foxes.batches())
    # What looks at no labels takes any images.
    assert len(RealImages(plain(config, "validation", 1), 0).source) == 2


def test_init_from_means_the_same_by_a_number(tmp_path):
    write(tmp_path / "first", cat=1, dog=2, fox=3)
    first = Workdir(tmp_path / "run")
    first.write_config(config_of(tmp_path / "first", 3))
    classes.keep(first, known(("fox", "cat", "dog"), 3))
    trained_before(first)
    write(tmp_path / "same", cat=1, dog=2, fox=3)
    write(tmp_path / "fewer", dog=2, fox=3)
    write(tmp_path / "others", ant=4, bee=5, dog=2)
    numbers = {}
    for name in ("same", "fewer", "others"):
        config = config_of(tmp_path / name, 3, init_from=str(first.root))
        numbers[name] = grays(training_data.opened(config, Workdir(tmp_path / "new"))[0])
    # cat 1, dog 2, fox 0; new classes take the places of those that are left out.
    assert numbers == {"same": {1: 1, 2: 2, 3: 0}, "fewer": {2: 2, 3: 0}, "others": {4: 0, 5: 1, 2: 2}}


def test_a_classifier_that_numbers_classes_in_another_order_guides_to_the_same_class():
    numbers = classes.same_order(known(("cat", "dog", "fox"), 3), known(("fox", "cat", "dog"), 3))
    logits = jnp.log(jnp.array([[0.5, 0.3, 0.2]]))

    class Network:
        def apply(self, params, x, t):
            return jnp.repeat(logits, len(x), axis=0)

    classifier = experiment.Classifier(Network(), {}, 3, (8, 8, 1), 1.0, numbers=numbers)
    log_prob = classifier.log_prob({}, jnp.arange(4), experiment.schedule("vp"))(
        jnp.zeros((4, 8, 8, 1)), jnp.full(4, 0.5)
    )
    np.testing.assert_allclose(np.exp(log_prob), [0.3, 0.2, 0.5, 1.0], rtol=1e-6)  # cat, dog, fox, none


def test_orders_are_compared_by_name():
    own = Classes(2, False, lambda: pytest.fail("read"))
    assert classes.same_order(own, own) is None  # both of earlier versions
    assert classes.same_order(known(("a", "b"), 2), known(("a", "b"), 2)) is None
    assert classes.same_order(known(("a", "b"), 2), Classes(2, False, lambda: ("b", "a"))) == (1, 0)
    with pytest.raises(UserError, match="a, b and a, c"):
        classes.same_order(known(("a", "b"), 2), known(("a", "c"), 2))


def test_a_class_more_or_fewer_than_the_model_has_is_named(numbered):
    config, workdir = numbered
    config.model.num_classes = 11
    with pytest.raises(UserError, match=r"model.num_classes=11, but .* has 12 classes: 1, 2, 3, "):
        training_data.opened(config, workdir)


def test_names_travel_with_a_mirror(numbered, tmp_path):
    config, workdir = numbered
    classes.keep(workdir, training_data.opened(config, workdir)[1])
    Mirror(f"file://{tmp_path}/mirror", workdir.root).begin()
    assert (tmp_path / "mirror/classes.json").read_bytes() == workdir.classes.read_bytes()


@pytest.mark.parametrize("text", ["", "[]", '{"format": "diffusion_jax classes 2", "names": ["a"]}'])
def test_names_that_are_damaged_are_named(numbered, text):
    config, workdir = numbered
    workdir.classes.write_text(text)
    with pytest.raises(UserError, match="classes.json does not hold the names of classes"):
        classes.of_workdir(config, workdir)
