"""Plain arrays of every rank through the commands: trained, resumed, sampled in their own units, measured."""

import json

import numpy as np
import pytest

from diffusion_jax.cli.main import main

CONFIG = """
from diffusion_jax.config import base


def get_config():
    config = base()
    config.data.source = {source!r}
    config.prediction, config.schedule = "x0", "cosine"
    config.model.update(channels=8, multipliers=(1,), blocks=1, attention=(), groups=4, num_classes={classes})
    config.train.update(steps=4, batch_size=8)
    config.log_every = 2
    config.checkpoint.every = 2
    config.sample.update(every=4, num=4, sampler="ddim", steps=2, guidance=1.0)
    return config
"""

SHAPES = {1: (16, 2), 2: (8, 12, 1), 3: (4, 4, 6, 1)}

MEAN, DEVIATION = 5000.0, 40.0


@pytest.fixture(scope="module", params=SHAPES, ids=lambda rank: f"rank{rank}")
def run(request, tmp_path_factory):
    """(workdir of a run on arrays of a rank, its command, the shape of an array)."""
    folder = tmp_path_factory.mktemp(f"rank{request.param}")
    shape = SHAPES[request.param]
    rng = np.random.default_rng(request.param)
    values = (MEAN + DEVIATION * rng.standard_normal((24, *shape))).astype(np.float32)
    np.savez(folder / "data.npz", x=values, labels=np.arange(24) % 3)
    (folder / "config.py").write_text(CONFIG.format(source=f"arrays:{folder / 'data.npz'}", classes=3))
    command = ["train", f"--config={folder / 'config.py'}", f"--workdir={folder / 'run'}"]
    assert main([*command, "--config.train.steps=2"]) == 0
    assert main(command) == 0  # goes on
    return folder / "run", command, shape


def test_what_is_measured_of_the_data_is_kept_in_the_workdir(run):
    workdir, _, shape = run
    data = json.loads((workdir / "config.json").read_text())["data"]
    assert tuple(data["shape"]) == shape
    assert data["modality"].startswith("array(mean=(")
    steps = [json.loads(line)["step"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps))  # the second command went on where the first ended
    assert steps[-1] == 4
    assert (workdir / "samples" / "00000004.png").is_file()


def test_samples_are_files_in_the_units_of_the_data(run, tmp_path):
    workdir, _, shape = run
    assert (
        main(
            [
                "sample",
                f"--workdir={workdir}",
                f"--out={tmp_path / 'out'}",
                "--num=6",
                *(f"--label={i}" for i in range(3)),
            ]
        )
        == 0
    )
    with np.load(tmp_path / "out" / "samples.npz") as held:
        arrays, labels = held["arrays"], held["labels"]
    assert arrays.shape == (6, *shape)
    assert labels.tolist() == [0, 1, 2] * 2
    assert abs(arrays.mean() - MEAN) < 3 * DEVIATION  # what a model of 4 steps knows is little more
    assert 0 < arrays.std() < 10 * DEVIATION
    for i, array in enumerate(arrays):
        np.testing.assert_array_equal(np.load(tmp_path / "out" / f"{i:06d}.npy"), array)
    assert {"grid.png", "classes.png", "manifest.json"} <= {file.name for file in (tmp_path / "out").iterdir()}


def test_arrays_are_measured_by_their_own_values(run, tmp_path):
    workdir, _, _ = run
    out = tmp_path / "result.json"
    metrics = ["--metrics=fd,kid", "--features=values", "--num=16", "--kid_size=8", "--kid_subsets=4"]
    assert main(["evaluate", f"--workdir={workdir}", *metrics, f"--out={out}"]) == 0
    found = json.loads(out.read_text())["metrics"]
    assert found["fd"]["value"] > 0
    assert found["fd"]["features"]["extractor"] == "values"


def test_a_part_of_an_array_is_drawn_again_and_the_rest_is_kept(run, tmp_path):
    workdir, _, shape = run
    given = (MEAN + DEVIATION * np.random.default_rng(7).standard_normal(shape)).astype(np.float32)
    np.save(tmp_path / "given.npy", given)
    mask = np.zeros(shape[:-1], bool)
    mask[:2] = True
    np.save(tmp_path / "mask.npy", mask)
    drawn = {}
    for name, flag in (("mask", f"--mask={tmp_path / 'mask.npy'}"), ("paint", "--paint=0,2")):
        out = tmp_path / name
        flags = [f"--init_image={tmp_path / 'given.npy'}", flag, "--resample=1", "--num=2", "--label=1"]
        assert main(["sample", f"--workdir={workdir}", f"--out={out}", *flags]) == 0
        assert (out / "edit.png").is_file()
        with np.load(out / "samples.npz") as held:
            drawn[name] = held["arrays"]
    if len(shape) == 2:  # of a series that is too short the end is drawn
        np.save(tmp_path / "short.npy", given[:-3])
        flags = [f"--init_image={tmp_path / 'short.npy'}", "--resample=1", "--num=2", "--label=1"]
        assert main(["sample", f"--workdir={workdir}", f"--out={tmp_path / 'short'}", *flags]) == 0
        with np.load(tmp_path / "short" / "samples.npz") as held:
            np.testing.assert_allclose(held["arrays"][:, :-3], np.stack([given[:-3]] * 2), rtol=1e-6)
    np.testing.assert_array_equal(drawn["mask"], drawn["paint"])
    np.testing.assert_allclose(drawn["mask"][:, 2:], np.broadcast_to(given, (2, *shape))[:, 2:], rtol=1e-6)
    assert (np.abs(drawn["mask"][:, :2] - given[:2]) > 1).any()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["evaluate", "--metrics=bits_per_dim"], "bits_per_dim is of 8-bit images, and this model is of arrays"),
        (["evaluate", "--metrics=fd", "--features=inception", "--weights=x"], "inception looks at images"),
        (["sample", "--init_image=x.npy"], "there is no file x.npy; check --init_image"),
        (["sample", f"--init_image={__file__}"], "is no array that can be read"),
    ],
)
def test_what_is_of_images_alone_is_refused(run, tmp_path, capsys, flags, said):
    workdir, _, _ = run
    out = tmp_path / ("out.json" if flags[0] == "evaluate" else "out")
    assert main([*flags, f"--workdir={workdir}", f"--out={out}", "--num=8"]) != 0
    assert said in capsys.readouterr().err


def test_a_config_that_does_not_fit_the_arrays_is_refused(run, capsys):
    _, command, shape = run
    other = [*command[:2], f"{command[2]}_other"]
    for flag, said in (
        ("--config.data.flip=True", "data.flip mirrors images left to right, and the data are arrays"),
        (f"--config.data.shape={(*shape[:-1], 5)}", "they are not resized"),
        ("--config.data.modality=image", "has no image; set data.modality"),
    ):
        assert main([*other, flag]) != 0, flag
        assert said in capsys.readouterr().err
