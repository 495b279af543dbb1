"""`diffusion-jax report` on runs as they come: images with everything, sound, a stopped run, a damaged one."""

import html
import json
import re
import shutil

import numpy as np
import pytest
import soundfile

import diffusion_jax
from diffusion_jax.cli.main import main
from diffusion_jax.runs.workdir import events
from diffusion_jax.runs.workdir.paths import Workdir

CONFIG = """
from diffusion_jax.config import base


def get_config():
    config = base()
    config.data.source = {source!r}
    config.model.update(channels=8, multipliers=(1,), blocks=1, attention=(), groups=4, patch=8)
    config.train.update(steps=2, batch_size=8)
    config.log_every = 1
    config.sample.update(every=2, num=2, sampler="ddim", steps=2)
    return config
"""


def text_of(file):
    return html.unescape(file.read_text())


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs") / "tiny"
    assert main(["train", "--config=tiny", f"--workdir={root}", "--config.train.steps=10"]) == 0
    return root


def test_a_run_of_images(workdir, tmp_path, capsys):
    (workdir / "evaluations").mkdir()
    result = {
        "subject": {"checkpoint_step": 10, "weights": "ema", "sampling": {"sampler": "ddim", "steps": 5}},
        "metrics": {"fd": {"label": "FD of features", "value": 12.34567, "std": None, "how": {"n": 64}}},
        "device": "cpu",
    }
    (workdir / "evaluations" / "00000010-abcd.json").write_text(json.dumps(result))
    assert main(["report", str(workdir), f"--out={tmp_path / 'page.html'}"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'page.html'}\n"
    text = text_of(tmp_path / "page.html")
    for said in (
        "complete: 10 of 10 steps",
        "1,797 examples, 8 x 8 x 1",
        "10,945 parameters",
        "learning rate 0.003",
        ">Gradient norm<",
        ">Learning rate<",
        "Loss by noise level",
        ">step 10<",
        "FD of features",
        "12.346",
        "ddim",
        "model.channels",
        "None was noted.",
        "tensorboard --logdir=",
    ):
        assert said in text, said
    digest = re.search(r">([0-9a-f]{16})<", text)[1]
    assert digest  # of the checkpoint's manifest


def test_the_config_file_on_the_page_makes_the_same_config(workdir, tmp_path):
    file = diffusion_jax.report(workdir, tmp_path / "page.html")
    source = re.search(r"A config file that makes this run</summary><pre>(.*?)</pre>", file.read_text(), re.DOTALL)[1]
    names = {}
    exec(html.unescape(source), names)
    made = names["get_config"]()
    assert made.to_dict() == Workdir(workdir).read_config().to_dict()


@pytest.mark.slow
def test_a_run_of_sound_and_one_without_previews(tmp_path):
    (tmp_path / "sounds").mkdir()
    for i in range(8):
        wave = np.sin(2 * np.pi * 200 * np.arange(400) / 4000 + i)
        soundfile.write(tmp_path / f"sounds/{i}.wav", wave, 4000)
    (tmp_path / "config.py").write_text(CONFIG.format(source=f"audio:{tmp_path / 'sounds'}@4000"))
    root = tmp_path / "run"
    assert main(["train", f"--config={tmp_path / 'config.py'}", f"--workdir={root}"]) == 0
    text = text_of(diffusion_jax.report(root))
    assert (root / "report.html").is_file()
    assert "400 x 1" in text
    assert text.count("<figcaption>") == 1
    shutil.rmtree(root / "samples")
    assert "The run has drawn none" in text_of(diffusion_jax.report(root))


def test_faults_and_a_stop_are_told(workdir, tmp_path):
    root = tmp_path / "run"
    shutil.copytree(workdir, root)
    config = json.loads((root / "config.json").read_text())
    config["train"]["steps"] = 1000
    (root / "config.json").write_text(json.dumps(config))
    events.append(Workdir(root), events.ROLL_BACK, 10, reason="the loss was NaN for 10 steps")
    events.append(Workdir(root), events.END, 10, stopped="SIGTERM")
    (root / "nonfinite.jsonl").write_text('{"step": 8, "loss": "nan", "grad_norm": "inf"}\n{"ste')
    text = text_of(diffusion_jax.report(root))
    assert "stopped by SIGTERM: 10 of 1,000 steps" in text
    assert "the loss was NaN for 10 steps" in text
    assert "loss nan, grad_norm inf" in text


def test_a_run_of_an_earlier_version_has_less_on_its_page(workdir, tmp_path):
    root = tmp_path / "run"
    shutil.copytree(workdir, root)
    for name in ("events.jsonl", "metrics.jsonl"):
        (root / name).unlink()
    text = text_of(diffusion_jax.report(root))
    assert "complete: 10 of 10 steps" in text  # by its checkpoint
    assert "elements" in text  # of the table of parameters
    assert "Starts and ends" not in text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metrics.jsonl", '{"step": 1, "loss": 2}\nbroken\n{"step": 3, "loss": 2}\n', "metrics.jsonl, line 2, is not"),
        (
            "events.jsonl",
            '{"event": "start", "step": 0}\n{}\n{"event": "end", "step": 3}\n',
            "events.jsonl, line 2, is no",
        ),
        ("evaluations/1.json", '{"subject"', "1.json is damaged"),
        ("config.json", '{"seed"', "config.json is damaged"),
    ],
)
def test_what_is_damaged_is_said_in_one_sentence_and_no_page_is_left(workdir, tmp_path, capsys, name, content, message):
    root, out = tmp_path / "run", tmp_path / "page.html"
    shutil.copytree(workdir, root)
    (root / name).parent.mkdir(exist_ok=True)
    (root / name).write_text(content)
    assert main(["report", str(root), f"--out={out}"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not out.exists()


@pytest.mark.parametrize("words", [[], ["a", "b"], ["nowhere"]])
def test_what_is_no_workdir_is_said(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["report", *words]) == 2
    assert "workdir" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
