"""The wheel and the sdist, each installed into an empty environment away from the clone.

It downloads some 90 packages, and takes minutes: `pytest -n 0 -s -m slow tests/newcomer/wheel_install_test.py`, which
prints the size and the number of packages of each installation.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MOST_BYTES, MOST_PACKAGES = 1.2e9, 90
pytestmark = pytest.mark.slow


def ran(*command, cwd, home):
    """The output of a command in a folder outside of the clone, with an empty home and no other packages."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "XLA_", "JAX_", "HOME"))}
    run = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=kept | {"HOME": str(home), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert run.returncode == 0, f"{command}: {run.stdout[-2000:]}{run.stderr[-2000:]}"
    return run.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A folder with the sdist and with the wheel that is made of it, of what git knows and of new files."""
    folder = tmp_path_factory.mktemp("built")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / "source" / name)
    home = folder / "home"
    home.mkdir()
    ran(sys.executable, "-m", "venv", folder / "tools", cwd=folder, home=home)
    ran(folder / "tools/bin/pip", "install", "-q", "build", cwd=folder, home=home)
    ran(folder / "tools/bin/python", "-m", "build", "-o", folder / "dist", folder / "source", cwd=folder, home=home)
    return folder / "dist"


@pytest.mark.parametrize("kind", ["*.whl", "*.tar.gz"])
def test_it_trains_in_an_empty_environment(built, tmp_path, kind):
    (package,) = built.glob(kind)
    home = tmp_path / "home"
    home.mkdir()
    ran(sys.executable, "-m", "venv", tmp_path / "env", cwd=tmp_path, home=home)
    pip = tmp_path / "env/bin/pip"
    before = bytes_of(tmp_path / "env")
    ran(pip, "install", "-q", "--no-cache-dir", package, cwd=tmp_path, home=home)
    size, names = bytes_of(tmp_path / "env") - before, ran(pip, "list", "--format=freeze", cwd=tmp_path, home=home)
    packages = [line for line in names.split() if line.split("==")[0] not in ("pip", "setuptools")]
    print(f"\n{package.name}: {size / 1e6:,.0f} MB in {len(packages)} packages")
    assert "No broken requirements found" in ran(pip, "check", cwd=tmp_path, home=home)
    command = tmp_path / "env/bin/diffusion-jax"
    assert ran(command, "--version", cwd=tmp_path, home=home).startswith("diffusion-jax ")
    trained = ran(
        command,
        *("train", "--config=digits", "--workdir=run", "--config.train.steps=3", "--config.sample.every=0"),
        cwd=tmp_path,
        home=home,
    )
    assert "train 3/3 (100%)" in trained
    ran(command, "report", "run", "--out=run.html", cwd=tmp_path, home=home)
    sampled = ran(command, *("sample", "--workdir=run", "--out=s", "--num=1", "--steps=2"), cwd=tmp_path, home=home)
    assert "1 samples of step 3" in sampled
    slurm = ("launch", "slurm", "--nodes=1", "--gpus=1", "--time=1:00:00", "--dry-run")  # of a template in the wheel
    ran(command, *slurm, "--", "train", "--config=digits", "--workdir=r", cwd=tmp_path, home=home)
    assert size < MOST_BYTES
    assert len(packages) < MOST_PACKAGES


def bytes_of(folder):
    """The bytes of all files under a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
