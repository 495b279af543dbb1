"""What a model can be told: every condition keeps the protocol, and what each is made of."""

import dataclasses
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image as Picture

from configs import tiny
from diffusion_jax import experiment
from diffusion_jax.data import tokens
from diffusion_jax.data.pipeline import Order, train_batches
from diffusion_jax.data.readers import Field
from diffusion_jax.errors import UserError
from diffusion_jax.modalities import Image
from diffusion_jax.models.conditions import (
    CONDITIONS,
    BatchEntry,
    Caption,
    Condition,
    Label,
    RequestSetting,
    SampleRequest,
    requested,
)
from diffusion_jax.models.conditions.inpaint import Inpaint
from diffusion_jax.models.conditions.low_resolution import LowResolution
from diffusion_jax.models.conditions.semantic_map import SemanticMap
from diffusion_jax.models.conditions.size_and_crop import SizeAndCrop
from diffusion_jax.models.conditions.small_image import SmallImage
from diffusion_jax.models.text import transformer
from diffusion_jax.testing import check_condition
from diffusion_jax.train import sharding

SHAPE = (8, 8, 3)
SETTING = RequestSetting(np.arange(4, dtype=np.int32), SHAPE)


def png(values):
    file = io.BytesIO()
    Picture.fromarray(values.astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


@dataclasses.dataclass(frozen=True)
class Everything:
    """Ten pictures with all that a condition may read, and the fields `height`, a number, and `pose`, three of them."""

    num_classes = 4
    class_names = None
    fingerprint = "everything"

    def __len__(self):
        return 10

    def __getitem__(self, index):
        rng = np.random.default_rng(index)
        return {
            "image": png(rng.integers(0, 256, SHAPE)),
            "name": f"picture {index}",
            "label": index % 4,
            "caption": f"a picture of {index}, {'left' if index % 2 else 'bright'}",
            "map": png(rng.integers(0, 5, SHAPE[:2])),
            "height": index / 10,
            "pose": [index, 0.5, -index],
        }


def images(n=4, height=16, width=24, channels=3):
    return np.random.default_rng(0).uniform(-1, 1, (n, height, width, channels)).astype(np.float32)


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """name -> (a condition of each kind, a request for samples of it)."""
    root = tmp_path_factory.mktemp("asked")
    (root / "low.png").write_bytes(png(np.arange(48).reshape(4, 4, 3)))
    (root / "map.png").write_bytes(png(np.arange(64).reshape(8, 8) % 5))
    text = transformer(length=12, vocabulary=300, width=8, layers=1, heads=1)
    published = dataclasses.replace(
        text, params=text.network.init(jax.random.key(0), jnp.zeros((1, 12), int))["params"]
    )
    prompts = SampleRequest(prompts=["a picture"], negative_prompt="")
    return {
        "label": (Label(4), SampleRequest(labels=["1", "none"])),
        "caption": (Caption(text), prompts),
        "published caption": (Caption(published), prompts),
        "low_resolution": (LowResolution(2), SampleRequest(low_res=root / "low.png")),
        "noisy low_resolution": (LowResolution(2, 0.5, 0.1), SampleRequest(low_res=root / "low.png", augment=0.3)),
        "inpaint": (Inpaint(0.2), SampleRequest()),
        "small_image": (SmallImage(2), SampleRequest(low_res=root / "low.png", augment=0.1)),
        "map": (SemanticMap(5), SampleRequest(map=root / "map.png")),
        "size_and_crop": (SizeAndCrop(), SampleRequest(values={"size_and_crop": "9,8,1,0,8,8"})),
    }


KINDS = ["label", "caption", "published caption", "noisy low_resolution", *CONDITIONS]


@pytest.mark.parametrize("name", KINDS)
def test_every_condition_conforms(asked, name):
    condition, request = asked[name]
    tokenizer = tokens.train(["a picture of 3, left"] * 3, 300) if condition.name == "text" else None
    check_condition(condition, Everything(), request, SHAPE, tokenizer)


NUMBER = BatchEntry((), jnp.float32, 0, 1)


@dataclasses.dataclass(frozen=True)
class Height(Condition):
    """A condition that can be broken in one way or another."""

    field: str = "height"
    entry: BatchEntry = NUMBER
    negative: bool = False

    name = "height"
    levels = ("height",)

    def reader(self, tokenizer=None):
        return Field(self.field)

    def batch(self, shape):
        return {"height": self.entry}

    def entries(self, batch):
        return {"height": batch["height"]}

    def request(self, request, setting):
        return {"height": request.numbers("height", len(setting.seeds), 0, 1)[: 3 if self.negative else 4]}


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (Height(entry=BatchEntry((2,), jnp.float32)), "as `batch` says"),
        (Height(entry=BatchEntry((), jnp.int32)), "as `batch` says"),
        (Height(entry=BatchEntry((), jnp.float32, 0, 0.5)), "within 0 to 0.5"),
        (Height(negative=True), "a request gives what training gives"),
    ],
)
def test_the_suite_sees_what_is_wrong(broken, said):
    request = SampleRequest(values={"height": 0.5})
    check_condition(Height(), Everything(), request, SHAPE)
    with pytest.raises(AssertionError, match=said):
        check_condition(broken, Everything(), request, SHAPE)


def test_fields_of_ones_own_come_as_entries_and_wrong_ones_are_said():
    def first(*readers):
        batches = train_batches(Everything(), Image(), (8, 8, 3), Order(seed=0, batch_size=4), readers=readers)
        try:
            return next(batches)
        finally:
            batches.close()

    batch = first(Field("height"), Field("pose", (3,), "float64"))
    np.testing.assert_allclose(batch["height"], batch["index"] / 10)
    np.testing.assert_array_equal(batch["pose"], [[i, 0.5, -i] for i in batch["index"]])
    with pytest.raises(UserError, match=r"picture \d has a pose of shape \(3,\) .* expected numbers of shape \(2,\)"):
        first(Field("pose", (2,)))
    with pytest.raises(UserError, match="picture 0 has no depth, which the model is trained on"):
        first(Field("depth"))
    with pytest.raises(UserError, match="picture .* has a caption of shape"):
        first(Field("caption"))


def test_an_entry_of_a_batch_that_nothing_reads_is_named():
    config = tiny.get_config()
    config.model.update(multipliers=(1,), attention=())
    model = experiment.model(config)
    mesh = sharding.mesh(devices=jax.devices()[:1])
    trainee = experiment.trainee(config, model)
    state = experiment.abstract_state(config, trainee)
    step = experiment.train_step(config, trainee, mesh)
    batch = {"x": jax.ShapeDtypeStruct((8, 8, 8, 1), jnp.float32), "label": jax.ShapeDtypeStruct((8,), jnp.int32)}
    jax.eval_shape(step, state, batch, jax.random.key(0))
    with pytest.raises(UserError, match="nothing reads the entry 'depth' of a batch; what is trained reads label, x"):
        jax.eval_shape(step, state, batch | {"depth": batch["label"]}, jax.random.key(0))


def test_label_and_caption_are_left_out_together_and_another_by_itself():
    """By one draw of condition_dropout with the key itself; a condition of config.spatial by the key of its place."""
    config = tiny.get_config()
    config.data.shape = (8, 8, 3)
    config.text, config.spatial = (
        "transformer(length=4, vocabulary=300, width=8, layers=1, heads=1)",
        ("map(classes=2)",),
    )
    config.model.update(multipliers=(1,), attention=())
    model = experiment.model(config)
    n, key = 64, jax.random.key(5)
    batch = {"label": jnp.arange(n) % 10, "tokens": jnp.full((n, 4), 7), "map": jnp.zeros((n, 8, 8), jnp.int32)}
    cond = model.draw_cond(key, batch, {}, 0.5)
    out = np.asarray(jax.random.bernoulli(key, 0.5, (n,)))
    np.testing.assert_array_equal(np.asarray(cond["label"]) == 10, out)
    np.testing.assert_array_equal((np.asarray(cond["tokens"]) != 7).any(axis=1), out)
    own = jax.random.bernoulli(jax.random.split(jax.random.fold_in(key, 0))[1], 0.1, (n,))
    np.testing.assert_array_equal(np.asarray(cond["map"]).sum(axis=(1, 2, 3)) == 0, own)
    assert 0 < own.sum() < n
    null = model.null({name: jnp.asarray(a) for name, a in model.entries(batch).items()})
    assert np.all(np.asarray(null["label"]) == 10)
    np.testing.assert_array_equal(null["tokens"], np.broadcast_to(model.text.null, (n, 4)))
    assert np.asarray(null["map"]).sum() == n * 64  # which guidance leaves


def test_low_resolution_says_how_noisy_it_is():
    condition = LowResolution(factor=4, noise=0.5)
    x = images(2000, 4, 4, 1)
    clean = condition.entries({"x": jnp.asarray(x)})
    noisy = condition.augment(jax.random.key(0), clean)
    level = np.asarray(noisy["low_resolution_level"])
    assert level.min() >= 0
    assert level.max() < 0.5
    assert level.mean() == pytest.approx(0.25, abs=0.01)
    scale = np.sqrt(1 - level**2).reshape(-1, 1, 1, 1)
    z = (noisy["low_resolution"] - scale * clean["low_resolution"]) / level.reshape(-1, 1, 1, 1)
    assert float(jnp.mean(z)) == pytest.approx(0, abs=0.02)
    assert float(jnp.std(z)) == pytest.approx(1, abs=0.02)
    assert condition.levels == ("low_resolution_level",)
    assert not LowResolution(factor=4).levels


def test_inpainting_sees_the_mask_and_nothing_of_what_it_hides():
    condition = Inpaint()
    x, mask = images(), np.random.default_rng(1).random((4, 16, 24)) < 0.5
    entries = condition.entries({"x": jnp.asarray(x), "mask": jnp.asarray(mask)})
    np.testing.assert_array_equal(entries["mask"][..., 0], mask)
    np.testing.assert_array_equal(entries["known"], np.where(mask[..., None], 0, x))
    assert {name: a.shape[-1] for name, a in entries.items()} == condition.channels(3)


def test_a_map_is_one_channel_a_class():
    classes = np.random.default_rng(0).integers(0, 5, (2, 8, 8)).astype(np.int32)
    entries = SemanticMap(classes=5).entries({"map": jnp.asarray(classes)})
    np.testing.assert_array_equal(jnp.argmax(entries["map"], axis=-1), classes)
    np.testing.assert_array_equal(entries["map"].sum(axis=-1), 1)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: LowResolution(factor=1), "factor of at least 2"),
        (lambda: LowResolution(noise=1.0), r"noise in \[0, 1\)"),
        (lambda: Inpaint(dropout=1.0), r"inpaint takes a dropout in \[0, 1\)"),
        (lambda: SemanticMap(classes=0), "number of its classes"),
        (lambda: requested((Height(),), SampleRequest(), SETTING), "give --condition height=VALUE"),
        (lambda: requested((Height(),), SampleRequest(values={"height": "high"}), SETTING), "is a number; got 'high'"),
        (lambda: requested((Height(),), SampleRequest(values={"height": ["2"]}), SETTING), r"is in \[0, 1\]; got 2"),
        (
            lambda: requested((Height(),), SampleRequest(values={"width": 1}), SETTING),
            "no condition 'width' for --condition; it has height",
        ),
        (lambda: requested((Label(3),), SampleRequest(values={"label": 1}), SETTING), "'label' .*; it has none"),
        (lambda: requested((), SampleRequest(labels=["1"]), SETTING), "--label needs a class-conditional model"),
        (lambda: requested((), SampleRequest(prompts=[""]), SETTING), "--prompt needs a model that is told captions"),
        (lambda: requested((), SampleRequest(negative_prompt=""), SETTING), "--negative_prompt needs a model that is"),
        (lambda: requested((), SampleRequest(augment=0.5), SETTING), "--augment is of a super-resolution model"),
    ],
)
def test_what_cannot_be_is_said(make, said):
    with pytest.raises(UserError, match=said):
        make()


def test_values_of_a_condition_are_taken_in_turn():
    cond = requested((Height(),), SampleRequest(values={"height": ["0.1", "0.9"]}), SETTING)
    np.testing.assert_allclose(cond["height"], [0.1, 0.9, 0.1, 0.9])


@pytest.mark.parametrize(
    ("spatial", "said"),
    [
        (("map(classes=3)", "map(classes=2)"), "each spatial condition is given once"),
        (("nothing()",), "unknown condition .* choose from inpaint, low_resolution, map, size_and_crop, small_image"),
        (("diffusion_jax.data.readers.Field(name='x')",), "gives no diffusion_jax.models.conditions.Condition"),
    ],
)
def test_conditions_that_a_config_cannot_have_are_said(spatial, said):
    config = tiny.get_config()
    config.spatial = spatial
    with pytest.raises(UserError, match=said):
        experiment.model(config)


def test_conditions_of_one_entry_are_refused(monkeypatch):
    class Other(Height):
        name = "label"

    monkeypatch.setitem(CONDITIONS, "other", Other)
    config = tiny.get_config()
    config.spatial = ("other()",)
    with pytest.raises(UserError, match="condition 'label' has the name 'label', which is label's; rename it"):
        experiment.model(config)


@pytest.mark.parametrize(
    ("spatial", "said"),
    [("low_resolution(noise=0.2)", "has any number of levels between 0 and 1"), ("small_image()", "has 1000; give")],
)
def test_levels_that_are_no_rows_of_the_table_are_refused(spatial, said):
    config = tiny.get_config()
    config.data.shape, config.spatial, config.model.level_rows = (8, 8, 3), (spatial,), 350
    with pytest.raises(UserError, match=said):
        experiment.model(config)
