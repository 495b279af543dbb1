"""Figures of latents and of attention to words, of models whose parameters are random."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from random_workdir import save_state

from diffusion_jax import experiment
from diffusion_jax.cli.main import main
from diffusion_jax.config import base
from diffusion_jax.data import tokens
from diffusion_jax.runs.sample import attention_figure, latent_figures
from diffusion_jax.runs.sample import diffusion_figures as runs
from diffusion_jax.runs.sample.conditioning import SampleRequest
from diffusion_jax.runs.sample.reverse_path import ReversePath, decoded
from diffusion_jax.runs.workdir import pretrained, restored
from diffusion_jax.runs.workdir.paths import Workdir

STD = 0.25  # of the autoencoder's latents, by its checkpoint
CAPTION = "a small hexagon"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with images, an autoencoder of them, and a model of its latents that is told captions."""
    home = tmp_path_factory.mktemp("latents")
    (home / "images").mkdir()
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).save(home / "images" / f"{i}.png")
    config = base()
    config.task = "autoencoder"
    config.data.update(source=f"folder:{home / 'images'}", shape=(8, 8, 3))
    config.autoencoder.update(channels=4, multipliers=(1, 2), blocks=1, groups=2, latent_channels=2)
    config.autoencoder.update(mid_attention=False, adversarial_start=-1)
    save_state(Workdir(home / "autoencoder"), config, measured={"latent_std": STD})

    config.task, config.latent, config.prediction = "diffusion", str(home / "autoencoder"), "v"
    config.data.source = "folder:/nowhere"
    config.text = "transformer(length=24, vocabulary=270, width=8, layers=1, heads=1)"
    config.model.update(channels=4, multipliers=(1,), blocks=1, attention=(1,), groups=2, remat="blocks")
    config.sample.update(sampler="ddim", steps=3, threshold="none", guidance=1.0)
    workdir = Workdir(home / "latent")
    model = experiment.model(config, pretrained.read_autoencoder(home / "autoencoder"))
    pretrained.keep(config, workdir, None, model, tokens.train([CAPTION], 270))
    save_state(workdir, config, abstract=experiment.abstract_state(config, experiment.trainee(config, model)))
    return home


@pytest.fixture(scope="module")
def trained(home):
    return restored.restore(home / "latent", step=None, average=True, overrides={})


@pytest.fixture(scope="module")
def told(trained):
    """The entries of two captions, and x at two times."""
    tokens = trained.tokenizer.encode([CAPTION, "a circle"], 24)
    x = np.random.default_rng(0).standard_normal((2, 2, 4, 4, 2)).astype(np.float32)
    return {"tokens": tokens}, ReversePath(np.asarray([1.0, 0.5, 0.0]), np.concatenate([x, x[:1]]), x)


def test_latents_have_the_scale_and_the_reconstruction_does_not(home):
    autoencoder = pretrained.read_autoencoder(home / "autoencoder")
    x = np.random.default_rng(0).uniform(-1, 1, (2, 8, 8, 3)).astype(np.float32)
    z, again = latent_figures.latents_and_reconstructions(autoencoder, x)
    y, mean, _ = jax.jit(autoencoder.network.apply)({"params": autoencoder.params}, x)
    np.testing.assert_allclose(z, mean / STD, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(again, y, rtol=1e-4, atol=1e-5)


def test_the_arrays_of_training_are_the_forward_process_and_the_prediction_s_target(trained):
    ids = trained.tokenizer.encode([CAPTION], 24)
    example = latent_figures.Example(np.zeros((1, 8, 8, 3), np.float32), {"tokens": jnp.asarray(ids)}, ids)
    found = latent_figures.training_arrays(trained.model, trained.params, trained.pretrained, example)
    assert {name: a.shape for name, a in found.items()} == dict.fromkeys(("z", "z_t", "output", "target"), (1, 4, 4, 2))
    alpha, sigma = (float(a) for a in trained.model.schedule.level(jnp.float32(0.5)))
    eps = (found["z_t"] - alpha * found["z"]) / sigma
    np.testing.assert_allclose(found["target"], alpha * eps - sigma * found["z"], rtol=1e-4, atol=1e-4)
    assert np.abs(found["output"] - found["target"]).max() > 0.01


def test_maps_of_words_and_of_no_word_sum_to_one(trained, told):
    cond, path = told
    program = attention_figure.attention_program(trained.model)
    x, times = jnp.asarray(path.x[:2]), jnp.asarray(path.times[:2], jnp.float32)
    both = np.asarray(program(trained.params, trained.pretrained, x, times, cond))
    twice = [np.asarray([k, k]) for k in range(2)]
    each = [program(trained.params, trained.pretrained, x[k], times[k], cond) for k in twice]
    np.testing.assert_allclose(both, np.mean(each, axis=0), atol=1e-5)
    assert both.shape == (2, 4, 4, 24)
    words = trained.tokenizer.words(CAPTION, 24)
    maps = attention_figure.word_maps(both[0], words)
    assert [name for name, _ in maps] == [*CAPTION.split(), attention_figure.REST]
    assert max(len(places) for _, places in words) > 1
    np.testing.assert_allclose(sum(values for _, values in maps), 1, atol=1e-5)
    assert all(values.min() > 0 for _, values in maps)


def test_states_are_decoded_as_samples_are(trained, told):
    _, path = told
    images = decoded(trained, path.x)
    assert images.shape == (3, 2, 8, 8, 3)
    one = trained.model.decode(trained.pretrained, jnp.asarray(path.x[1]))
    np.testing.assert_allclose(images[1], one, rtol=1e-4, atol=1e-5)


def test_a_workdir_of_captions_and_latents_has_all_figures(home, told, monkeypatch):
    """The data are elsewhere, so that the example is the picture of the theory's figures."""
    path = told[1]
    rows = {}
    flow, attention = latent_figures.flow_figure.flow_png, attention_figure.drawing.attention_png
    monkeypatch.setattr(latent_figures.flow_figure, "flow_png", lambda *given: rows.update(given[0]) or flow(*given))
    monkeypatch.setattr(
        attention_figure.drawing, "attention_png", lambda *given: rows.update(maps=given[0]) or attention(*given)
    )
    monkeypatch.setattr(runs, "reverse_path", lambda *given: path)
    monkeypatch.setattr(runs, "_draw_trajectory", lambda *given: b"")  # those of other tests
    monkeypatch.setattr(runs.theory, "draw_unet", lambda *given: b"")
    request = runs.Request(num=2, sample_request=SampleRequest(prompts=[CAPTION, ""]), root=home / "latent")
    drawn = runs._draw_trained(request, Workdir(home / "latent"), np.arange(2, dtype=np.int32))
    assert {name for name, picture in drawn.items() if picture is None} == {"batch.png", "loss_by_time.png"}
    assert set(runs.THEORY) | set(drawn) == set(runs.NAMES)
    for name in (*runs.LATENT, "attention.png"):
        assert min(Image.open(io.BytesIO(drawn[name])).size) > 100
    caption, training, sampling, maps = rows.values()
    assert caption[0].text == CAPTION
    assert [panel.below.splitlines()[0] for panel in caption[1:]] == ["int32 [1, 24]", "float32 [1, 24, 8]"]
    latent = "float32 [1, 4, 4, 2]"
    assert [panel.below.splitlines()[0] for panel in training] == ["float32 [1, 8, 8, 3]", *[latent] * 4]
    assert [panel.below.splitlines()[0] for panel in sampling] == [*[latent] * 3, "float32 [1, 8, 8, 3]"]
    assert len(maps) == 1  # the sample without a caption has none


def test_the_workdir_of_an_autoencoder_has_its_latents(home, tmp_path, capsys, monkeypatch):
    for of, name in ((runs.theory, "draw_kl"), (runs.theory, "draw_time_embedding"), (runs.theory, "draw_unet")):
        monkeypatch.setattr(of, name, lambda *given: b"")  # those of other tests
    drawn = []
    tiles = latent_figures.drawings.tiles_png
    monkeypatch.setattr(latent_figures.drawings, "tiles_png", lambda *given: drawn.append(given[0]) or tiles(*given))
    arguments = ["figures", f"--workdir={home / 'autoencoder'}", "--size=8", "--num=3"]
    assert main([*arguments, f"--out={tmp_path / 'out'}"]) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted([*runs.THEORY, "latents.png"])
    assert drawn[0].shape == (3, 5, 8, 8, 3)  # image, two channels, reconstruction, difference
    pixels = {np.asarray(Image.open(path)).tobytes() for path in (home / "images").iterdir()}
    assert {image.tobytes() for image in drawn[0][:, 0]} == pixels

    capsys.readouterr()
    assert main([*arguments, f"--out={tmp_path / 'more'}", "--steps=5"]) == 2
    error = capsys.readouterr().err
    assert "has a run of task autoencoder" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "more").exists()
