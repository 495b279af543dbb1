"""How a command starts: what it says of a config file that cannot be read, of a typo, and how soon."""

import os
import subprocess
import sys

import pytest

from diffusion_jax.cli.entry import _print_uncaught
from diffusion_jax.cli.main import main

HEAD = "from diffusion_jax.config import base\n\n\ndef get_config():\n    config = base()\n"
BODIES = {
    "name": ("    config.seed = undefined\n", "line 6: NameError: name 'undefined' is not defined"),
    "key": ("    config.modle = 3\n", 'line 6: AttributeError: Key "modle" does not exist'),
    "update": ("    config.update(modle=3)\n", 'line 6: KeyError: Key "modle" does not exist'),
    "type": ("    config.train.steps = 'x'\n", "line 6: TypeError: Could not override field 'steps'"),
    "division": ("    1 / 0\n", "line 6: ZeroDivisionError: division by zero"),
    "file": ("    open('nowhere')\n", "line 6: FileNotFoundError: No such file or directory: nowhere"),
    "value": ("    raise ValueError('one\\ntwo')\n", "line 6: ValueError: one two"),
    "last": (
        "    try:\n        {}['a']\n    except KeyError:\n        raise ValueError('the last')\n",
        "line 9: ValueError: the last",
    ),
    "module": ("    import nowhere_to_be\n", "line 6: ModuleNotFoundError: No module named 'nowhere_to_be'"),
    "syntax": ("    config.seed =\n", "line 6: SyntaxError: invalid syntax"),
    "range": ("    config.train.batch_size = 0\n    return config\n", "train.batch_size is at least 1; got 0"),
    "nothing": ("", "returned None; it returns a config"),
    "number": ("    return 3\n", "returned 3; it returns a config"),
}


def said(tmp_path, capsys, file):
    assert main(["train", f"--config={file}", f"--workdir={tmp_path / 'run'}"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert len(error) < 400
    assert "Traceback" not in error
    return error


@pytest.mark.parametrize("name", BODIES)
def test_a_config_that_raises_is_one_sentence_with_file_line_and_error(tmp_path, capsys, name):
    body, message = BODIES[name]
    file = tmp_path / "mine.py"
    file.write_text(HEAD + body)
    error = said(tmp_path, capsys, file)
    assert message in error
    assert str(file) in error or name == "range"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\n", "has no get_config()"),
        ("def get_config(size):\n    pass\n", "missing 1 required positional argument: 'size'"),
    ],
)
def test_a_get_config_that_cannot_be_called_is_named(tmp_path, capsys, text, message):
    file = tmp_path / "mine.py"
    file.write_text(text)
    assert message in said(tmp_path, capsys, file)


def test_the_line_is_that_of_the_file_which_is_wrong(tmp_path, capsys):
    (tmp_path / "configs_of_mine").mkdir()
    (tmp_path / "configs_of_mine" / "below.py").write_text("def get_config():\n    return undefined\n")
    file = tmp_path / "configs_of_mine" / "mine.py"
    file.write_text("from configs_of_mine import below\n\n\ndef get_config():\n    return below.get_config()\n")
    assert "below.py, line 2: NameError" in said(tmp_path, capsys, file)


def test_a_config_flag_may_be_two_words(tmp_path, capsys):
    file = tmp_path / "mine.py"
    file.write_text(HEAD + "    return config\n")
    assert main(["train", "--config", str(file)]) == 2
    assert "train needs --config=FILE and --workdir=FOLDER" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "Did you mean 'train'?"),
        (["checkpoint", "verfy"], "unknown command 'checkpoint verfy'"),
        (["checkpoint", "verfy"], "Did you mean 'checkpoint verify'?"),
        (["evaluate", "comprae"], "Did you mean 'evaluate compare'?"),
        (["sample", "--workdr=a"], "Did you mean: workdir"),
    ],
)
def test_a_mistyped_word_is_told_what_it_was_meant_to_be(capsys, words, message):
    assert main(words) == 2
    assert message in capsys.readouterr().err


def test_the_first_word_of_a_command_has_help(capsys):
    assert main(["checkpoint", "--help"]) == 0
    assert "checkpoint verify" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["sample", "--help"],
        ["sample"],
        ["report", "--help"],
        ["report", "a", "b"],
        ["train", "--config=configs/tiny.py"],
        ["sample", "--workdr=a"],
        ["sample", "--workdir=a", "--out=b", "--guidance=nan"],
        ["sample", "--workdir=a", "--out=b", "--weak_step=3"],
        ["sample", "--workdir=a", "--out=b", "--strength=0.5"],
    ],
)
def test_help_and_typos_need_no_jax(words, request):
    """jax takes seconds to import: what is wrong of the flags alone is said before.

    Keys of a config are another matter: those of `model` are its network's, which is Flax's.
    """
    root = request.config.rootpath
    code = "import sys; from diffusion_jax.cli.main import main; s = main(sys.argv[1:]); print(s, 'jax' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code, *words], cwd=root, capture_output=True, text=True, timeout=60)
    assert run.stdout.split()[-2:] == ["0" if "--help" in words else "2", "False"], run.stderr


def test_what_orbax_throws_after_a_failed_save_is_not_printed(capsys):
    """Its threads print a traceback each; the save's own error has the reason, in one sentence."""
    for text, printed in (("Event loop is closed", False), ("something else", True)):
        _print_uncaught(RuntimeError, RuntimeError(text), None)
        assert (text in capsys.readouterr().err) == printed


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_goes_away_is_no_error(unbuffered):
    """`diffusion-jax | head -1`, with the reader gone before the first line."""
    read, write = os.pipe()
    os.close(read)
    run = subprocess.run(
        [sys.executable, "-m", "diffusion_jax"],
        stdout=write,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
        timeout=60,
    )
    os.close(write)
    assert run.stderr == b""
    assert run.returncode == 141
