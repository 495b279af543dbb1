"""Sound through the commands: a zip of files is trained on, resumed, sampled to WAV and a page, and continued."""

import json
import shutil

import numpy as np
import pytest
import soundfile

from diffusion_jax.cli.main import main

CONFIG = """
from diffusion_jax.config import base


def get_config():
    config = base()
    config.data.update(source={source!r}, corrupt_limit=1)
    config.schedule = "cosine"
    config.model.update(channels=8, multipliers=(1,), blocks=1, attention=(), groups=4, patch=8, num_classes=2)
    config.train.update(steps=4, batch_size=8)
    config.log_every = 2
    config.checkpoint.every = 2
    config.sample.update(every=4, num=4, sampler="ddim", steps=2, guidance=1.0)
    return config
"""

RATE, LENGTH = 4000, 800  # of clips; the files are at 8 kHz and twice as long


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run on a zip of stereo sounds in two folders, one of them broken, resampled to RATE."""
    folder = tmp_path_factory.mktemp("audio")
    for name, hertz in (("low", 200), ("high", 400)):
        (folder / "sounds" / name).mkdir(parents=True)
        for i in range(6):
            wave = 0.5 * np.sin(2 * np.pi * hertz * np.arange(2 * LENGTH) / (2 * RATE) + i)
            soundfile.write(folder / f"sounds/{name}/{i}.flac", np.stack([wave, wave], 1), 2 * RATE)
    (folder / "sounds/low/3.flac").write_bytes(b"broken")
    archive = shutil.make_archive(str(folder / "sounds"), "zip", folder / "sounds")
    (folder / "config.py").write_text(CONFIG.format(source=f"audio:{archive}@{RATE}"))
    command = ["train", f"--config={folder / 'config.py'}", f"--workdir={folder / 'run'}"]
    assert main([*command, "--config.train.steps=2"]) == 0
    assert main(command) == 0  # goes on
    return folder / "run"


def test_the_workdir_knows_shape_and_rate(workdir):
    data = json.loads((workdir / "config.json").read_text())["data"]
    assert (data["shape"], data["modality"]) == ([LENGTH, 2], f"audio(rate={RATE}, crop='start')")
    assert (workdir / "samples/00000004.png").is_file()
    events = b"".join(file.read_bytes() for file in workdir.rglob("*tfevents*"))
    assert events.count(b"audio/wav") >= 4  # TensorBoard plays the first clips of each preview


def test_samples_are_wav_and_a_page(workdir, tmp_path):
    out = tmp_path / "out"
    assert main(["sample", f"--workdir={workdir}", f"--out={out}", "--num=4", "--label=low", "--label=high"]) == 0
    names = {file.name for file in out.iterdir()}
    assert {"000000.wav", "000003.wav", "grid.png", "classes.png", "index.html", "manifest.json"} <= names
    with np.load(out / "samples.npz") as held:
        clips = held["clips"]
    assert clips.shape == (4, LENGTH, 2)
    for i, clip in enumerate(clips):
        read, rate = soundfile.read(out / f"{i:06d}.wav")
        assert rate == RATE
        np.testing.assert_allclose(read, clip, atol=1 / 2**15)
    page = (out / "index.html").read_text()
    assert page.count("data:audio/wav;base64,") == page.count("data:image/png;base64,") == 4
    assert "000001.wav · high" in page


def test_a_part_in_seconds_is_drawn_again_and_the_rest_is_kept(workdir, tmp_path):
    given = np.random.default_rng(0).uniform(-0.9, 0.9, (LENGTH, 2))
    soundfile.write(tmp_path / "given.wav", given, RATE, "FLOAT")
    flags = [f"--init_image={tmp_path / 'given.wav'}", "--paint=0.05,0.1", "--resample=1", "--num=2", "--label=low"]
    assert main(["sample", f"--workdir={workdir}", f"--out={tmp_path / 'out'}", *flags]) == 0
    with np.load(tmp_path / "out/samples.npz") as held:
        clips = held["clips"]
    part = slice(RATE // 20, RATE // 10)
    kept = np.delete(clips, np.r_[part], axis=1)
    np.testing.assert_allclose(kept, np.broadcast_to(np.delete(given, np.r_[part], axis=0), kept.shape), atol=1e-6)
    assert (abs(clips[:, part] - given[part]) > 0.1).any()
