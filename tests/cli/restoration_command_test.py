"""Models that restore an image are measured against the original: autoencoders and super-resolution."""

import contextlib
import json

import jax
import numpy as np
import pytest
from random_workdir import save_state

from diffusion_jax import experiment
from diffusion_jax.cli.main import main
from diffusion_jax.config import base
from diffusion_jax.core import similarity
from diffusion_jax.runs.workdir.paths import Workdir


def write(root, task, **changes):
    """A workdir of random parameters, of 16 x 16 shapes."""
    config = base()
    config.task, config.schedule, config.prediction = task, "cosine(steps=50)", "v"
    config.data.update(source="shapes:16,64", shape=(16, 16, 3))
    config.model.update(channels=4, multipliers=(1,), blocks=1, attention=(), groups=2)
    config.autoencoder.update(channels=4, multipliers=(1, 1), blocks=1, groups=2, mid_attention=False)
    config.sample.update(sampler="ddim", steps=3, threshold="static")
    config.update(changes)
    return config, save_state(Workdir(root), config, scale=0.2, step=3)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("restoration")
    states = {
        "autoencoder": write(home / "autoencoder", "autoencoder"),
        "upscale": write(home / "upscale", "diffusion", spatial=("low_resolution(factor=2)",)),
    }
    return home, states


def evaluate(workdir, out, *flags):
    assert main(["evaluate", f"--workdir={workdir}", f"--out={out}", *flags]) == 0
    return json.loads(out.read_text())["metrics"]


def originals(config, num):
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.train.batch_size = num
    with contextlib.closing(experiment.batches(config, experiment.source(config))) as batches:
        return next(batches)["x"]


def bytes_of(x):
    return np.rint((np.clip(x, -1, 1) + 1) * 127.5) / 127.5 - 1


def test_an_autoencoder_is_measured_by_what_it_makes_of_images(home, tmp_path):
    root, states = home
    config, state = states["autoencoder"]
    found = evaluate(root / "autoencoder", tmp_path / "a.json", "--metrics=psnr,ssim", "--num=20", "--batch=8")
    x = originals(config, 20)
    y = bytes_of(np.asarray(experiment.autoencoder.reconstruct_program(config)(state.ema, x).images))
    square = ((y - bytes_of(x)) ** 2).reshape(20, -1).mean(axis=1)
    assert found["psnr"]["value"] == pytest.approx((10 * np.log10(4 / square)).mean(), rel=1e-4)
    assert found["ssim"]["value"] == pytest.approx(float(similarity.ssim(bytes_of(x), y).mean()), rel=1e-3)
    assert found["psnr"]["how"]["told"] == "the real images"
    assert found["psnr"]["label"] == "PSNR (dB)"


def test_super_resolution_is_measured_against_the_image_that_was_made_small(home, tmp_path):
    """Sample i is drawn with seed i, told of image i: what the program itself draws of them."""
    root, states = home
    config, state = states["upscale"]
    found = evaluate(root / "upscale", tmp_path / "a.json", "--metrics=psnr,ssim", "--num=12", "--batch=8")
    from diffusion_jax.models.likelihood import own_conditions
    from diffusion_jax.train import sharding

    model, mesh = experiment.model(config), sharding.mesh(devices=jax.devices()[:1])
    x = originals(config, 12)
    program = experiment.sample_program(model, experiment.sampling(config), mesh)
    drawn = program(state.ema, {}, np.arange(12, dtype=np.int32), own_conditions(model, {"x": x}))
    psnr = similarity.psnr(bytes_of(x), bytes_of(np.asarray(drawn)))
    assert found["psnr"]["value"] == pytest.approx(float(psnr.mean()), rel=1e-3)
    assert found["psnr"]["how"]["told"] == "what the real images are told"


@pytest.mark.parametrize(
    ("workdir", "flags", "message"),
    [
        ("autoencoder", ["--metrics=inception_score", "--features=c"], "inception_score is of samples; an autoencoder"),
        ("autoencoder", ["--metrics=bits_per_dim"], "bits_per_dim is of diffusion models"),
        ("autoencoder", ["--metrics=psnr", "--features=c"], "--features is of fd, sfd"),
        (
            "autoencoder",
            ["--metrics=clip_score", "--clip=c"],
            "clip_score compares an image with its caption; this model",
        ),
        ("upscale", ["--metrics=psnr", "--low_res=a.png"], "a.png is neither an image nor a folder of samples"),
    ],
)
def test_what_cannot_be_measured_is_one_sentence(home, capsys, monkeypatch, workdir, flags, message):
    monkeypatch.chdir(home[0])
    assert main(["evaluate", f"--workdir={workdir}", "--num=16", *flags]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
