"""`export --format=stablehlo` of a text-to-image model of latents: the script has the call of the tokenizer."""

import runpy
import sys

import numpy as np
import published_pipeline
import pytest

import diffusion_jax
from diffusion_jax.cli.main import main

pytestmark = pytest.mark.slow


def test_prompts_draw_what_sample_draws(tmp_path, monkeypatch):
    """Short, empty and too long ones, with a negative prompt and without."""
    pipeline = published_pipeline.write(tmp_path / "pipe")
    assert main(["import", f"--from={pipeline}", f"--workdir={tmp_path}/w"]) == 0
    export = ["export", f"--workdir={tmp_path}/w", f"--out={tmp_path}/out", "--format=stablehlo", "--steps=3"]
    assert main(export) == 0
    names = set(np.load(tmp_path / "out/parameters.npz"))
    assert any(name.startswith("pretrained/autoencoder/decoder/") for name in names)
    assert not any("/encoder/" in name for name in names)  # of images, which no sample needs
    script, loaded = str(tmp_path / "out/sample_exported.py"), diffusion_jax.load(tmp_path / "w")
    drawn = []
    for prompts, negative in ([["a b", ""], None], [["a b", "abc" * 9], "c"]):
        flags = [f"--out={tmp_path}/s", "--num=3", "--seed=2", "--batch=2", "--prompt", *prompts]
        monkeypatch.setattr(
            sys, "argv", [script, *flags, *([] if negative is None else ["--negative_prompt", negative])]
        )
        runpy.run_path(script, run_name="__main__")
        ours = loaded.sample(3, seed=2, prompts=prompts, negative_prompt=negative, steps=3)
        drawn.append(np.load(tmp_path / "s/samples.npy"))
        np.testing.assert_allclose(drawn[-1], ours, rtol=0, atol=1e-5)
    assert np.abs(drawn[0] - drawn[1])[:2].max(axis=(1, 2, 3)).min() > 1e-3
