"""Latents and text features that were computed before training, by a whole command, and a step on them."""

import contextlib
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.tiny import get_config as tiny
from diffusion_jax import experiment
from diffusion_jax.cli.main import main
from diffusion_jax.data import tokens
from diffusion_jax.data.precomputed import open_precomputed
from diffusion_jax.errors import UserError
from diffusion_jax.nets.autoencoder import AutoencoderKL
from diffusion_jax.runs.interchange.precomputing import precompute
from diffusion_jax.runs.workdir import pretrained

TEXT = "transformer(length=20, vocabulary=300, width=16, layers=1, heads=2)"


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    config = tiny()
    config.data.update(source="shapes:16,24", shape=(16, 16, 3), flip=True)
    config.data.data_dir = str(tmp_path_factory.mktemp("data"))
    config.model.update(num_classes=0, multipliers=(1,), attention=())
    config.condition_dropout = 0.5
    config.train.batch_size = 8
    config.text = TEXT
    config.latent = "an autoencoder"
    return config


@pytest.fixture(scope="module")
def model(config):
    """A model in the latent space of an autoencoder, told of captions by an encoder that is not trained along."""
    network = AutoencoderKL(channels=8, multipliers=(1, 2), blocks=1, groups=4, latent_channels=3, out_channels=3)
    params = jax.jit(network.init)(jax.random.key(1), jnp.zeros((1, 16, 16, 3)))["params"]
    built = experiment.model(config, experiment.Autoencoder(network, jax.device_get(params), 0.7))
    tokens = jnp.zeros((1, built.text.length), jnp.int32)
    text = jax.device_get(jax.jit(built.text.network.init)(jax.random.key(3), tokens)["params"])
    return of_encoder(built, params=text)


def of_encoder(model, **changes):
    """The model, told of captions alone, with another text encoder."""
    (caption,) = model.conditions
    encoder = dataclasses.replace(caption.encoder, **changes)
    return dataclasses.replace(model, conditions=(dataclasses.replace(caption, encoder=encoder),))


@pytest.fixture(scope="module")
def folder(config, model, tmp_path_factory):
    """What the command's function writes."""
    out = tmp_path_factory.mktemp("out") / "precomputed"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrained, "model", lambda *_: model)
        precompute(config, out, batch=10, dtype="float32")
    return out


def test_a_step_draws_the_same_of_precomputed_arrays_as_of_the_images(config, model, folder):
    config = config.copy_and_resolve_references()
    config.data.precomputed = str(folder)
    source = experiment.source(config)
    tokenizer = experiment.tokenizer(model, source)
    draw = jax.jit(lambda batch, weights: experiment.examples(config, model, weights)(jax.random.key(4), batch))
    drawn, entries = [], []
    for found in (None, experiment.precomputed(config, model)):
        with contextlib.closing(experiment.batches(config, source, model, tokenizer, precomputed=found)) as batches:
            batch = {name: jnp.asarray(array) for name, array in next(batches).items() if name != "index"}
        entries.append(set(batch) - {"label"})
        drawn.append(draw(batch, model.pretrained))
    assert entries == [{"x", "tokens"}, {"mean", "logvar", "text", "text_mask"}]
    assert np.ptp(np.asarray(drawn[0].cond["text_mask"]).sum(axis=1)) > 0  # some captions are left out, some are not
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), *drawn)


def test_another_autoencoder_or_size_is_refused(config, model, folder):
    config = config.copy_and_resolve_references()
    config.data.precomputed = str(folder)
    stretched = dataclasses.replace(model.autoencoder, params=jax.tree.map(lambda a: 2 * a, model.autoencoder.params))
    with pytest.raises(UserError, match="computed by another autoencoder"):
        experiment.precomputed(config, dataclasses.replace(model, autoencoder=stretched))
    with pytest.raises(UserError, match="precompute them with this config"):
        experiment.precomputed(config, dataclasses.replace(model, shape=(32, 32, 3)))
    config.spatial = ("low_resolution(factor=2)",)
    with pytest.raises(UserError, match="made of the image"):
        experiment.batches(
            config,
            experiment.source(config),
            experiment.model(config, model.autoencoder),
            precomputed=open_precomputed(str(folder)),
        )


def test_features_of_another_tokenizer_or_other_options_are_refused(config, model, folder, monkeypatch):
    """Whose weights and shapes are the same; a folder of an earlier version tells nothing of them."""
    config = config.copy_and_resolve_references()
    config.data.precomputed = str(folder)
    reading = "text encoder's options or tokenizer"
    assert reading in dict(experiment.precomputed(config, model).weights)
    other = of_encoder(model, network=model.text.network.clone(heads=1))
    with pytest.raises(UserError, match=f"computed by another {reading}"):
        experiment.precomputed(config, other)
    words = experiment.tokenizer(model, experiment.source(config))
    monkeypatch.setattr(tokens, "from_folder", lambda _: words)
    with pytest.raises(UserError, match=f"computed by another {reading}"):
        experiment.precomputed(config, of_encoder(model, tokenizer="x"))
    older = open_precomputed(str(folder))
    older = dataclasses.replace(older, weights=tuple(each for each in older.weights if each[0] != reading))
    monkeypatch.setattr(experiment.precompute, "open_precomputed", lambda _: older)
    experiment.precomputed(config, other)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--out=x"], "needs --config=FILE and --out=FOLDER"),
        (["--config=configs/tiny.py", "--out={out}"], "nothing to precompute"),
        (["--config=configs/tiny.py", "--out={out}", "--dtype=int8"], "--dtype float32 or float16"),
        (["--config=configs/tiny.py", "--out=configs"], "exists already"),
    ],
)
def test_bad_input_is_one_sentence(flags, sentence, tmp_path, capsys):
    assert main(["precompute", *(flag.format(out=tmp_path / "out") for flag in flags)]) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
