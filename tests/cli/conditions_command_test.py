"""Models told of captions, images and maps, and models of latents, as a user trains and samples them."""

import itertools
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.cli.main import main

CONFIG = """
from configs.tiny import get_config as tiny

TEXT = "transformer(length=16, vocabulary=300, width=16, layers=1, heads=2)"


def get_config(what):
    config = tiny()
    config.data.update(source="shapes:16,60", shape=(16, 16, 3), data_dir={data!r})
    config.model.update(num_classes=0, multipliers=(1,), attention=())
    config.train.update(steps=2, batch_size=8)
    config.checkpoint.every = 2
    config.sample.update(every=0, num=6, steps=3)
    if what == "low":  # with captions and classes, too
        config.text, config.spatial, config.model.num_classes = TEXT, ("low_resolution(factor=4, noise=0.3)",), 3
        config.sample.every = 2
    if what == "map":
        config.spatial = ("map(classes=4)",)
    if what == "autoencoder":
        config.task = "autoencoder"
        config.sample.every = 2
        config.autoencoder.update(
            channels=8, multipliers=(1, 2), blocks=1, groups=4, latent_channels=3, adversarial_start=1,
            mid_attention=False, discriminator_channels=32, discriminator_layers=1,
        )
    if what == "latent":
        config.latent, config.spatial = {autoencoder!r}, ("inpaint()",)
        config.sample.threshold = "none"
    if what == "classifier":
        config.task, config.model.num_classes, config.model.head_channels = "classifier", 3, 8
    if what == "plain":
        config.schedule = "cosine(steps=50)"
    return config
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a config file, the drawn shapes' data set, an image of a shape, its mask and its map."""
    home = tmp_path_factory.mktemp("home")
    (home / "shapes.py").write_text(CONFIG.format(data=str(home / "tfds"), autoencoder=str(home / "autoencoder")))
    rng = np.random.default_rng(0)
    arrays = {
        "image": rng.integers(0, 256, (16, 16, 3), np.uint8),
        "large": rng.integers(0, 256, (20, 24, 3), np.uint8),
        "mask": np.tile(np.where(np.arange(16) < 7, 255, 0).astype(np.uint8), (16, 1)),
        "low": rng.integers(0, 256, (4, 4, 3), np.uint8),
        "map": rng.integers(0, 4, (16, 16), np.uint8),
        "bad": rng.integers(3, 6, (16, 16), np.uint8),
    }
    for name, array in arrays.items():
        Image.fromarray(array).save(home / f"{name}.png")
    return home


@pytest.fixture(scope="module")
def trained(home):
    """what -> its workdir, trained once."""

    def train(what):
        root = home / what
        if not root.is_dir():
            assert main(["train", f"--config={home}/shapes.py:{what}", f"--workdir={root}"]) == 0
        return root

    return train


def sample(workdir, out, *flags):
    return main(["sample", f"--workdir={workdir}", f"--out={out}", "--num=3", *flags])


def images(out):
    return np.load(out / "samples.npz")["images"]


def test_a_model_told_of_captions_classes_and_a_small_image(trained, home, tmp_path):
    root = trained("low")
    assert (root / "tokenizer.json").is_file()
    assert Image.open(root / "samples/00000002.png").size > (60, 30)  # given, three samples, and the image
    told = [f"--low_res={home}/low.png", "--label=1", "--guidance=3.0"]
    outs = []
    for name, flags in {
        "red": ["--prompt=a small red circle"],
        "again": ["--prompt=a small red circle"],
        "blue": ["--prompt=a large blue square"],
        "negative": ["--prompt=a small red circle", "--negative_prompt=a large blue square"],
        "noisy": ["--prompt=a small red circle", "--augment=0.5"],
    }.items():
        assert sample(root, tmp_path / name, *told, *flags) == 0
        outs.append(images(tmp_path / name).astype(int))
    red, again, *others = outs
    np.testing.assert_array_equal(red, again)
    assert all((one != other).any() for one, other in itertools.combinations([red, *others], 2))
    record = json.loads((tmp_path / "red/manifest.json").read_text())
    assert record["asked"]["prompts"] == ["a small red circle"]
    assert Image.open(tmp_path / "red/given.png").size > (16, 16)


def test_prompts_from_a_file_and_a_cascade_from_a_folder(trained, home, tmp_path, capsys):
    """The second prompt is longer than the 16 tokens of the text encoder, which is said once and recorded."""
    root = trained("low")
    capsys.readouterr()
    (tmp_path / "prompts.txt").write_bytes(b"\xef\xbb\xbfa small red circle\n\na large blue square of QWXYZ\n")
    (tmp_path / "small").mkdir()
    for i in range(2):
        shutil.copy(home / "low.png", tmp_path / f"small/{i:06d}.png")
    out = tmp_path / "out"
    assert sample(root, out, f"--prompts={tmp_path}/prompts.txt", f"--low_res={tmp_path}/small") == 0
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["asked"]["prompts"] == ["a small red circle", "a large blue square of QWXYZ"]
    assert [cut["text"] for cut in manifest["cut"]] == ["a large blue square of QWXYZ"]
    assert "QWXYZ".endswith(manifest["cut"][0]["lost"][-3:])
    said = [line for line in capsys.readouterr().err.splitlines() if "longer than" in line]
    assert len(said) == 1
    assert "1 of 2 captions are longer than the 16 tokens" in said[0]
    assert repr(manifest["cut"][0]["lost"]) in said[0]


def test_a_model_told_of_a_map(trained, home, tmp_path):
    assert sample(trained("map"), tmp_path / "out", f"--map={home}/map.png", "--guidance=2") == 0
    assert images(tmp_path / "out").shape == (3, 16, 16, 3)


def test_latents_need_their_own_workdir_alone(trained, home, tmp_path):
    """The autoencoder and masks at once; what is known comes back exactly, at any size, decoded whole or in tiles."""
    trained("autoencoder")
    root = trained("latent")
    moved = tmp_path / "autoencoder"
    (home / "autoencoder").rename(moved)
    try:
        edit = [f"--init_image={home}/image.png"]
        assert sample(root, tmp_path / "painted", *edit, f"--mask={home}/mask.png") == 0
        given = np.asarray(Image.open(home / "image.png"))
        np.testing.assert_array_equal(images(tmp_path / "painted")[:, :, 7:], np.stack([given[:, 7:]] * 3))
        large = [f"--init_image={home}/large.png", "--expand=4,0,0,2"]
        assert sample(root, tmp_path / "wide", *large, "--num=1") == 0
        assert images(tmp_path / "wide").shape == (1, 22, 28, 3)
        assert sample(root, tmp_path / "tiled", *large, "--num=1", "--decode_tile=8") == 0
        whole, tiled = (images(tmp_path / name)[0].astype(int) for name in ("wide", "tiled"))
        for image in (whole, tiled):
            np.testing.assert_array_equal(image[:20, 4:], np.asarray(Image.open(home / "large.png")))
        assert 0 < np.abs(tiled - whole).mean() < 20  # a tile's norms see the tile alone
    finally:
        moved.rename(home / "autoencoder")


def test_an_autoencoder_keeps_the_scale_of_its_latents(trained):
    root = trained("autoencoder")
    meta = json.loads(next((root / "checkpoints/2").rglob("metadata")).read_text())
    assert meta["measured"]["latent_std"] > 0
    records = [json.loads(line) for line in (root / "metrics.jsonl").read_text().splitlines()]
    assert any("psnr" in record for record in records)


def test_a_classifier_guides_a_model_without_classes(trained, home, tmp_path):
    guide, plain = trained("classifier"), trained("map")
    flags = [f"--map={home}/map.png", "--label=1", f"--classifier={guide}"]
    assert sample(plain, tmp_path / "weak", *flags, "--classifier_scale=0") == 0
    assert sample(plain, tmp_path / "strong", *flags, "--classifier_scale=30") == 0
    assert (images(tmp_path / "weak") != images(tmp_path / "strong")).any()


@pytest.mark.parametrize(
    ("what", "flags", "said"),
    [
        ("low", ["--low_res={home}/low.png"], "told captions; give --prompt=TEXT"),
        ("low", ["--prompt=a", "--low_res={home}/image.png"], "is 16 x 16 pixels; this model enlarges 4 x 4"),
        ("low", ["--prompt=a"], "give --low_res=FILE"),
        ("low", ["--prompt=a", "--low_res={home}/none.png"], "neither an image nor a folder"),
        ("low", ["--prompts={home}/none.txt"], "there is no file"),
        ("low", ["--prompt=a", "--low_res={home}/low.png", "--augment=1"], "--augment is in [0, 1)"),
        ("low", ["--prompt=a", "--low_res={home}/low.png", "--negative_prompt=b"], "--guidance other than 1"),
        ("map", ["--map={home}/bad.png"], "has class 5, and the model knows 0 to 3"),
        ("map", ["--map={home}/image.png"], "a gray or palette PNG"),
        ("map", ["--map={home}/low.png"], "a gray or palette PNG"),
        ("map", ["--map={home}/map.png", "--prompt=a"], "--prompt needs a model that is told captions"),
        ("map", ["--map={home}/map.png", "--low_res={home}/low.png"], "this one takes --map"),
        ("map", ["--map={home}/map.png", "--classifier_scale=2"], "needs its --classifier=WORKDIR too"),
        ("map", ["--map={home}/map.png", "--classifier={home}/map"], "--classifier is the workdir of a classifier"),
        ("autoencoder", [], "samples are drawn from one of task diffusion"),
        ("latent", [], "give --init_image with --mask or --expand"),
        ("map", ["--map={home}/map.png", "--decode_tile=4"], "decode_tile is of a model of latents"),
        ("latent", ["--threshold=static"], "latents exceed; choose none"),
    ],
)
def test_what_does_not_fit_is_one_sentence(trained, home, tmp_path, capsys, what, flags, said):
    trained("autoencoder") if what == "latent" else None
    root = trained(what)
    capsys.readouterr()
    assert sample(root, tmp_path / "out", *(flag.format(home=home) for flag in flags)) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_run_can_start_from_anothers_parameters(trained, home, tmp_path, capsys):
    first = trained("map")
    again = [f"--config={home}/shapes.py:map", f"--workdir={tmp_path}/again", "--config.sample.every=0"]
    assert main(["train", *again, f"--config.init_from={first}"]) == 0
    assert f"starting with the averaged parameters of step 2 in {first}" in capsys.readouterr().out
    other = [*again[:1], f"--workdir={tmp_path}/other", f"--config.init_from={first}", "--config.model.channels=16"]
    assert main(["train", *other]) == 2
    assert "of another network" in capsys.readouterr().err
