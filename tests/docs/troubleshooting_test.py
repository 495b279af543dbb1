"""The sentences of docs/troubleshooting.md are those of the code."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
SENTENCES = [line[2:] for line in PAGE.splitlines() if line.startswith("> ")]


@pytest.fixture(scope="module")
def messages():
    """The constant text of each string in the source; of an f-string, with … for what is filled in."""
    found = []
    for file in (ROOT / "diffusion_jax").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            found += _said(node)
    return [text for text in found if len(text) > 10]


def _said(node):
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return [node.value]
    if isinstance(node, ast.JoinedStr):
        return ["".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)]
    return []


def test_the_page_has_sentences():
    assert len(SENTENCES) > 25


@pytest.mark.parametrize("sentence", SENTENCES)
def test_the_code_says_it(sentence, messages):
    """What a page leaves out by … may be any text, and a sentence may be put together of several strings."""
    parts = [part for part in re.split("…+", sentence) if len(part.strip(" ;,.()=-")) > 8]
    assert parts
    assert all(any(part in message for message in messages) for part in parts)
