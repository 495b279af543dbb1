"""What a newcomer asks the command: which version, which configs, which keys and choices, what machine this is."""

import importlib.util
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

import diffusion_jax
from diffusion_jax import config as configs
from diffusion_jax import shipped_configs
from diffusion_jax.cli.main import main
from diffusion_jax.nets.families import NETWORKS
from diffusion_jax.runs.help import choices, keys
from diffusion_jax.runs.help.comments import of_fields

ROOT = Path(__file__).parents[2]


def said(capsys, *words, status=0):
    assert main(words) == status
    out, err = capsys.readouterr()
    return err if status else out


def test_the_version(capsys):
    assert said(capsys, "--version") == f"diffusion-jax {diffusion_jax.__version__}\n"


def test_every_config_is_listed_shown_and_copied(capsys, tmp_path, monkeypatch):
    names = {file.stem for file in (ROOT / "configs").glob("*.py")}
    listed = said(capsys, "configs").splitlines()
    assert {line.split()[0] for line in listed} == names
    assert all(len(line.split()) > 3 for line in listed)
    assert said(capsys, "configs", "show", "tiny") == (ROOT / "configs/tiny.py").read_text()
    monkeypatch.chdir(tmp_path)
    assert "mine.py" in said(capsys, "configs", "copy", "shapes_text", "--out=mine.py")
    assert (tmp_path / "mine.py").read_text() == (ROOT / "configs/shapes_text.py").read_text()
    assert "mine.py is there already" in said(capsys, "configs", "copy", "tiny", "--out=mine.py", status=2)
    assert "Did you mean 'digits'" in said(capsys, "configs", "show", "digtis", status=2)
    assert "show NAME" in said(capsys, "configs", "tiny", status=2)


def test_a_config_is_found_by_name_from_any_folder(capsys, tmp_path, monkeypatch):
    """--config.seed=-1 is refused by its key, so the file was found and run; a file of that name comes first."""
    monkeypatch.chdir(tmp_path)
    for words in (["--config=shapes_text"], ["--config", "shapes_text"]):
        assert "seed is " in said(capsys, "train", *words, "--config.seed=-1", "--workdir=run", status=2)
    assert "Did you mean 'digits'" in said(capsys, "train", "--config=digtis", "--workdir=run", status=2)
    (tmp_path / "tiny").write_text("no python")
    assert shipped_configs.with_paths(["--config=tiny"], ["config"]) == ["--config=tiny"]
    after = ["slurm", "--", "train", "--config=digits"]
    assert shipped_configs.with_paths(after, ["config"]) == after


@pytest.mark.parametrize("network", NETWORKS)
def test_every_key_has_a_meaning_and_its_default(network):
    found = {key.name: key for key in keys.config_keys(network)}
    assert {name: key.default for name, key in found.items()} == configs.flat(configs.base(network).to_dict())
    assert not [name for name, key in found.items() if not key.meaning]
    assert found["train.batch_size"].allowed == "integer, at least 1"
    assert found["train.batch_size"].meaning.startswith("global")  # the comment behind it in config.py


def test_keys_are_found_by_name_pattern_and_meaning(capsys):
    assert [key.name for key in keys.matching("ema.d*")] == ["ema.decay"]
    assert "sample.guidance" in [key.name for key in keys.matching("guidance")]
    assert "optimizer.clip" in [key.name for key in keys.matching("global norm")]
    printed = said(capsys, "keys", "sample.sampler")
    assert "sample.sampler = 'ddpm'" in printed
    assert "keys --of=samplers" in printed
    assert "Did you mean 'train.steps'" in said(capsys, "keys", "train.stepz", status=2)


def test_fields_of_a_family_are_told_by_docstring_or_comment():
    found = of_fields(NETWORKS["unet"])
    assert found["padding"].startswith("Of the stride-2 convolution")
    assert found["num_classes"].startswith("None is unconditional")  # inherited


@pytest.mark.parametrize("name", choices.LISTS)
def test_a_list_has_every_entry_with_a_meaning(name):
    choice = choices.LISTS[name]
    module = importlib.import_module(f"diffusion_jax.{choice.module}")
    lines = list(choices.lines_of(name))[1:]
    heads = [i for i, line in enumerate(lines) if not line.startswith("   ")]
    entries = [lines[i].strip().partition("(")[0] for i in heads]
    assert entries == [*getattr(module, choice.table), *choice.more]
    assert all(line.startswith("      ") for i in heads for line in lines[i + 1 : i + 2])
    assert heads[-1] + 1 < len(lines)
    assert len(set(heads) & {i + 1 for i in heads}) == 0, "an entry without a meaning"
    known = configs.flat(configs.base().to_dict())
    assert set(choice.keys) <= set(known)


def test_help_of_a_list_is_that_of_keys(capsys):
    assert said(capsys, "sample", "--help=samplers") == said(capsys, "keys", "--of=samplers")
    assert "  ddim(eta=0.0)" in said(capsys, "keys", "--of=samplers")
    assert "Did you mean 'samplers'" in said(capsys, "sample", "--help=sampler", status=2)


def test_the_doctor_finds_no_device_and_says_so():
    """As where a driver is missing: the report goes on, with status 0."""
    environment = os.environ | {"JAX_PLATFORMS": "cuda", "XLA_FLAGS": "", "HOME": "/nowhere/home"}
    run = subprocess.run(
        [sys.executable, "-m", "diffusion_jax", "doctor"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    assert any(line.startswith("devices         none; jax raises ") for line in lines)
    assert "JAX_PLATFORMS=cuda" in run.stdout
    for part in ("diffusion-jax", "python", "packages", "memory", "compile cache", "disk"):
        assert any(line.startswith(part) for line in lines)


@pytest.mark.parametrize("words", [["configs"], ["keys", "--help"], ["--version"], ["doctor", "--help"]])
def test_no_jax_for_what_needs_none(words):
    code = "import sys; from diffusion_jax.cli.main import main; s = main(sys.argv[1:]); print(s, 'jax' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert run.stdout.split()[-2:] == ["0", "False"], run.stderr


def test_the_wheel_s_build_takes_every_config(tmp_path, monkeypatch):
    """setup.py copies configs/ to where `shipped_configs.folder` looks first."""
    taken = []

    class BuildPy:
        editable_mode, build_lib = False, "lib"

        def run(self):
            pass

        def mkpath(self, folder):
            pass

        def copy_file(self, source, target):
            taken.append((Path(source), Path(target)))

    monkeypatch.chdir(ROOT)
    monkeypatch.setitem(sys.modules, "setuptools", types.SimpleNamespace(setup=lambda **options: None))
    command = types.SimpleNamespace(build_py=BuildPy)
    monkeypatch.setitem(sys.modules, "setuptools.command.build_py", command)
    spec = importlib.util.spec_from_file_location("setup_of_project", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.WithConfigs().run()
    assert {source for source, _ in taken} == {f.relative_to(ROOT) for f in (ROOT / "configs").rglob("*.py")}
    inside = Path("lib/diffusion_jax/shipped")
    assert all(target == inside / source for source, target in taken)
