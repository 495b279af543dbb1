"""A package of somebody else's, used from the command line by dotted names, and only where it is trusted."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from diffusion_jax import extensions
from diffusion_jax.cli.main import main
from diffusion_jax.errors import UserError
from diffusion_jax.models.conditions import SampleRequest
from diffusion_jax.testing import check_condition, check_network, check_objective
from diffusion_jax.train import sharding

HERE = Path(__file__).parent
CONFIG = HERE / "example_config.py"
PACKAGE = "diffusion_jax_example"


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder of sys.path with the package, installed with its entry point."""
    site = tmp_path_factory.mktemp("site")
    shutil.copytree(HERE / PACKAGE, site / PACKAGE)
    about = site / f"{PACKAGE}-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {PACKAGE}\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[{extensions.GROUP}]\nexample = {PACKAGE}.nets\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(site))
        yield site


@pytest.fixture(scope="module")
def workdir(installed, tmp_path_factory):
    """A run of the package's network, objective, condition, data and sampler: stopped after two steps, then resumed."""
    root = tmp_path_factory.mktemp("runs") / "example"
    flags = [f"--config={CONFIG}", f"--workdir={root}"]
    assert main(["train", *flags, "--config.train.steps=2"]) == 0
    assert main(["train", *flags]) == 0
    return root


def test_a_config_of_dotted_names_trains_resumes_and_samples(workdir, tmp_path):
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records if "loss" in record] == [2, 4]
    told = ["--label=1", "--condition", "brightness=0.3"]
    assert main(["sample", f"--workdir={workdir}", f"--out={tmp_path / 'out'}", "--num=4", *told]) == 0
    assert np.load(tmp_path / "out/samples.npz")["images"].shape == (4, 8, 8, 1)
    assert (workdir / "samples/00000004.png").is_file()


def test_a_condition_of_its_own_is_told_by_name(workdir, tmp_path, capsys):
    """Its entry of a batch is trained on, asked for, and refused in one sentence where it is no number or not told."""

    def drawn(name, *values):
        out = tmp_path / name
        flags = [f"--workdir={workdir}", f"--out={out}", "--num=2", "--label=1"]
        if main(["sample", *flags, *(f"--condition={value}" for value in values)]):
            return capsys.readouterr().err
        return np.load(out / "samples.npz")["images"].astype(int)

    dark, light, both = (
        drawn("dark", "brightness=0"),
        drawn("light", "brightness=1"),
        drawn("both", "brightness=0", "brightness=1"),
    )
    assert (dark != light).any()
    np.testing.assert_array_equal(both, np.stack([dark[0], light[1]]))
    manifest = json.loads((tmp_path / "both/manifest.json").read_text())
    assert manifest["asked"]["values"] == {"brightness": ["0", "1"]}
    assert "give --condition brightness=VALUE" in drawn("none")
    assert "--condition brightness is in [0, 1]; got 2" in drawn("far", "brightness=2")
    assert "--condition is NAME=VALUE" in drawn("text", "brightness")
    assert "this model has no condition 'height' for --condition; it has brightness" in drawn("other", "height=1")


def test_options_are_those_of_the_family(workdir, capsys):
    config = json.loads((workdir / "config.json").read_text())
    assert set(config["model"]) == {"name", "num_classes", "dtype", "width", "depth", "remat"}
    flags = [f"--config={CONFIG}", "--workdir=nowhere"]
    assert main(["train", *flags, "--config.model.heads=3"]) == 2
    assert "heads" in capsys.readouterr().err


def test_it_is_planned_with_its_own_tensor_rules(installed, capsys):
    from diffusion_jax_example.nets import Perceptron

    assert main(["plan", f"--config={CONFIG}", "--devices=2", "--config.mesh.tensor=2"]) == 0
    assert "parameters" in capsys.readouterr().out
    mesh = sharding.mesh(1, 1, 2, jax.devices()[:2])
    spec = sharding.partition("params/layer_0_up/kernel", (16, 32), mesh, Perceptron.tensor_rules)
    assert tuple(spec) == (None, "tensor")


def test_it_is_swept(installed, tmp_path):
    """Both trials in one program, whose learning rates and results differ."""
    (tmp_path / "sweep.py").write_text(
        "from diffusion_jax.sweeps import Objective, Sweep, choice\n\n\n"
        "def get_sweep():\n"
        "    rates = {'optimizer.learning_rate': choice(1e-4, 1e-2)}\n"
        "    return Sweep(space=rates, objective=Objective('loss', 'minimize'))\n"
    )
    root = tmp_path / "sweep"
    words = ["sweep", f"--config={CONFIG}", f"--sweep={tmp_path / 'sweep.py'}", f"--workdir={root}", "--vectorised"]
    assert main(words) == 0
    losses = []
    for number in range(2):
        lines = (root / "trials" / f"{number:03d}" / "metrics.jsonl").read_text().splitlines()
        losses.append([json.loads(line)["loss"] for line in lines if "loss" in line])
    assert losses[0] != losses[1]
    assert np.isfinite(losses).all()


def test_its_parts_conform(installed):
    from diffusion_jax_example.conditions import Brightness
    from diffusion_jax_example.data import Corners
    from diffusion_jax_example.nets import Perceptron
    from diffusion_jax_example.training import bounded

    check_network(Perceptron(2, num_classes=3, levels=("low",), width=8), size=(4, 4))
    check_objective(bounded())
    check_condition(Brightness(), Corners(8), SampleRequest(values={"brightness": 0.3}), (8, 8, 1))


def test_a_workdir_alone_never_runs_the_code_of_a_package_that_is_not_trusted(workdir, tmp_path):
    """In a process of its own, where the package can be imported but has no entry point."""
    site = tmp_path / "site"
    shutil.copytree(HERE / PACKAGE, site / PACKAGE)
    (site / PACKAGE / "__init__.py").write_text("print('code of a stranger ran')\n")
    words = [sys.executable, "-m", "diffusion_jax", "sample", f"--workdir={workdir}", f"--out={tmp_path / 'out'}"]
    found = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, env=environment(site), timeout=120)
    assert found.returncode == 2
    assert f"give --extension={PACKAGE}" in found.stderr
    assert "stranger" not in found.stdout
    assert not (tmp_path / "out").exists()


def environment(site):
    import os

    root = str(HERE.parents[1])
    return os.environ | {"PYTHONPATH": f"{root}{os.pathsep}{site}"}


def test_what_is_trusted_and_missing_is_said(monkeypatch, installed):
    monkeypatch.setattr(extensions, "_given", [])
    with pytest.raises(UserError, match="code of the package somebody, which this command does not trust"):
        extensions.load("somebody.nets.Net", "network")
    extensions.trust("somebody")
    with pytest.raises(UserError, match="there is no package somebody here"):
        extensions.load("somebody.nets.Net", "network")
    with pytest.raises(UserError, match=f"{PACKAGE}.nets has no Transformer"):
        extensions.load(f"{PACKAGE}.nets.Transformer", "network")
    with pytest.raises(UserError, match="name of a package"):
        extensions.trust("../evil")
