"""Imports of what is damaged or does not fit together, and of full disks: one sentence, and nothing is left behind."""

import json
import shutil
from pathlib import Path

import orbax.checkpoint as ocp
import published_pipeline
import pytest
from import_command_test import import_, refused
from published_pipeline import WEIGHTS
from safetensors.numpy import save_file

from diffusion_jax.runs.interchange import importing
from diffusion_jax.runs.workdir.paths import Workdir
from diffusion_jax.runs.workdir.restored import restore


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    return published_pipeline.write(tmp_path_factory.mktemp("published") / "pipe")


@pytest.fixture
def folder(published, tmp_path):
    """A copy to damage."""
    return shutil.copytree(published, tmp_path / "source/pipe")


def test_what_is_damaged_below_is_whole_before(folder, tmp_path):
    assert import_(folder, tmp_path / "w") == 0
    trained = restore(tmp_path / "w", step=None, average=True, overrides={})
    assert (trained.how.guidance, trained.model.text.length) == (7.5, published_pipeline.LENGTH)


def test_a_text_encoder_of_another_width_is_said_before_weights_are_read(folder, capsys):
    config = folder / "text_encoder/config.json"
    for weights in folder.rglob("*.safetensors"):
        weights.write_bytes(b"never read")
    config.write_text(json.dumps(published_pipeline.TEXT | {"hidden_size": 24}))
    said = refused(capsys, folder)
    assert f"{config}: the text encoder has width 24, and the U-Net attends to cross_attention_dim=16" in said


def test_a_text_encoder_whose_arrays_have_another_width_is_said(folder, capsys):
    save_file(published_pipeline.text_state(24), folder / "text_encoder/model.safetensors")
    assert "is of a network of other sizes than config.json's" in refused(capsys, folder)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_every_part_that_was_cut_short_by_a_byte_is_named(folder, capsys, part):
    file = folder / part / ("model.safetensors" if part == "text_encoder" else WEIGHTS)
    file.write_bytes(file.read_bytes()[:-1])
    assert str(file.name) in (said := refused(capsys, folder))
    assert "fetch it anew" in said


def test_a_file_of_something_else_is_no_checkpoint(tmp_path, capsys):
    (tmp_path / "source").mkdir()
    file = tmp_path / "source/model.safetensors"
    for content in (b"", b"no weights at all", json.dumps({"a": 1}).encode()):
        file.write_bytes(content)
        assert f"{file} is no safetensors file that can be read" in refused(capsys, file)
    save_file({"some.weight": published_pipeline.text_state()["text_model.final_layer_norm.bias"]}, file)
    assert str(file) in refused(capsys, file)
    (tmp_path / "source/pipe").mkdir()
    (tmp_path / "source/pipe/model_index.json").write_text("[]")
    assert "does not hold a JSON object" in refused(capsys, tmp_path / "source/pipe")


def cached(published, root, *, damaged):
    """A snapshot in a cache of the hub, where a file of weights lies under its SHA-256; with a bit of it flipped."""
    blobs, snapshot = root / "blobs", root / "snapshots" / ("a" * 40)
    shutil.copytree(published, snapshot)
    blobs.mkdir()
    file = snapshot / "unet" / WEIGHTS
    blob = blobs / importing.sha256(file)
    content = bytearray(file.read_bytes())
    content[-1] ^= damaged
    blob.write_bytes(content)
    file.unlink()
    file.symlink_to(Path("../../../blobs") / blob.name)
    return snapshot, blob


def test_a_cached_file_has_the_sha256_that_names_it(published, tmp_path, capsys):
    whole, _ = cached(published, tmp_path / "whole/models--a--b", damaged=False)
    assert import_(whole, tmp_path / "w") == 0
    assert json.loads(Workdir(tmp_path / "w").imported.read_text())["revision"] == "a" * 40
    snapshot, blob = cached(published, tmp_path / "other/models--a--b", damaged=True)
    said = refused(capsys, snapshot)
    assert f"{snapshot}/unet/{WEIGHTS} has SHA-256" in said
    assert f"its name in the cache says {blob.name}; it is damaged, so delete {blob.resolve()} and fetch it" in said


class Full:
    """A disk that is full from the n-th write of one kind on."""

    def __init__(self, write, after):
        self.write, self.left = write, after

    def __get__(self, one, kind=None):
        return lambda *args, **kwargs: self(one, *args, **kwargs)

    def __call__(self, *args, **kwargs):
        self.left -= 1
        if self.left < 0:
            raise OSError(28, "No space left on device")
        return self.write(*args, **kwargs)


@pytest.mark.parametrize(
    ("where", "name", "after"),
    [
        (shutil, "copyfile", 0),  # config.json of the text encoder
        (shutil, "copyfile", 3),  # its weights
        (Workdir, "write_config", 0),
        (ocp.CheckpointManager, "save", 0),  # the U-Net's
        (ocp.CheckpointManager, "save", 1),  # the autoencoder's
    ],
)
def test_a_disk_that_gets_full_leaves_nothing_behind(published, tmp_path, capsys, monkeypatch, where, name, after):
    (tmp_path / "source").mkdir()
    source = tmp_path / "source/pipe"
    source.symlink_to(published)
    monkeypatch.setattr(where, name, Full(getattr(where, name), after))
    assert "No space left on device" in refused(capsys, source)
