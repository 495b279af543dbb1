"""The copies in a workdir of what its model needs beside its parameters come from where the parameters come from."""

import contextlib
import functools
import json
import shutil

import fsspec
import numpy as np
import pytest
from PIL import Image
from random_workdir import save_state
from safetensors.numpy import save_file

from configs.tiny import get_config as tiny
from diffusion_jax import config as configs
from diffusion_jax import experiment
from diffusion_jax.data import tokens
from diffusion_jax.errors import UserError
from diffusion_jax.runs.train import tasks
from diffusion_jax.runs.workdir import pretrained
from diffusion_jax.runs.workdir.mirror import Mirror
from diffusion_jax.runs.workdir.paths import Workdir
from diffusion_jax.runs.workdir.restored import GuideRequest, restore

TEXT = "transformer(length=24, vocabulary=270, width=8, layers=1, heads=2)"
FIRST = ["a red square", "a red circle", "a red ring"]
SECOND = ["the blue moon", "the blue sky", "the blue sea"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Three images with captions, twice."""
    home = tmp_path_factory.mktemp("data")
    for name, captions in (("first", FIRST), ("second", SECOND)):
        (home / name).mkdir()
        lines = [json.dumps({"file_name": f"{i}.png", "text": text}) for i, text in enumerate(captions)]
        (home / name / "metadata.jsonl").write_text("\n".join(lines))
        for i in range(len(captions)):
            Image.fromarray(np.full((8, 8, 3), 40 * i, np.uint8)).save(home / name / f"{i}.png")
    return home


def captioned(folders, name, **changes):
    config = tiny()
    config.data.update(source=f"folder:{folders / name}", cache=False, channels=3, threads=0)
    config.model.num_classes, config.text = 0, TEXT
    config.train.batch_size, config.sample.every = 4, 0
    config.update(changes)
    return config


def save(workdir, config, abstract, step=5, **options):
    """A checkpoint of random parameters, as if training had come so far."""
    save_state(workdir, config, abstract=abstract, scale=1, step=step, seed=step, **options)


def start(config, workdir):
    """What the run of config in workdir starts with; its copies are in the workdir, as `train` leaves them."""
    task = tasks.task(config, workdir, experiment.mesh(config))
    workdir.write_config(config)
    task.keep()
    return task


def captions_of(workdir, task):
    """What the tokens of a batch mean to the tokenizer that the workdir keeps."""
    with contextlib.closing(task.batches) as batches:
        return set(pretrained.read_tokenizer(workdir).decode(next(batches)["tokens"]))


@pytest.fixture(scope="module")
def trained(folders, tmp_path_factory):
    """A run on the first captions with a checkpoint."""
    workdir = Workdir(tmp_path_factory.mktemp("trained"))
    config = captioned(folders, "first")
    task = start(config, workdir)
    save(workdir, config, task.abstract)
    return workdir


def test_init_from_brings_the_tokenizer_of_its_embeddings(folders, trained, tmp_path):
    config = captioned(folders, "second", init_from=str(trained.root))
    workdir = Workdir(tmp_path / "run")
    task = start(config, workdir)
    assert captions_of(workdir, task) == set(SECOND)
    assert workdir.tokenizer.read_bytes() == trained.tokenizer.read_bytes()
    assert tokens.train(SECOND, 270).to_json() != trained.tokenizer.read_text()


def test_a_killed_runs_tokenizer_is_not_used_and_is_replaced(folders, trained, tmp_path):
    """It was killed in its first save: an uncommitted checkpoint is none."""
    workdir = Workdir(tmp_path / "run")
    start(captioned(folders, "first"), workdir)
    (workdir.checkpoints / "5" / "params").mkdir(parents=True)
    task = start(captioned(folders, "second"), workdir)
    assert captions_of(workdir, task) == set(SECOND)
    assert workdir.tokenizer.read_text() == tokens.train(SECOND, 270).to_json()
    start(captioned(folders, "second", text=""), workdir)
    assert not workdir.tokenizer.exists()


def test_a_run_that_goes_on_has_its_own_tokenizer_or_stops(folders, trained, tmp_path):
    workdir = Workdir(tmp_path / "run")
    shutil.copytree(trained.root, workdir.root)
    task = start(captioned(folders, "second"), workdir)
    assert captions_of(workdir, task) == set(SECOND)
    assert workdir.tokenizer.read_bytes() == trained.tokenizer.read_bytes()
    workdir.tokenizer.unlink()
    with pytest.raises(UserError, match=r"has no tokenizer.json, which a model that is told captions needs"):
        start(captioned(folders, "first"), workdir)


def test_a_start_that_cannot_be_is_one_sentence(folders, trained, tmp_path):
    with pytest.raises(UserError, match="init_from='x' was '' when the run in .* started, which now goes on from its"):
        start(captioned(folders, "first", init_from="x"), trained)
    with pytest.raises(UserError, match="init_from=x is not a workdir: it has no config.json"):
        start(captioned(folders, "first", init_from="x"), Workdir(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def write_autoencoder(root, step):
    config = tiny()
    config.task, config.data.channels = "autoencoder", 3
    config.autoencoder.update(channels=4, multipliers=(1, 1), blocks=1, groups=2, mid_attention=False)
    save(
        Workdir(root),
        config,
        experiment.abstract_state(config, experiment.autoencoder.trainee(config)),
        step,
        measured={"latent_std": 2.0},
    )


def latent(folders, autoencoder, **changes):
    config = captioned(folders, "first", text="", latent=str(autoencoder), **changes)
    config.sample.threshold = "none"
    return config


@pytest.fixture(autouse=True, scope="module")
def traced_once():
    """The autoencoders here are of one shape, which is traced again at every reading."""
    with pytest.MonkeyPatch.context() as patch:
        once = functools.cache(lambda text: make(configs.from_json(text)))
        make = experiment.autoencoder.trainee
        patch.setattr(experiment.autoencoder, "trainee", lambda config: once(configs.to_json(config)))
        yield


def begin(config, workdir):
    """`start` of the model alone."""
    origin = pretrained.origin(config, workdir)
    model = pretrained.model(config, origin)
    workdir.write_config(config)
    pretrained.keep(config, workdir, origin, model, None)
    return model


def state_of(config, model):
    return experiment.abstract_state(config, experiment.trainee(config, model))


def same(workdir, root):
    return pretrained.same_autoencoder(
        pretrained.read_autoencoder(workdir.autoencoder), pretrained.read_autoencoder(root)
    )


@pytest.fixture(scope="module")
def autoencoders(tmp_path_factory):
    """Two, of 9 and of 3 steps."""
    home = tmp_path_factory.mktemp("autoencoders")
    write_autoencoder(home / "a", 9)
    write_autoencoder(home / "b", 3)
    return home / "a", home / "b"


def test_a_killed_runs_autoencoder_is_not_used_and_is_replaced(folders, autoencoders, tmp_path):
    a, b = autoencoders
    workdir = Workdir(tmp_path / "run")
    begin(latent(folders, a), workdir)
    assert same(workdir, a)
    model = begin(latent(folders, b), workdir)  # of fewer steps than what is left there
    assert pretrained.same_autoencoder(model.autoencoder, pretrained.read_autoencoder(b))
    assert same(workdir, b)


def test_the_autoencoder_is_the_one_that_the_parameters_were_trained_with(folders, autoencoders, tmp_path):
    b, a, moved = autoencoders[1], tmp_path / "a", tmp_path / "moved"
    shutil.copytree(autoencoders[0], a)
    workdir, other = Workdir(tmp_path / "run"), Workdir(tmp_path / "other")
    model = begin(latent(folders, a), workdir)
    save(workdir, latent(folders, a), state_of(latent(folders, a), model))
    for config, place in (
        (latent(folders, b), workdir),
        (latent(folders, b, init_from=str(workdir.root)), other),
    ):
        with pytest.raises(
            UserError, match=rf"latent={b} does not name what .* was trained with: it is another; give latent={a}, or"
        ):
            begin(config, place)
    with pytest.raises(UserError, match="works in latents; give latent="):
        begin(captioned(folders, "first", text=""), workdir)
    assert not other.root.exists()
    begin(latent(folders, a, init_from=str(workdir.root)), other)
    assert same(other, a)
    a.rename(moved)
    begin(latent(folders, a), workdir)  # the copy is enough
    with pytest.raises(
        UserError, match=rf"latent=x does not name .*: x is not a workdir.*; give latent={workdir.autoencoder}"
    ):
        begin(latent(folders, "x"), workdir)
    begin(latent(folders, moved), workdir)  # another path to the same
    assert same(workdir, moved)
    shutil.rmtree(workdir.autoencoder)
    with pytest.raises(UserError, match="has no autoencoder, which its model needs"):
        begin(latent(folders, moved), workdir)


def write_bert(folder):
    """A text encoder of no layers and eleven tokens."""
    sizes = {"vocab_size": 11, "hidden_size": 4, "intermediate_size": 6, "num_attention_heads": 2}
    sizes |= {"num_hidden_layers": 0, "max_position_embeddings": 7}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**sizes, "model_type": "bert"}))
    rows = {"word_embeddings": 11, "position_embeddings": 7, "token_type_embeddings": 2}
    arrays = {f"embeddings.{name}.weight": np.ones((n, 4), np.float32) for name, n in rows.items()}
    arrays |= {f"embeddings.LayerNorm.{name}": np.ones(4, np.float32) for name in ("weight", "bias")}
    save_file(arrays, folder / "model.safetensors")
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    (folder / "vocab.txt").write_text("\n".join([*special, *(f"w{i}" for i in range(6))]) + "\n")
    return folder


def published(folders, folder, **changes):
    return captioned(folders, "first", text=f"huggingface(folder={str(folder)!r}, length=7)", **changes)


def test_the_published_text_encoder_is_the_parameters_own(folders, tmp_path):
    a, b, c = (write_bert(tmp_path / name) for name in "abc")
    (b / "vocab.txt").write_text((b / "vocab.txt").read_text().replace("w0\nw1\n", "w1\nw0\n"))
    workdir = Workdir(tmp_path / "run")

    def words():
        return (workdir.text_encoder / "vocab.txt").read_bytes()

    begin(published(folders, b), workdir)
    model = begin(published(folders, a), workdir)  # after a kill before the first checkpoint
    assert words() == (a / "vocab.txt").read_bytes()
    save(workdir, published(folders, a), state_of(published(folders, a), model))
    with pytest.raises(UserError, match=rf"{b}.* does not name .*: it is another; give .*huggingface\(folder='{a}'"):
        begin(published(folders, b), workdir)
    begin(published(folders, c), workdir)
    shutil.rmtree(c)
    begin(published(folders, c), workdir)  # the copy is enough
    with pytest.raises(UserError, match=rf"huggingface\(folder='{workdir.text_encoder}'"):
        begin(published(folders, b, init_from=str(workdir.root)), Workdir(tmp_path / "other"))
    begin(published(folders, c, init_from=str(workdir.root)), Workdir(tmp_path / "other"))
    assert (tmp_path / "other/text_encoder/vocab.txt").read_bytes() == words()


def test_a_mirror_holds_one_runs_copies(folders, autoencoders, tmp_path):
    """Neither what a killed run pushed there nor what it left here stands beside the copies of the run that went on."""
    a, b = autoencoders
    address = f"memory://{tmp_path.name}"
    workdir, other = Workdir(tmp_path / "run"), Workdir(tmp_path / "fetched")
    try:
        begin(latent(folders, a), workdir)
        Mirror(address, workdir.root).begin()
        model = begin(latent(folders, b), workdir)
        save(workdir, latent(folders, b), state_of(latent(folders, b), model))
        Mirror(address, workdir.root).begin()
        begin(latent(folders, a), other)
        assert Mirror(address, other.root).fetch() == 5
        assert same(other, b)
    finally:
        fsspec.filesystem("memory").rm(f"/{tmp_path.name}", recursive=True)


def test_a_weaker_model_of_other_words_is_refused(folders, trained, tmp_path):
    other = Workdir(tmp_path / "other")
    task = start(captioned(folders, "second"), other)
    save(other, captioned(folders, "second"), task.abstract)
    sample_request = {"step": None, "average": True, "overrides": {"guidance": 2.0}}
    restore(trained.root, **sample_request, guided_by=GuideRequest(weak=trained.root))
    with pytest.raises(UserError, match="has another tokenizer than the model"):
        restore(trained.root, **sample_request, guided_by=GuideRequest(weak=other.root))
