"""Workdirs that version 0.1 wrote: what it sampled from them is sampled again, they verify, and training goes on."""

import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

from diffusion_jax.cli.main import main

ARCHIVE = Path(__file__).parents[3] / "shared/data/workdirs_0_1.zip"
pytestmark = pytest.mark.skipif(not ARCHIVE.is_file(), reason="the workdirs of version 0.1 are not beside the checkout")

SAMPLED = {
    "class": ["--label=3", "--guidance=2", "--sampler=ddim", "--steps=5", "--seed=0"],
    "text": ["--prompt=a large red circle", "--guidance=2", "--sampler=dpmpp_2m", "--steps=5", "--seed=0"],
}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("version_0_1")
    with zipfile.ZipFile(ARCHIVE) as archive:
        archive.extractall(folder)
    return folder


@pytest.mark.parametrize("name", SAMPLED)
def test_its_samples_come_out_again(home, tmp_path, name):
    """Of 8-bit images: equal but where rounding to 255 values hides a difference of 1e-5."""
    assert main(["sample", f"--workdir={home / name}", f"--out={tmp_path / 'out'}", "--num=4", *SAMPLED[name]]) == 0
    now, then = (
        np.load(folder / "samples.npz")["images"].astype(int) for folder in (tmp_path / "out", home / f"{name}_samples")
    )
    assert np.abs(now - then).max() <= 1
    assert (now != then).mean() < 1e-3


@pytest.mark.parametrize("name", SAMPLED)
def test_its_checkpoints_verify(home, name):
    assert main(["checkpoint", "verify", f"--workdir={home / name}"]) == 0


def test_training_goes_on_from_its_checkpoint(home, tmp_path, capsys):
    """With its own config, to one step more than it had done."""
    workdir = tmp_path / "run"
    shutil.copytree(home / "class", workdir)
    config = tmp_path / "config.py"
    text = (workdir / "config.json").read_text()
    config.write_text(
        f"import json\nfrom diffusion_jax.config import from_json\ndef get_config():\n    return from_json({text!r})\n"
    )
    flags = [f"--config={config}", f"--workdir={workdir}", "--config.train.steps=21", "--config.sample.every=0"]
    assert main(["train", *flags]) == 0
    assert "resuming from step 20" in capsys.readouterr().out
    steps = [json.loads(line)["step"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert steps[-1] == 21
