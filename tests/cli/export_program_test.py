"""`export --format=stablehlo`: a program that draws what `sample` draws, in a process without this package."""

import ast
import dataclasses
import importlib.util
import json
import runpy
import subprocess
import sys
import types

import numpy as np
import pytest
from export_command_test import coder, digits, export, refused, save
from PIL import Image

import diffusion_jax
from diffusion_jax.errors import UserError
from diffusion_jax.interop import diffusers_weights
from diffusion_jax.models.text import transformer
from diffusion_jax.runs.interchange import exported_sampler


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """Digits by class, guided, drawn with noise at every step."""
    config = digits()
    config.sample.update(sampler="ddim(eta=0.5)", steps=4, guidance=2.0)
    return save(tmp_path_factory.mktemp("run") / "w", config)


@pytest.fixture(scope="module")
def program(workdir, tmp_path_factory):
    """Its export, in another place than it was written to."""
    out = tmp_path_factory.mktemp("exported") / "out"
    assert export(workdir, out, "--format=stablehlo") == 0
    return out.rename(out.parent / "moved")


def test_a_script_without_this_package_draws_what_sample_draws(workdir, program, tmp_path, one_device):
    """Batches of 3 and of 1, by one program; the class of a sample is drawn from its seed."""
    flags = ["--num=4", "--batch=3", "--seed=7", f"--out={tmp_path}/s"]
    run = subprocess.run(
        [sys.executable, "-I", program / "sample_exported.py", *flags], env=one_device, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    ours = diffusion_jax.load(workdir).sample(4, seed=7)
    found = np.load(tmp_path / "s/samples.npy")
    np.testing.assert_allclose(found, ours, rtol=0, atol=1e-5)
    assert np.abs(ours[0] - ours[1]).max() > 0.1
    picture = np.asarray(Image.open(tmp_path / "s/000002.png"))
    np.testing.assert_array_equal(picture, np.rint((found[2, ..., 0].clip(-1, 1) + 1) * 127.5))


def test_classes_are_given_and_others_refused(workdir, program, tmp_path, monkeypatch, capsys):
    script = str(program / "sample_exported.py")
    monkeypatch.setattr(sys, "argv", [script, "--num=3", "--label", "4", "10", f"--out={tmp_path}/s"])
    runpy.run_path(script, run_name="__main__")
    ours = diffusion_jax.load(workdir).sample(3, labels=[4, None])
    np.testing.assert_allclose(np.load(tmp_path / "s/samples.npy"), ours, rtol=0, atol=1e-5)
    monkeypatch.setattr(sys, "argv", [script, "--label", "11"])
    with pytest.raises(SystemExit):
        runpy.run_path(script, run_name="__main__")
    assert "invalid choice: 11" in capsys.readouterr().err


def test_the_folder_says_what_it_holds(program):
    files = {"sampler.jax_export", "parameters.npz", "sample_exported.py", "README.md", "export.json"}
    assert {file.name for file in program.iterdir()} == files
    record = json.loads((program / "export.json").read_text())
    assert record["program"]["platforms"] == ["cpu", "cuda", "tpu"]
    assert record["program"]["inputs"] == {"seeds": ["int32", "B"], "label": ["int32", "B"]}
    assert record["program"]["output"] == ["float32", "B", 8, 8, 1]
    card = (program / "README.md").read_text()
    assert "python sample_exported.py --num=4 --label 0 1 --out=samples" in card
    imported = ast.walk(ast.parse((program / "sample_exported.py").read_text()))
    names = [
        getattr(node, "module", None) or node.names[0].name for node in imported if "Import" in type(node).__name__
    ]
    assert set(names) == {"argparse", "pathlib", "struct", "zlib", "jax.export", "numpy"}


def test_half_the_bytes(workdir, program, tmp_path, monkeypatch):
    """The program is not made again: what it reads is what is tested."""
    shapes = []
    monkeypatch.setattr(
        exported_sampler, "_exported", lambda trained, tree, stored: shapes.append(stored) or Exported()
    )
    assert export(workdir, tmp_path / "out", "--format=stablehlo", "--dtype=float16") == 0
    whole, half = np.load(program / "parameters.npz"), np.load(tmp_path / "out/parameters.npz")
    assert set(half) == set(whole) == set(shapes[0])
    for name in half:
        assert half[name].dtype == shapes[0][name].dtype == np.float16
        np.testing.assert_array_equal(half[name], whole[name].astype(np.float16))


class Exported:
    platforms, calling_convention_version = (), 10

    def serialize(self):
        return b""


def test_what_is_not_exported_is_refused_by_name(workdir, tmp_path, capsys, monkeypatch):
    out, flag = tmp_path / "out", "--format=stablehlo"
    said = refused(capsys, save(tmp_path / "coder", coder(), {"latent_std": 1.0}), out, flag)
    assert "--format=stablehlo is of a sampler, and a run of task autoencoder has none" in said
    config = digits()
    config.spatial = ("inpaint()",)
    assert "and this model is told inpaint" in refused(capsys, save(tmp_path / "w", config), out, flag)
    assert "does not read --format=stablehlo; leave out one" in refused(capsys, workdir, out, flag, "--check")

    def fails(*args, **kwargs):
        raise NotImplementedError("no lowering rule\nof this")

    monkeypatch.setattr(exported_sampler.experiment, "drawing", lambda *args: fails)
    assert "UNet cannot be lowered for any number of samples on cpu, cuda, tpu: no low" in refused(
        capsys, workdir, out, flag
    )
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "flatbuffers" else found(name))
    assert "pip install 'diffusion-jax[export]'" in refused(capsys, workdir, out, flag)


@pytest.mark.parametrize("option", [{"second_tokenizer": "words"}, {"zero_null": True}])
def test_text_encoders_of_stable_diffusion_xl_are_refused(option):
    text = dataclasses.replace(transformer(), **option)
    model = types.SimpleNamespace(conditions=(), text=text)
    run = types.SimpleNamespace(trained=types.SimpleNamespace(model=model))
    with pytest.raises(UserError, match="captions of one text encoder"):
        exported_sampler.check_exportable(run)


def test_what_does_not_fit_half_the_bytes_leaves_nothing_behind(workdir, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(exported_sampler, "_exported", lambda *args: Exported())
    cast = diffusers_weights.cast
    monkeypatch.setattr(diffusers_weights, "cast", lambda name, value, dtype: cast(name, value + 1e5, dtype))
    said = refused(capsys, workdir, tmp_path / "out", "--format=stablehlo", "--dtype=float16")
    assert "which float16 cannot hold" in said
