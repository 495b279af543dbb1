"""Docstrings of this project are plain text, with `code` in backticks: made into reStructuredText for autodoc."""

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx

_CODE = re.compile(r"(``.+?``|`[^`]+`)", re.DOTALL)
_SPECIAL = re.compile(r"([\\*|_])")


def setup(app: "Sphinx") -> dict[str, bool]:
    """Sphinx calls this."""
    app.connect("autodoc-process-docstring", _process)
    return {"parallel_read_safe": True}


def _process(app: "Sphinx", what: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    lines[:] = as_rst("\n".join(lines)).split("\n")


def as_rst(text: str) -> str:
    """The plain text as reStructuredText: paragraphs, lists with "- ", indented blocks of code, `code`."""
    blocks = re.split(r"\n\s*\n", text.strip("\n"))
    return "\n\n".join(_block(block) for block in blocks) + "\n"


def _block(block: str) -> str:
    """A paragraph with what has a meaning in reStructuredText escaped, or a block of code where it is indented."""
    lines = block.split("\n")
    if all(line.startswith("    ") for line in lines):
        return "::\n\n" + block
    first = next((i for i, line in enumerate(lines) if line.startswith("- ")), None)
    if first:  # a list needs an empty line before it
        lines.insert(first, "")
    parts = _CODE.split("\n".join(lines))
    return "".join(f"``{part.strip('`')}``" if _CODE.fullmatch(part) else _SPECIAL.sub(r"\\\1", part) for part in parts)
