"""The commands as a user runs them: what they write, and what they say to bad input."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from diffusion_jax.cli.main import main
from diffusion_jax.report.metrics import read_metrics
from diffusion_jax.runs.workdir import restored as trained
from diffusion_jax.train.checkpoint import Checkpoints

ROOT = Path(__file__).parents[2]
TINY = f"--config={ROOT / 'configs/tiny.py'}"


def train(workdir, *overrides):
    return main(["train", TINY, f"--workdir={workdir}", *overrides])


def sample(workdir, out, *flags):
    return main(["sample", f"--workdir={workdir}", f"--out={out}", *flags])


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs") / "tiny"
    assert train(root) == 0
    return root


def test_training_writes_all_it_promises(workdir):
    records = read_metrics(workdir / "metrics.jsonl")
    assert [record["step"] for record in records] == [5, 10, 15, 20]
    assert all(np.isfinite(record["loss"]) and record["images_per_second"] > 0 for record in records)
    assert [record["learning_rate"] for record in records] == pytest.approx([3e-3] * 4)  # warmed up in 5 steps
    assert [json.loads(line)["event"] for line in (workdir / "events.jsonl").open()] == ["start", "end"]
    assert json.loads((workdir / "config.json").read_text())["model"]["channels"] == 8
    for picture in ("samples/00000010.png", "samples/00000020.png", "loss.png"):
        assert Image.open(workdir / picture).size > (100, 100)
    assert "conv_in/kernel" in (workdir / "parameters.txt").read_text()
    assert json.loads((workdir / "classes.json").read_text())["names"] == [str(digit) for digit in range(10)]
    assert list((workdir / "tensorboard").iterdir())
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["10", "20"]


def test_sampling_needs_only_the_workdir(workdir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert sample(workdir, "out", "--num=5", "--label=3", "--label=none", "--guidance=2.0", "--seed=7") == 0
    out = tmp_path / "out"
    names = [f"{i:06d}.png" for i in range(5)]
    assert sorted(path.name for path in out.iterdir()) == [
        *names,
        "classes.png",
        "grid.png",
        "manifest.json",
        "samples.npz",
    ]
    arrays = np.load(out / "samples.npz")
    assert arrays["images"].shape == (5, 8, 8, 1)
    assert arrays["images"].dtype == np.uint8
    assert arrays["labels"].tolist() == [3, 10, 3, 10, 3]
    assert arrays["seeds"].tolist() == [7, 8, 9, 10, 11]
    np.testing.assert_array_equal(np.asarray(Image.open(out / names[2])), arrays["images"][2, ..., 0])
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["checkpoint_step"] == 20
    assert manifest["labels"] == ["3", "none", "3", "none", "3"]
    assert {key: manifest["sampling"][key] for key in ("sampler", "steps", "guidance", "threshold")} == {
        "sampler": "ddim",
        "steps": 5,
        "guidance": 2.0,
        "threshold": "static",
    }
    assert manifest["versions"]["jax"] == jax.__version__


def test_a_sample_depends_on_its_seed_alone(workdir, tmp_path):
    """Not on the batch it is drawn in, nor on where the run of seeds starts; classes are drawn from the seed too."""
    assert sample(workdir, tmp_path / "a", "--num=24", "--batch=24") == 0
    assert sample(workdir, tmp_path / "b", "--num=20", "--batch=8", "--seed=4") == 0
    a, b = (np.load(tmp_path / name / "samples.npz") for name in "ab")
    np.testing.assert_array_equal(a["labels"][4:], b["labels"])
    difference = a["images"][4:].astype(int) - b["images"]
    assert np.abs(difference).max() <= 1  # one level of 256: f32 rounding may tip a pixel


def test_an_older_checkpoint_and_raw_parameters_can_be_chosen(workdir, tmp_path):
    for name, flags in {"new": [], "old": ["--step=10"], "raw": ["--noema"]}.items():
        assert sample(workdir, tmp_path / name, "--num=4", *flags) == 0
    manifests = {name: json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("new", "old", "raw")}
    assert manifests["old"]["checkpoint_step"] == 10
    assert manifests["raw"]["weights"] == "params"
    images = {name: np.load(tmp_path / name / "samples.npz")["images"] for name in manifests}
    assert (images["new"] != images["old"]).any()
    assert (images["new"] != images["raw"]).any()


def test_overwrite_replaces_samples_and_nothing_else(workdir, tmp_path, capsys):
    out = tmp_path / "out"
    assert sample(workdir, out, "--num=4") == 0
    assert sample(workdir, out, "--num=2") == 2
    assert "already has files" in capsys.readouterr().err
    assert (out / "000003.png").exists()
    assert sample(workdir, out, "--num=2", "--overwrite") == 0
    assert not (out / "000003.png").exists()
    (out / "manifest.json").unlink()
    assert sample(workdir, out, "--num=2", "--overwrite") == 2
    assert "not a folder of samples" in capsys.readouterr().err
    assert (out / "000001.png").exists()


def test_the_current_folder_and_a_link_are_filled_and_filled_anew(workdir, tmp_path, monkeypatch):
    """What is drawn is never lost to the kind of folder that it is to go to, nor are the samples before it."""
    place = tmp_path / "place"
    place.mkdir()
    (tmp_path / "link").symlink_to(place)
    monkeypatch.chdir(place)
    assert sample(workdir, ".", "--num=2") == 0
    assert sample(workdir, tmp_path / "link", "--num=1", "--overwrite") == 0
    assert sorted(os.listdir(".")) == ["000000.png", "grid.png", "manifest.json", "samples.npz"]
    assert [path.name for path in tmp_path.iterdir() if path.name != "link"] == ["place"]


@pytest.mark.parametrize("command", ["sample", "figures", "evaluate", "evaluate heatmap", "precompute", "plan"])
def test_a_place_that_cannot_be_written_is_said_before_the_work(workdir, tmp_path, capsys, monkeypatch, command):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("jax.jit", lambda *a, **k: pytest.fail("something was computed first"))
    flags = {
        "sample": [f"--workdir={workdir}"],
        "figures": [],
        "evaluate": [f"--workdir={workdir}", "--metrics=bits_per_dim"],
        "evaluate heatmap": [f"--workdir={workdir}", "--metrics=fd", "--over=guidance=1,2", "--features=x"],
        "precompute": [TINY],
        "plan": [TINY],
    }[command]
    suffix = ".json" if command in ("evaluate", "plan") else ""
    assert main([*command.split(), *flags, f"--out={tmp_path}/file/out{suffix}"]) == 2
    error = capsys.readouterr().err
    assert "cannot be written" in error
    assert "Not a directory; give another place" in error


def state_of(workdir, step):
    """Every array of a checkpoint, as bytes."""
    import orbax.checkpoint as ocp

    from diffusion_jax.train.checkpoint import TREES

    with ocp.CheckpointManager((workdir / "checkpoints").absolute(), item_names=TREES.values()) as manager:
        restored = manager.restore(
            step, args=ocp.args.Composite(**{t: ocp.args.StandardRestore() for t in TREES.values()})
        )
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves([restored[tree] for tree in TREES.values()])]


def test_resumed_training_has_the_same_bits(tmp_path):
    """Train 20 = train 10, stop, resume 10: dropout, flips, EMA, accumulation, dropped labels, learned times,
    power-function averages."""
    overrides = ["--config.data.flip=True", "--config.train.accumulate=2", "--config.times=loss_second_moment"]
    overrides += ["--config.ema.profiles=(0.05,)", "--config.ema.every=10"]
    overrides += ["--config.sample.every=0"]
    assert train_on_one_device(tmp_path / "whole", *overrides) == 0
    assert train_on_one_device(tmp_path / "parts", *overrides, "--config.train.steps=10") == 0
    assert train_on_one_device(tmp_path / "parts", *overrides, "--config.train.steps=20") == 0
    whole, parts = (state_of(tmp_path / name, 20) for name in ("whole", "parts"))
    assert len(whole) > 200
    assert whole == parts
    whole, parts = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("whole", "parts"))
    assert [(r["step"], r["loss"]) for r in whole] == [(r["step"], r["loss"]) for r in parts]


def train_on_one_device(workdir, *overrides):
    with pytest.MonkeyPatch.context() as patch:
        devices = jax.devices()[:1]
        patch.setattr(jax, "devices", lambda *_: devices)
        return train(workdir, *overrides)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--config.trian.steps=3"], "unknown config key: trian.steps. Did you mean 'train.steps'?"),
        (["--config.train.stepz=3"], "unknown config key: train.stepz"),
        (["--config.nope=3"], "unknown config key: nope"),
        (["--config.train.steps=many"], "invalid literal for int"),
        (["--config.train.steps=0"], "train.steps is at least 1; got 0"),
        (["--config.train.batch_size=0"], "train.batch_size is at least 1; got 0"),
        (["--config.optimizer.learning_rate=nan"], "optimizer.learning_rate is at least 0 and finite; got nan"),
        (["--config.optimizer.b1=2"], "optimizer.b1 is in [0, 1); got 2.0"),
        (["--config.model.multipliers=(1,0)"], "model.multipliers: every entry is at least 1; got 0 in (1, 0)"),
        (["--num_processes=0"], "--num_processes is at least 1; got 0"),
        (["--config.train.batch_size=11"], "train.batch_size=11 is not divisible by 2"),
        (["--config.train.batch_size=1000000000"], "takes at least"),
        (["--config.mesh.fsdp=3"], "does not fit 8 devices"),
        (
            ["--config.data.height=9", "--config.model.multipliers=(1,2)"],
            "every side must be a multiple of 2; got 9 x 8",
        ),
        (["--config.model.groups=3"], "8 channels cannot be normalized in 3 groups"),
        (["--config.model.num_classes=7"], "has 10 classes"),
        (
            ["--config.task=classifier", "--config.model.head_channels=8", "--config.model.patch=2"],
            "a classifier has no model.patch=2; leave it at 1",
        ),
        (["--config.schedule=cosin"], "unknown schedule 'cosin'; choose from"),
        (["--config.sample.sampler=ddim(eta=2)"], "eta in [0, 1]"),
        (["--config.sample.steps=101"], "the schedule has 100 steps"),
        (["--config.train.steps_per_dispatch=3"], "is not a multiple of train.steps_per_dispatch=3"),
        (["--config.data.source=folder:/nowhere"], "/nowhere"),
        (["--config.data.source=nowhere"], "nowhere"),
        (["--config.optimizer.name=sgd"], "unknown optimizer.name 'sgd'"),
        (["--config.weighting=truncated_snr(floor=2.0, ceiling=1.0)"], "needs floor <= ceiling; got 2.0 and 1.0"),
        (["--config.objective=vbl"], "unknown objective 'vbl'; choose from progressive, simple, uncertainty, vdm, vlb"),
        (["--config.model.dtype=float16"], "unknown model.dtype 'float16'"),
        (["stray"], "unexpected argument 'stray'"),
        (["--frobnicate=1"], "Unknown command line flag 'frobnicate'"),
    ],
)
def test_bad_training_input_is_one_sentence_and_writes_nothing(tmp_path, capsys, overrides, message):
    assert train(tmp_path / "run", *overrides) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def image_folder(root, *, size=(9, 9)):
    """Three classes of four PNGs."""
    rng = np.random.default_rng(0)
    for i in range(12):
        path = root / "abc"[i % 3] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(path)
    return root


FOLDER = [
    "--config.model.num_classes=0",
    "--config.data.channels=3",
    "--config.train.steps=2",
    "--config.sample.every=0",
]


def test_a_corrupt_image_is_named(tmp_path, capsys):
    """It is found while training, in the pipeline's threads, and still is one sentence."""
    folder = image_folder(tmp_path / "images")
    broken = folder / "b" / "4.png"
    broken.write_bytes(broken.read_bytes()[:60])
    assert train(tmp_path / "run", f"--config.data.source=folder:{folder}", *FOLDER) == 2
    error = capsys.readouterr().err
    assert "b/4.png" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_an_empty_folder_is_refused(tmp_path, capsys):
    (tmp_path / "images").mkdir()
    assert train(tmp_path / "run", f"--config.data.source=folder:{tmp_path / 'images'}", *FOLDER) == 2
    assert "images" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_workdir_that_cannot_be_written_is_named(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert train(tmp_path / "file" / "run") == 2
    error = capsys.readouterr().err
    assert str(tmp_path / "file") in error
    assert error.count("\n") == 1


def test_a_workdir_of_another_network_is_left_as_it_is(workdir, capsys):
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*") if path.is_file()}
    assert train(workdir, "--config.model.channels=16") == 2
    error = capsys.readouterr().err
    assert "is of another network: conv_in/bias is float32[8] in the checkpoint, float32[16] here" in error
    assert error.count("\n") == 1
    assert before == {path: path.stat().st_mtime_ns for path in workdir.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--label=10"], "--label is a class from 0 to 9, or none; got 10"),
        (["--label=cat"], "--label is a class from 0 to 9, or none; got cat"),
        (["--steps=0"], "--steps is at least 1; got 0"),
        (["--guidance=nan"], "--guidance is a finite number; got nan"),
        (["--guidance_interval=0,nan"], "--guidance_interval: every entry is at least 0; got nan in (0.0, nan)"),
        (["--ema=nan"], "--ema is above 0 and finite; got nan"),
        (["--guidence=2"], "Unknown command line flag 'guidence'. Did you mean: guidance"),
        (["--steps=1000"], "the schedule has 100 steps"),
        (["--num=0"], "--num is at least 1; got 0"),
        (["--batch=0"], "--batch is at least 1; got 0"),
        (["--guidance_interval=low"], "--guidance_interval is two numbers"),
        (["--guidance_rescale=3", "--guidance=2"], "--guidance_rescale is in [0, 1]; got 3.0"),
        (["--seed=-1"], "--seed is from 0 to 2147483647; got -1"),
        (["--sampler=dpm"], "unknown sampler 'dpm'"),
        (["--sampler=DDIM"], "Did you mean 'ddim'?"),
        (["--grid=log"], "unknown time grid 'log'"),
        (["--step=15"], "no checkpoint of step 15"),
        (["--num=many"], "many"),
    ],
)
def test_bad_sampling_input_is_one_sentence_and_writes_nothing(workdir, tmp_path, capsys, flags, message):
    assert sample(workdir, tmp_path / "out", *flags) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_samples_of_a_network_that_returns_nan_are_an_error_and_no_pictures(workdir, tmp_path, capsys, monkeypatch):
    read = trained.restore_weights
    monkeypatch.setattr(trained, "restore_weights", lambda *of: jax.tree.map(lambda a: a * np.nan, read(*of)))
    assert sample(workdir, tmp_path / "out", "--num=2", "--steps=2") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "100.0% of the samples' values are NaN or infinite; the network or the sampler has diverged" in error
    assert not list(tmp_path.iterdir())


def test_nothing_to_sample_from(workdir, tmp_path, capsys):
    assert sample(tmp_path / "none", tmp_path / "out") == 2
    assert "is not a workdir" in capsys.readouterr().err
    (tmp_path / "begun" / "checkpoints").mkdir(parents=True)
    (tmp_path / "begun" / "config.json").write_text((workdir / "config.json").read_text())
    assert sample(tmp_path / "begun", tmp_path / "out") == 2
    assert "no checkpoint in" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_unknown_command_and_help(capsys):
    assert main(["trian"]) == 2
    assert "unknown command 'trian'; choose from new, train, sample" in capsys.readouterr().err
    assert main([]) == 0
    assert main(["sample", "--help"]) == 0
    assert "--guidance" in capsys.readouterr().out
    assert main(["sample"]) == 2


def test_checkpoints_are_kept_by_number_and_interval(tmp_path):
    overrides = ["--config.checkpoint.every=1", "--config.checkpoint.keep=2", "--config.checkpoint.keep_every=3"]
    assert train(tmp_path / "run", *overrides, "--config.sample.every=0", "--config.train.steps=8") == 0
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints", read_only=True)
    assert checkpoints.steps() == [3, 6, 7, 8]


def test_a_config_that_builds_on_another_is_read_from_any_folder(tmp_path):
    """As the console script does it: with -P, Python does not look for modules in the current folder."""
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-P", "-m", "diffusion_jax", "precompute", f"--config={ROOT}/configs/shapes_text.py"]
    run = subprocess.run([*command, "--out=a"], cwd=tmp_path, env=clean, capture_output=True, text=True, timeout=300)
    assert "nothing to precompute" in run.stderr  # the first that is said of a config that was read
