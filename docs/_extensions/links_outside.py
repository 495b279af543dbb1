"""Links of a page to what lies outside docs/: on the site they lead to the page that has it, or are its name alone."""

import os
import re
from pathlib import Path

from sphinx.application import Sphinx

_LINK = re.compile(r"\[([^\]]+)\]\(((?:\.\./)+[^)#\s]*)(#[^)\s]*)?\)")

PAGES = {
    "README.md": "index.md",
    "ARCHITECTURE.md": "architecture.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
"""{file of the project: the page that shows it}."""


def setup(app: Sphinx) -> dict[str, bool]:
    """Sphinx calls this."""
    app.connect("source-read", _read)
    return {"parallel_read_safe": True}


def _read(app: Sphinx, page: str, source: list[str]) -> None:
    docs = Path(app.srcdir)
    source[0] = _LINK.sub(lambda link: _rewritten(link, docs, (docs / page).parent), source[0])


def _rewritten(link: re.Match[str], docs: Path, folder: Path) -> str:
    text, target, anchor = link.groups()
    path = Path(os.path.normpath(folder / target))
    if docs in path.parents:
        return link[0]
    inside = PAGES.get(path.relative_to(docs.parent).as_posix())
    if inside is None:
        return text
    return f"[{text}]({os.path.relpath(docs / inside, folder)}{anchor or ''})"
