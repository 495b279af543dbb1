"""Samples of another size than a model was trained with: `sample --size=WIDTHxHEIGHT`, `load(w).sample(size=...)`."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from random_workdir import write

import diffusion_jax as dj
from diffusion_jax import config as configs
from diffusion_jax import experiment
from diffusion_jax.cli.main import main
from diffusion_jax.errors import UserError
from diffusion_jax.models.conditions import RequestSetting, SampleRequest, requested
from diffusion_jax.models.latent import Autoencoder
from diffusion_jax.models.sizing import resized
from diffusion_jax.nets.autoencoder import AutoencoderKL


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("size") / "run"
    write(root, "diffusion")
    return root


@pytest.fixture(scope="module")
def trained_so(root, tmp_path_factory):
    """A run with the same parameters whose data are 16 high and 24 wide."""
    other = shutil.copytree(root, tmp_path_factory.mktemp("size") / "other")
    config = json.loads((other / "config.json").read_text())
    config["data"]["shape"] = [16, 24, 1]
    (other / "config.json").write_text(json.dumps(config))
    return other


def test_a_size_draws_what_a_run_of_that_size_draws(root, trained_so, tmp_path):
    flags = ["--num=2", "--label=3", "--seed=5"]
    assert main(["sample", f"--workdir={root}", f"--out={tmp_path}/a", *flags, "--size=24x16", "--save_noise"]) == 0
    assert main(["sample", f"--workdir={trained_so}", f"--out={tmp_path}/b", *flags]) == 0
    a, b = (np.load(tmp_path / name / "samples.npz")["images"] for name in "ab")
    assert a.shape == (2, 16, 24, 1)
    np.testing.assert_array_equal(a, b)
    assert Image.open(tmp_path / "a/000000.png").size == (24, 16)
    manifest = json.loads((tmp_path / "a/manifest.json").read_text())
    assert (manifest["size"], manifest["shape"]) == ("24x16", [16, 24, 1])
    # The noise of this size draws them again, and is refused at the model's own.
    assert np.load(tmp_path / "a/noise.npy").shape == (2, 16, 24, 1)
    again = [*flags[:2], f"--noise={tmp_path}/a/noise.npy"]
    assert main(["sample", f"--workdir={root}", f"--out={tmp_path}/c", *again, "--size=24x16"]) == 0
    np.testing.assert_array_equal(np.load(tmp_path / "c/samples.npz")["images"], a)
    assert main(["sample", f"--workdir={root}", f"--out={tmp_path}/d", *again]) == 2


def test_python_draws_the_same(root, trained_so):
    loaded = dj.load(root)
    wide = loaded.sample(2, labels=3, size=(24, 16))
    np.testing.assert_array_equal(wide, dj.load(trained_so).sample(2, labels=3))
    assert loaded.sample(2, labels=3).shape == (2, 8, 8, 1)  # its own size again
    with pytest.raises(UserError, match="^size is a width and a height in pixels"):
        loaded.sample(size=(24.5, 16))


@pytest.mark.parametrize("text", ["24", "24x", "0x16", "24X16", "-8x8", "24x16x3", "wide"])
def test_another_text_is_one_sentence(root, tmp_path, capsys, text):
    assert main(["sample", f"--workdir={root}", f"--out={tmp_path}/a", "--num=1", f"--size={text}"]) == 2
    said = capsys.readouterr().err
    assert said == f"diffusion-jax: --size is WIDTHxHEIGHT in pixels, as in 768x512; got {text}\n"


def model(shape=(32, 32, 3), name="unet", spatial=(), latent=None, **options):
    config = configs.base(name)
    config.data.shape = shape
    config.spatial = spatial
    config.model.update(options)
    config.latent = "somewhere" if latent else ""
    return experiment.model(config, latent)


UNET = {"channels": 8, "multipliers": (1, 1, 1), "blocks": 1, "attention": (), "groups": 4}
DIT = {"name": "dit", "width": 16, "depth": 1, "heads": 2, "patch": 4}


def test_sides_are_multiples_of_all_factors():
    latent = Autoencoder(AutoencoderKL(channels=4, multipliers=(1, 1), blocks=1, groups=2), {}, 1.0)
    for options, unit in (
        ({}, 4),
        ({"patch": 2}, 8),
        ({"latent": latent}, 8),
        ({"spatial": ("low_resolution(factor=16)",)}, 16),
        ({"shape": (48, 48, 3), "spatial": ("low_resolution(factor=3)",)}, 12),
    ):
        found = model(**UNET | options)
        assert resized(found, 5 * unit, 3 * unit).shape == (3 * unit, 5 * unit, 3)
        near = f"multiples of {unit}; the nearest that fits is --size={5 * unit}x{unit}$"
        with pytest.raises(UserError, match=near):
            resized(found, 5 * unit, unit - 1)


def test_models_of_one_size_say_so():
    text = "transformer(layers=1, heads=2, width=8, length=4)"
    config = configs.base()
    config.data.shape, config.text = (32, 32, 3), text
    config.model.update(UNET | {"attention": (4,), "heads": 1, "places": True})
    for found, name in ((model(**DIT), "DiT"), (experiment.model(config), "UNet")):
        assert resized(found, 32, 32) is found
        with pytest.raises(UserError, match=rf"--size=64x32: this model draws 32x32 alone, as its network \({name}\)"):
            resized(found, 64, 32)
    with pytest.raises(UserError, match="draws arrays of shape 64 x 1, and no other"):
        resized(model(shape=(64, 1), **UNET), 64, 32)


@pytest.mark.parametrize("low", [(8, 4), (16, 16)])
def test_a_super_resolution_model_is_given_an_image_smaller_by_its_factor(tmp_path, low):
    found = resized(model(**UNET | {"spatial": ("low_resolution(factor=2)",)}), 16, 8)
    Image.new("RGB", low, (200, 10, 90)).save(tmp_path / "low.png")
    request, setting = SampleRequest(low_res=tmp_path / "low.png"), RequestSetting(np.arange(2), found.shape)
    if low == (8, 4):
        assert requested(found.conditions, request, setting)["low_resolution"].shape == (2, 8, 16, 3)
    else:
        with pytest.raises(UserError, match="this model enlarges 4 x 8 to 8 x 16"):
            requested(found.conditions, request, setting)
