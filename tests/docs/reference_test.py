"""The references that the site makes from the code: nothing of the code is missing in them."""

import inspect
import sys
from pathlib import Path

import pytest

from diffusion_jax import core, functions
from diffusion_jax.cli.main import COMMANDS
from diffusion_jax.nets.families import NETWORKS
from diffusion_jax.runs.help.choices import LISTS
from diffusion_jax.runs.help.keys import config_keys

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module", autouse=True)
def extensions():
    sys.path.insert(0, str(DOCS / "_extensions"))
    yield
    sys.path.remove(str(DOCS / "_extensions"))


@pytest.mark.parametrize("network", NETWORKS)
def test_every_key_is_in_the_reference(network):
    from reference.keys import every_key

    text = every_key()
    assert not [key.name for key in config_keys(network) if f"\n| `{key.name}` | `{key.default!r}`" not in text]


def test_every_choice_and_command_has_a_section():
    from reference.commands import every_command
    from reference.keys import every_list

    assert [line[3:] for line in every_list().splitlines() if line.startswith("## ")] == list(LISTS)
    text = every_command()
    assert [line[3:] for line in text.splitlines() if line.startswith("## ")] == list(COMMANDS)
    assert "| `--heartbeat_seconds=` | `20` |" in text
    assert "| `--overwrite` |" in text


def test_the_page_of_the_core_asks_for_every_public_function():
    from reference.api import module

    page = (DOCS / "reference/core.md").read_text(encoding="utf-8")
    asked = [line.split()[3] for line in page.splitlines() if line.startswith("<!-- generated: module")]
    text = "".join(module(name) for name in asked)
    for name in core.__all__:
        thing = getattr(core, name)
        if inspect.isfunction(thing) or inspect.isclass(thing):
            assert f".{name}\n" in text, name
    assert all(f".{name}\n" in module("diffusion_jax.functions") for name in functions.__all__)


def test_plain_text_stays_plain():
    from plain_docstrings import as_rst

    text = "Of x [*S, C], `a_b`, and y_:\n\n    code(*args)\n\nWhat follows:\n- one\n- two"
    rst = r"Of x [\*S, C], ``a_b``, and y\_:" + "\n\n::\n\n    code(*args)\n\nWhat follows:\n\n- one\n- two\n"
    assert as_rst(text) == rst
