"""`evaluate` on an imported workdir: samples of captions against real images of a folder that --data names."""

import json

import numpy as np
import published_pipeline
import pytest
from export_command_test import digits, save
from PIL import Image

from diffusion_jax.cli.main import main


@pytest.mark.slow
def test_an_import_is_measured_against_the_images_of_a_folder(tmp_path, capsys):
    pipeline = published_pipeline.write(tmp_path / "pipe")
    assert main(["import", f"--from={pipeline}", f"--workdir={tmp_path}/w"]) == 0
    config = digits(head_channels=4, num_classes=3)
    config.task, config.data.shape = "classifier", (16, 16, 3)
    classifier = save(tmp_path / "classifier", config)
    images, rng = tmp_path / "images", np.random.default_rng(0)
    images.mkdir()
    for i in range(4):
        Image.fromarray(rng.integers(0, 256, (20, 20, 3), np.uint8)).save(images / f"{i}.png")
    lines = [json.dumps({"file_name": f"{i}.png", "text": "abca"[: i + 1]}) for i in range(4)]
    (images / "metadata.jsonl").write_text("\n".join(lines))
    flags = [f"--workdir={tmp_path}/w", "--metrics=fd", "--num=4", "--steps=2", f"--features={classifier}"]
    capsys.readouterr()
    assert main(["evaluate", *flags, f"--out={tmp_path}/none.json"]) == 2
    assert "IMAGES" in capsys.readouterr().err  # the place for one's own
    assert main(["evaluate", *flags, f"--data=folder:{images}", f"--out={tmp_path}/a.json"]) == 0
    result = json.loads((tmp_path / "a.json").read_text())
    assert result["data"]["source"] == f"folder:{images}"
    assert result["subject"]["sampling"]["guidance"] == 7.5
    assert result["metrics"]["fd"]["value"] > 0
    (images / "metadata.jsonl").write_text("\n".join(lines[:3]))
    (images / "3.png").unlink()
    assert main(["evaluate", *flags, f"--data=folder:{images}", f"--out={tmp_path}/few.json"]) == 2
    assert "has 3 images, and --num is 4" in capsys.readouterr().err
