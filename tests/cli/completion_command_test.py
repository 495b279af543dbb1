"""`diffusion-jax completion`: what bash completes, and that all shells are told of every command and key."""

import subprocess
import sys

import pytest

from diffusion_jax.cli import completion
from diffusion_jax.cli.main import COMMANDS, main
from diffusion_jax.config import flat
from diffusion_jax.schema import SCHEMA

CASES = [
    (["tr"], {"train"}),
    (["train", "--wor"], {"--workdir="}),
    (["train", "--config.train.st"], {"--config.train.steps=", "--config.train.steps_per_dispatch="}),
    (["train", "--config", "=", "digits_"], {"digits_classifier", "digits_plain"}),
    (["evaluate", "co"], {"compare"}),
    (["evaluate", "compare", "--"], {"--a=", "--b=", "--extension=", "--help"}),
    (["keys", "--of", "=", "schedu"], {"schedules"}),
    (["checkpoint", ""], {"verify"}),
    (["completion", "z"], {"zsh"}),
]


@pytest.fixture(scope="module")
def bash(tmp_path_factory):
    """The completions of all CASES, which bash makes in an empty folder."""
    folder = tmp_path_factory.mktemp("bash")
    (folder / "script").write_text(completion.SHELLS["bash"]())
    lines = ["source ../script"]
    for words, _ in CASES:
        quoted = " ".join(f"'{word}'" for word in ["diffusion-jax", *words])
        lines.append(f'COMP_WORDS=({quoted}); COMP_CWORD={len(words)}; _diffusion_jax; echo "${{COMPREPLY[*]}}"')
    (folder / "empty").mkdir()
    run = subprocess.run(
        ["bash", "-c", "\n".join(lines)], cwd=folder / "empty", capture_output=True, text=True, timeout=60, check=True
    )
    assert run.stderr == ""
    return [set(line.split()) for line in run.stdout.split("\n")]


@pytest.mark.parametrize("case", range(len(CASES)))
def test_bash_completes(bash, case):
    assert bash[case] == CASES[case][1]


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_every_command_flag_and_key_is_in_the_script(shell):
    text = completion.SHELLS[shell]()
    dashes = "" if shell == "fish" else "--"
    for command in COMMANDS:
        assert all(word in text for word in command.split())
    for key in flat(SCHEMA):
        assert f"{dashes}config.{key}" in text
    for flag in ("negative_prompt", "likelihood_steps", "topology"):
        assert f"{dashes}{flag}" in text


def test_an_unknown_shell_is_told_which_was_meant(capsys):
    assert main(["completion", "basch"]) == 2
    assert "Did you mean 'bash'?" in capsys.readouterr().err


def test_the_script_needs_no_jax(request):
    code = (
        "import sys; from diffusion_jax.cli.main import main; main(['completion', 'zsh']); print('jax' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=request.config.rootpath, capture_output=True, text=True)
    assert run.stdout.startswith("#compdef diffusion-jax\n")
    assert run.stdout.endswith("False\n"), run.stderr
