"""The command as a user runs it, and the mathematics of what it draws."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from diffusion_jax import experiment
from diffusion_jax.cli.main import main
from diffusion_jax.runs.sample import batch_figure
from diffusion_jax.runs.sample import diffusion_figures as runs
from diffusion_jax.runs.workdir import restored
from diffusion_jax.runs.workdir.paths import Workdir
from diffusion_jax.train import sharding

TINY = f"--config={Path(__file__).parents[2] / 'configs/tiny.py'}"


def figures(out, *flags):
    return main(["figures", f"--out={out}", *flags])


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs") / "tiny"
    assert main(["train", TINY, f"--workdir={root}", "--config.sample.every=0", "--config.train.steps=10"]) == 0
    return root


@pytest.mark.parametrize("text", ["linear", "cosine(steps=100)", "linear | zero_snr", "ve", "rectified_flow"])
def test_forward_is_alpha_x0_plus_sigma_eps(text):
    rng = np.random.default_rng(0)
    x0, eps = rng.uniform(-1, 1, (8, 8, 3)).astype(np.float32), rng.standard_normal((8, 8, 3)).astype(np.float32)
    times = np.arange(9) / 8
    schedule = experiment.schedule(text)
    x, scale = runs.forward(jnp.asarray(x0), jnp.asarray(eps), schedule, times)
    for t, x_t, factor in zip(times, x, scale, strict=True):
        alpha, sigma = float(schedule.alpha(jnp.float32(t))), float(schedule.sigma(jnp.float32(t)))
        np.testing.assert_allclose(x_t, alpha * x0 + sigma * eps, rtol=1e-5, atol=1e-5)
        assert float(factor) == pytest.approx((alpha**2 + sigma**2) ** -0.5, rel=1e-5)
    np.testing.assert_allclose(x[0], x0, atol=1e-6)
    if "zero_snr" in text or text == "rectified_flow":
        np.testing.assert_allclose(x[-1], eps, atol=1e-5)


def test_forward_and_schedules_need_no_workdir(tmp_path, capsys):
    picture = tmp_path / "image.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 4), np.uint8)).save(picture)
    flags = ["--schedule=linear", "--schedule=cosine | zero_snr", "--schedule=ve", f"--image={picture}", "--size=32"]
    out = tmp_path / "out"
    assert figures(out, *flags) == 0
    assert sorted(path.name for path in out.iterdir()) == sorted(runs.THEORY)
    width, height = Image.open(out / "forward.png").size
    assert width >= 9 * 96
    assert 3 * 96 <= height <= 3 * 96 + 100
    assert str(out) in capsys.readouterr().out


def test_a_workdir_adds_its_schedule_trajectory_and_loss(workdir, tmp_path, monkeypatch, capsys):
    drawn = {}
    strips = runs.drawings.strips_png

    def spy(x, scale, times, rows, title):
        drawn[title.split()[0]] = (x, scale, times, rows, title)
        return strips(x, scale, times, rows, title)

    monkeypatch.setattr(runs.drawings, "strips_png", spy)
    flags = ["--num=3", "--seed=5", "--label=3", "--label=none", "--guidance=2.0", "--steps=7"]
    assert figures(tmp_path / "out", f"--workdir={workdir}", *flags) == 0
    others = {*runs.LATENT, "attention.png"}  # the model works in pixels, and is told no captions
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(runs.NAMES) - others
    told = capsys.readouterr().out
    assert "no autoencoder of images, so there is no latents.png and no latent_diffusion.png" in told
    assert "so there is no attention.png" in told
    assert drawn["Forward"][3] == ["cosine(steps=100)", "linear", "cosine"]

    x, scale, times, rows, title = drawn["Reverse"]
    assert title == "Reverse trajectory of step 10: ddim, 7 steps, guidance 2"
    assert rows[::2] == ["seed 5, class 3: xₜ", "seed 6, no class: xₜ", "seed 7, class 3: xₜ"]
    assert x.shape == (6, 8, 8, 8, 1)
    assert times[0] == 1
    assert times[-1] == 0
    np.testing.assert_allclose(scale, 1, atol=1e-5)

    assert main(["sample", f"--workdir={workdir}", f"--out={tmp_path / 'samples'}", *flags]) == 0
    samples = np.load(tmp_path / "samples" / "samples.npz")["images"].astype(int)
    for last in (x[::2, -1], x[1::2, -1]):
        pixels = np.rint((last.clip(-1, 1) + 1) * 127.5)
        assert np.abs(pixels - samples).max() <= 1  # another compiled program: rounding may tip a pixel
    # ddim is deterministic and starts at the prior: its first row is sigma(1) eps, of unit variance
    assert x[::2, 0].std() == pytest.approx(1, abs=0.25)
    assert np.abs(x[1::2]).max() <= 1  # predictions are thresholded, as the sampler sees them


def test_a_trajectory_obeys_ddim_between_its_columns(workdir):
    """With one column a step, x_s = alpha_s x0 + sigma_s (x_t - alpha_t x0) / sigma_t of the x0 that is shown."""
    config = Workdir(workdir).read_config()
    model, mesh = experiment.model(config), sharding.mesh()
    how = dataclasses.replace(experiment.sampling(config), sampler="ddim", steps=4, guidance=1.0)
    program, times = experiment.trajectory_program(model, how, mesh, columns=11)
    params = model.init(jax.random.key(0))
    n = mesh.size
    numbers = np.arange(n, dtype=np.int32)
    x, x0 = (np.asarray(a) for a in program(params, {}, numbers, {"label": numbers}))
    assert x.shape == x0.shape == (5, n, 8, 8, 1)
    alpha, sigma = (np.asarray(a) for a in model.schedule.level(jnp.asarray(times, jnp.float32)))
    for i in range(4):
        eps = (x[i] - alpha[i] * x0[i]) / sigma[i]
        np.testing.assert_allclose(x[i + 1], alpha[i + 1] * x0[i] + sigma[i + 1] * eps, atol=1e-4)


def test_a_run_without_loss_by_time_is_told(workdir, tmp_path, capsys):
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text(json.dumps({"step": 5, "loss": 1.0}) + "\n")
    assert runs._draw_loss_by_time(Workdir(tmp_path)) is None
    metrics.unlink()
    assert runs._draw_loss_by_time(Workdir(tmp_path)) is None


def test_a_batch_is_drawn_as_a_step_sees_it(workdir, monkeypatch):
    """Each row is alpha x0 + sigma eps of the same examples, at times and with noise that are new in each epoch."""
    drawn = []
    monkeypatch.setattr(batch_figure.drawings, "tiles_png", lambda *arguments: drawn.append(arguments) or b"")
    trained = restored.restore(workdir, step=None, average=True, overrides={})
    assert batch_figure.draw_batch(trained) == b""
    tiles, rows, titles, _ = drawn[0]
    assert tiles.shape == (5, 10, 8, 8, 1)
    assert rows[0] == "x₀"
    assert tiles[0].max() == 255
    times = [[float(title.removeprefix("t = ")) for title in row] for row in titles[1:]]
    assert len({tuple(row) for row in times}) == 4
    x0 = tiles[0].astype(float).reshape(10, -1)
    for row, at in zip(tiles[1:], times, strict=True):
        for i, t in enumerate(at):
            if t < 0.1:  # next to no noise
                assert np.abs(row[i].reshape(-1) - x0[i]).mean() < 30
    assert batch_figure.draw_batch(_with_source(trained, "folder:/nowhere")) is None


def _with_source(trained, source):
    config = trained.config.copy_and_resolve_references()
    config.data.source = source
    return dataclasses.replace(trained, config=config)


def test_overwrite_replaces_figures_and_nothing_else(tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    for name in ("trajectory.png", "batch.png"):
        (out / name).write_text("of another run")
    assert figures(out, "--size=8") == 2
    assert "already has files" in capsys.readouterr().err
    assert figures(out, "--size=8", "--overwrite") == 0
    assert sorted(path.name for path in out.iterdir()) == sorted([*runs.THEORY, "notes.txt"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--schedule=cosin"], "unknown schedule 'cosin'; choose from"),
        (["--schedule=linear | zero"], "unknown schedule modifier 'zero'"),
        (["--schedule=ve | zero_snr"], "needs a variance-preserving schedule"),
        (["--image=nowhere.png"], "there is no image at nowhere.png"),
        ([f"--image={__file__}"], "is not an image of a known format"),
        (["--size=0"], "--size is from 1 to 1024; got 0"),
        (["--workdir=nowhere"], "nowhere is not a workdir"),
        (["--label=3"], "--label is of a trained model; give its --workdir"),
        (["--steps=10"], "--steps is of a trained model; give its --workdir"),
        (["--seed=-1"], "--seed is from 0 to 2147483647; got -1"),
        (["stray"], "unexpected argument 'stray'"),
    ],
)
def test_bad_input_is_one_sentence_and_writes_nothing(tmp_path, capsys, flags, message):
    assert figures(tmp_path / "out", *flags) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--label=10"], "--label is a class from 0 to 9, or none; got 10"),
        (["--sampler=dpm"], "unknown sampler 'dpm'"),
        (["--step=15"], "no checkpoint of step 15"),
        (["--num=0"], "--num is at least 1; got 0"),
    ],
)
def test_bad_sampling_input_is_one_sentence_and_writes_nothing(workdir, tmp_path, capsys, flags, message):
    assert figures(tmp_path / "out", f"--workdir={workdir}", *flags) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_out_is_needed_and_is_a_folder(tmp_path, capsys):
    assert main(["figures"]) == 2
    assert "needs --out" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert figures(tmp_path / "file") == 2
    assert "is a file" in capsys.readouterr().err
