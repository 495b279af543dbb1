"""`diffusion-jax new`: own folders to a config that trains, with nothing about size, channels or network assumed."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image
from written_config import TWO_CORES, read

from diffusion_jax import experiment
from diffusion_jax.cli.main import main
from diffusion_jax.config import base
from diffusion_jax.runs.new.data_survey import survey
from diffusion_jax.runs.new.fitting import Machine
from diffusion_jax.runs.new.writing import config_text


def save(file, size, mode, seed=0):
    """Noise of (height, width) in a mode of Pillow's; RGB that is gray for "gray RGB"."""
    rng = np.random.default_rng(seed)
    channels = {"L": 1, "RGB": 3, "RGBA": 4, "gray RGB": 1, "I;16": 1}[mode]
    pixels = rng.integers(0, 256, (*size, channels)).astype(np.uint8)
    file.parent.mkdir(parents=True, exist_ok=True)
    if mode == "I;16":
        Image.fromarray(pixels[..., 0].astype(np.uint16) * 257).save(file)
    elif mode == "gray RGB":
        Image.fromarray(pixels.repeat(3, -1)).save(file)
    else:
        Image.fromarray(pixels[..., 0] if channels == 1 else pixels).save(file)


@pytest.fixture
def gray(tmp_path):
    for i in range(40):
        save(tmp_path / f"gray/{i}.png", (24, 40), "L", i)
    return tmp_path / "gray"


def test_forty_gray_pictures_keep_their_size_and_colour(gray, tmp_path, capsys):
    out = tmp_path / "my.py"
    assert main(["new", f"--data=folder:{gray}", f"--out={out}"]) == 0
    said = capsys.readouterr().out
    assert "images      40\n" in said
    assert "sizes       24 x 40\n" in said
    assert "images are as they are" in said
    config = read(out.read_text())
    assert config.data.shape == (24, 40, 1)
    assert config.train.batch_size == 32
    assert not config.model.num_classes
    assert not config.text
    assert config.model.channels < base().model.channels
    picture = Image.open(tmp_path / "my.png")
    assert picture.mode == "L"
    assert picture.width > 3 * 40
    assert "40 images are few" in out.read_text().split('"""')[1]
    before = out.read_text()
    assert main(["new", f"--data=folder:{gray}", f"--out={out}"]) == 2
    assert "is to be a new .py file" in capsys.readouterr().err
    assert out.read_text() == before


def test_classes_captions_and_a_broken_file_train_by_the_config(tmp_path, capsys):
    """RGBA folders of several sizes, with a .txt beside each image and one file that is none."""
    for i in range(12):
        name = tmp_path / f"data/{('circle', 'square')[i % 2]}/{i}"
        save(name.with_suffix(".png"), (16 + i, 16 + i), "RGBA", i)
        name.with_suffix(".txt").write_text(f"a shape of side {16 + i}")
    (tmp_path / "data/circle/bad.png").write_bytes(b"no image")
    (tmp_path / "data/circle/bad.txt").write_text("nothing")
    out = tmp_path / "my.py"
    assert main(["new", f"--data=folder:{tmp_path / 'data'}", f"--out={out}"]) == 0
    said = capsys.readouterr().out
    assert "classes     circle (6), square (6)" in said
    assert "broken      1\n" in said
    assert "bad.png is not an image" in said
    assert "'a shape of side 16'" in said
    assert experiment.model(read(out.read_text())).abstract  # the network as written fits, by its shapes alone
    small = ["model.channels=8", "model.groups=4", "model.heads=1", "model.multipliers=(1,)", "model.attention=()"]
    small += ["train.steps=1", "checkpoint.every=1", "sample.every=0", "log_every=1", "train.batch_size=8"]
    flags = [f"--config.{each}" for each in small]
    assert main(["train", f"--config={out}", f"--workdir={tmp_path / 'run'}", *flags]) == 0
    written = json.loads((tmp_path / "run/config.json").read_text())
    assert written["data"]["shape"][-1] == 4
    assert written["model"]["num_classes"] == 2
    assert json.loads((tmp_path / "run/classes.json").read_text())["names"] == ["circle", "square"]


def test_colour_and_transparency_are_those_of_pixels(tmp_path):
    found = {}
    for mode, channels in {"gray RGB": 1, "RGB": 3, "RGBA": 4, "I;16": 1}.items():
        for i in range(3):
            save(tmp_path / f"{mode}/{i}.png", (16, 16), mode, i)
        found[mode] = survey(f"folder:{tmp_path / mode}").fit(TWO_CORES)
        assert found[mode].shape[-1] == channels
    opaque = np.full((16, 16, 4), 255, np.uint8)
    opaque[..., 0] = 3
    (tmp_path / "opaque").mkdir()
    Image.fromarray(opaque).save(tmp_path / "opaque/0.png")
    assert survey(f"folder:{tmp_path / 'opaque'}").fit(TWO_CORES).shape[-1] == 3
    assert any("16 bits become 8" in reason for reason in found["I;16"].reasons)


@pytest.mark.parametrize("machine", [TWO_CORES, Machine("gpu", 8, "H100", 16)])
@pytest.mark.parametrize(
    "size", [(8, 8), (28, 28), (24, 40), (27, 31), (5, 200), (64, 64), (512, 384), (3000, 4000), (1, 1)]
)
def test_the_network_fits_any_size(gray, machine, size):
    """Both sides are divisible as the U-Net asks, the shape of the images is kept about, batches suit the devices."""
    found = dataclasses.replace(survey(f"folder:{gray}"), sizes={size: 40})
    chosen = found.fit(machine)
    height, width, _ = chosen.shape
    assert height % chosen.net.factor == 0
    assert width % chosen.net.factor == 0
    assert height * width <= max(128 * 128, 2 * size[0] * size[1], chosen.net.factor**2)
    assert chosen.batch_size % machine.devices == 0
    if min(size) >= 24:
        assert 0.7 < (height / width) / (size[0] / size[1]) < 1.4
    config = read(config_text(found, chosen, "my.py"))
    assert config.model.attention == (2 ** (len(chosen.net.multipliers) - 1),)


def test_a_text_in_the_data_cannot_leave_the_docstring(gray):
    found = survey(f"folder:{gray}")
    text = 'it\'s """ + bad\\n'
    hostile = dataclasses.replace(found, captions=(text,), classes={text: 20, "b": 20}, num_classes=2)
    config = read(config_text(hostile, hostile.fit(TWO_CORES), "my.py"))
    assert config.model.num_classes == 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--data=folder:nowhere", "--out=my.py"], "nowhere"),
        (["--data=folder:empty", "--out=my.py"], "holds no images"),
        (["--data=folder:bad", "--out=my.py"], "of 1 images none can be read"),
        (["--data=folder:bad", "--out=my.txt"], "is to be a new .py file"),
        (["--data=bad"], "new needs --data=folder:PATH and --out=FILE.py"),
        (["--data=bad", "--out=my.py"], "unknown data source 'bad'"),
        (["--data=digits", "--out=my.py", "--shape=8,8,1"], "--shape is of plain arrays, and digits holds images"),
        (["--data=digits", "--out=my.py", "--shape=8xx"], "--shape=8xx is to be whole numbers"),
    ],
)
def test_what_cannot_be_looked_at_is_one_sentence_and_writes_nothing(tmp_path, monkeypatch, capsys, flags, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/0.png").write_bytes(b"no image")
    assert main(["new", *flags]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.glob("my.*"))
