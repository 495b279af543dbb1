"""docker/: without docker here, what can be read of the files is checked, and the lines that pages show of them."""

import json
import re
import shlex
import tomllib
from pathlib import Path

import pytest

from diffusion_jax.cli.main import COMMANDS

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
INSTRUCTIONS = {"FROM", "ENV", "WORKDIR", "COPY", "RUN", "VOLUME", "ENTRYPOINT", "CMD"}


def instructions(file):
    """(instruction, its rest) in order; lines that end in a backslash go on."""
    text = re.sub(r"\\\n", " ", file.read_text())
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [tuple(line.split(maxsplit=1)) for line in lines]


def of(file, kind):
    return [rest for name, rest in instructions(file) if name == kind]


def test_there_is_one_for_each_kind_of_machine():
    assert [file.name for file in FILES] == ["cpu.Dockerfile", "gpu.Dockerfile", "tpu.Dockerfile"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_only_known_instructions_and_a_pinned_image_of_a_python_that_is_supported(file):
    found = instructions(file)
    assert {name for name, _ in found} <= INSTRUCTIONS
    assert found[0][0] == "FROM"
    (image,) = of(file, "FROM")
    version = re.fullmatch(r"python:(\d+)\.(\d+)\.\d+-slim-[a-z]+", image)
    assert version, f"{image} is not pinned to a release and a system"
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert needed == ">=3.11"
    assert (int(version[1]), int(version[2])) == (3, 11)  # that of constraints.txt


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_what_is_copied_exists_is_sent_and_suffices_to_build(file):
    ignored = (ROOT / ".dockerignore").read_text().split("\n")
    assert "*" in ignored
    copied = set()
    for rest in of(file, "COPY"):
        *sources, _ = rest.split()
        copied |= set(sources)
    for source in copied:
        assert (ROOT / source).exists(), source
        assert f"!{source}" in ignored, f"{source} is not sent to the build"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert {project["project"]["readme"], *project["project"]["license-files"], "setup.py", "configs"} <= copied


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_extras_are_ours_and_the_entry_is_our_command(file):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (entry,), (command,) = of(file, "ENTRYPOINT"), of(file, "CMD")
    assert json.loads(entry)[0] in project["scripts"]
    assert json.loads(command) == ["--help"]
    (install,) = [rest for rest in of(file, "RUN") if "pip install" in rest]
    words = shlex.split(install)
    assert words[:4] == ["pip", "install", "-c", "constraints.txt"]
    extras = re.fullmatch(r"\.\[([\w,]+)\]", words[4])[1].split(",")
    assert set(extras) <= set(project["optional-dependencies"])
    assert {"gpu", "tpu"} & set(extras) == {file.stem} - {"cpu"}


def test_the_files_differ_in_no_more_than_the_machine():
    """So that what is mended in one is mended in all."""
    same = []
    for file in FILES:
        kept = [(name, re.sub(r"\[[\w,]+\]'", "", rest)) for name, rest in instructions(file) if name != "ENV"]
        same.append(kept)
    assert same[0] == same[1] == same[2]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_lines_in_its_head_build_it_and_run_a_command(file):
    head = [line[2:] for line in file.read_text().splitlines() if line.startswith("# ")][:2]
    build = head[0].partition(": ")[2].split()
    assert build[:2] == ["docker", "build"]
    assert (ROOT / build[build.index("-f") + 1]) == file
    tag = build[build.index("-t") + 1]
    run = head[1].split()
    assert run[:2] == ["docker", "run"]
    command, config = run[run.index(tag) + 1 :][:2]
    assert command in COMMANDS
    assert (ROOT / "configs" / f"{config.removeprefix('--config=')}.py").is_file()
    assert run[-1].startswith("--workdir=/runs/")


def test_the_page_of_images_shows_the_lines_of_the_files():
    page = (ROOT / "docs/launch/images.md").read_text()
    for file in FILES:
        head = [line[2:] for line in file.read_text().splitlines() if line.startswith("# ")][:2]
        assert head[0].partition(": ")[2] in page
        assert head[1] in page
