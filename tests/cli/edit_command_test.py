"""Editing an image from the command line: what is kept, what is written, and what bad input is told."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.cli.main import main
from diffusion_jax.core.schedules import cosine
from diffusion_jax.runs.sample import run as sample_run

TINY = f"--config={Path(__file__).parents[2] / 'configs/tiny.py'}"


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs") / "tiny"
    assert main(["train", TINY, f"--workdir={root}", "--config.sample.every=0", "--config.train.steps=10"]) == 0
    return root


@pytest.fixture
def files(tmp_path):
    """An image of the model's size, a larger one, and a mask of each; and one of three colours."""
    rng = np.random.default_rng(0)
    left = np.where(np.arange(8) < 3, 255, 0).astype(np.uint8)
    arrays = {
        "image": rng.integers(0, 256, (8, 8), np.uint8),
        "mask": np.tile(left, (8, 1)),
        "large": rng.integers(0, 256, (20, 30), np.uint8),
        "gray": np.full((8, 8), 100, np.uint8),
        "black": np.zeros((8, 8), np.uint8),
        "small": rng.integers(0, 256, (4, 8), np.uint8),
    }
    for name, array in arrays.items():
        Image.fromarray(array).save(tmp_path / f"{name}.png")
    (tmp_path / "text.png").write_text("no image")
    return tmp_path


def edit(workdir, out, *flags):
    return main(["sample", f"--workdir={workdir}", f"--out={out}", "--num=3", *flags])


def images(out):
    return np.load(out / "samples.npz")["images"][..., 0]


def test_inpainting_keeps_the_known_pixels_exactly(workdir, files):
    out = files / "out"
    assert edit(workdir, out, f"--init_image={files}/image.png", f"--mask={files}/mask.png", "--resample=2") == 0
    given = np.asarray(Image.open(files / "image.png"))
    assert (images(out)[:, :, 3:] == given[:, 3:]).all()
    assert len({image[:, :3].tobytes() for image in images(out)}) == 3  # painted anew for each seed
    record = json.loads((out / "manifest.json").read_text())["edit"]
    assert record["inpaint"]
    assert (record["strength"], record["resample"], record["canvas"]) == (1.0, 2, [8, 8])
    assert (record["start"], record["steps"]) == (1.0, 5)
    width, height = Image.open(out / "edit.png").size
    assert width > 3 * height  # given, kept and three edits in a row


def test_less_strength_stays_nearer_to_the_image(workdir, files):
    given = np.asarray(Image.open(files / "image.png")).astype(float)
    distance = []
    for strength in ("0.2", "1.0"):
        out = files / strength
        assert edit(workdir, out, f"--init_image={files}/image.png", f"--strength={strength}") == 0
        distance.append(np.abs(images(out) - given).mean())
    assert distance[0] < 0.7 * distance[1]


def test_an_edit_starts_at_its_strength_and_says_where(workdir, files):
    """0.001, 0.05 and 0.3 lie below the last time of three steps, and below 1 / T of the chain of 100."""
    edits, schedule = {}, cosine(steps=100)
    for strength in (0.001, 0.05, 0.3):
        out = files / str(strength)
        assert edit(workdir, out, f"--init_image={files}/image.png", f"--strength={strength}", "--steps=3") == 0
        edits[strength] = images(out).astype(int)
        record = json.loads((out / "manifest.json").read_text())["edit"]
        assert (record["start"], record["steps"]) == (strength, 1)
        assert record["start_sigma"] == pytest.approx(float(schedule.sigma(np.float32(strength))), rel=1e-5)
    given = np.asarray(Image.open(files / "image.png")).astype(int)
    far = [np.abs(a - given).mean() for a in edits.values()]
    assert far[0] < far[1] < far[2]
    assert far[0] < 3  # of 255


def test_jumps_change_what_is_painted_and_keep_the_rest(workdir, files):
    painted = {}
    for jump in (1, 2):
        out = files / str(jump)
        flags = [f"--init_image={files}/image.png", f"--mask={files}/mask.png", "--resample=2", f"--jump={jump}"]
        assert edit(workdir, out, *flags) == 0
        assert json.loads((out / "manifest.json").read_text())["edit"]["jump"] == jump
        painted[jump] = images(out)
    np.testing.assert_array_equal(painted[1][:, :, 3:], painted[2][:, :, 3:])
    assert (painted[1] != painted[2]).any()


def test_a_picture_of_a_part_of_the_samples_says_so(workdir, files, capsys, monkeypatch):
    monkeypatch.setattr(sample_run, "_GRID", 4)
    for num, said in ((4, "grid.png\n"), (7, "grid.png; grid.png shows the first 4\n")):
        assert main(["sample", f"--workdir={workdir}", f"--out={files}/{num}", f"--num={num}"]) == 0
        assert capsys.readouterr().out.endswith(said)
        manifest = json.loads((files / f"{num}/manifest.json").read_text())
        assert manifest["pictures"] == {"grid.png": {"samples": 4, "of": num}}


def test_an_expanded_image_keeps_its_pixels_at_any_size(workdir, files):
    out = files / "out"
    assert edit(workdir, out, f"--init_image={files}/large.png", "--expand=1,2,3,5", "--resample=1", "--label=4") == 0
    assert images(out).shape == (3, 27, 34)
    assert (images(out)[:, 2:22, 1:31] == np.asarray(Image.open(files / "large.png"))).all()


def test_an_image_of_another_size_is_scaled_and_the_user_told(workdir, files, capsys):
    assert edit(workdir, files / "out", f"--init_image={files}/large.png") == 0
    assert "20 x 30 scaled and cropped to 8 x 8" in capsys.readouterr().out
    assert images(files / "out").shape == (3, 8, 8)


def test_inversion_finds_the_image_again_and_needs_no_luck(workdir, files):
    """The noise that DDIM finds leads back, without guidance and class, to nearly the image, the same for each seed."""
    given = np.asarray(Image.open(files / "image.png")).astype(float)
    flags = [f"--init_image={files}/image.png", "--label=none", "--guidance=1", "--sampler=ddim", "--threshold=none"]
    assert edit(workdir, files / "found", *flags, "--invert", "--strength=0.9", "--steps=100") == 0
    found = images(files / "found").astype(float)
    assert (found == found[0]).all()
    assert edit(workdir, files / "drawn", *flags, "--strength=0.9", "--steps=100") == 0
    assert np.abs(found - given).mean() < 0.2 * np.abs(images(files / "drawn") - given).mean()


def test_a_weaker_model_that_is_no_weaker_changes_nothing(workdir, files, tmp_path):
    """D + (s - 1) (D - D_weak) is D where both are one, and another where the weak one is an earlier checkpoint."""
    plain = ["sample", f"--workdir={workdir}", "--num=2", "--label=3"]
    assert main([*plain, f"--out={files}/plain", "--guidance=1"]) == 0
    assert main([*plain, f"--out={files}/same", "--guidance=3", f"--weak={workdir}"]) == 0
    assert main([*plain, f"--out={files}/noema", "--guidance=3", f"--weak={workdir}", "--noema"]) == 0
    same, alone = images(files / "same").astype(int), images(files / "plain").astype(int)
    assert np.abs(same - alone).max() <= 1
    assert main([*plain, f"--out={files}/none", "--guidance=1", f"--weak={workdir}"]) == 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--init_image=image.png", "--mask=mask.png", "--invert"], "give no --mask, --paint or --expand with it"),
        (["--mask=mask.png"], "--mask is of an edit; give what is edited too, as --init_image"),
        (["--init_image=none.png"], "there is no file"),
        (["--init_image=text.png"], "is not an image of a known format"),
        (["--init_image=image.png", "--strength=0"], "strength is in (0, 1]"),
        (
            ["--init_image=image.png", "--mask=large.png"],
            "is 20 x 30 pixels and --init_image 8 x 8; give them one size",
        ),
        (["--init_image=image.png", "--mask=gray.png"], "it has gray 100"),
        (["--init_image=image.png", "--mask=black.png"], "nothing to paint"),
        (["--init_image=image.png", "--mask=mask.png", "--resample=0"], "--resample is at least 1; got 0"),
        (["--init_image=image.png", "--mask=mask.png", "--sampler=heun"], "choose ddpm, ddim"),
        (["--init_image=image.png", "--mask=mask.png", "--sampler=ode"], "choose ddpm, ddim"),
        (["--init_image=image.png", "--mask=mask.png", "--jump=5"], "a jump of 5 steps needs more than 5 of them"),
        (["--jump=2"], "--jump is of an edit; give what is edited too, as --init_image"),
        (["--init_image=image.png", "--expand=1,2"], "--expand is left,top,right,bottom"),
        (["--init_image=image.png", "--expand=999999,0,0,0"], "8 x 1,000,007 pixels is drawn in 250,001 windows"),
        (["--init_image=image.png", "--expand=9999999,9999999,0,0"], "takes 465,661.9 GiB of memory"),
        (["--batch=100000000", "--num=100000000"], "give a smaller --batch"),
        (
            ["--init_image=image.png", "--expand=1,2,3,-4"],
            "--expand: every entry is at least 0; got -4 in (1, 2, 3, -4)",
        ),
        (["--init_image=small.png", "--expand=1,0,1,0"], "less than the model's 8 x 8"),
    ],
)
def test_bad_input_is_one_sentence_and_writes_nothing(workdir, files, capsys, monkeypatch, flags, message):
    monkeypatch.chdir(files)
    assert edit(workdir, "out", *flags) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not Path("out").exists()
