"""Every relative link of the documentation leads to a file of the project, and its anchor to a heading of that page."""

import functools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *(p for p in sorted((ROOT / "docs").rglob("*.md")) if "_build" not in p.parts)]

_CODE = re.compile(r"^```.*?^```|`[^`\n]*`", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_TREE = re.compile(r"^```\{toctree\}\n(.*?)^```", re.MULTILINE | re.DOTALL)


def links(text):
    """(path, anchor) of each relative link."""
    found = _LINK.findall(_CODE.sub("", text))
    return [link.partition("#")[::2] for link in found if "://" not in link]


@functools.cache
def anchors(page):
    """The anchors that a page's headings have on the site and where the repository is shown."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_relative_link_of_a_page_resolves(page):
    for path, anchor in links(page.read_text(encoding="utf-8")):
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{path} is no file"
        assert target.is_relative_to(ROOT)
        if anchor and "<!-- generated" not in target.read_text(encoding="utf-8"):  # those the build of the site checks
            assert anchor in anchors(target), f"{path or page.name} has no heading {anchor}"


def test_links_are_found_and_code_is_none():
    text = "[a](b.md#c), `x[0](y)`, [d](https://e.f)\n```\n[g](h)\n```\n![i](j.png)"
    assert links(text) == [("b.md", "c"), ("j.png", "")]


def test_every_page_is_in_one_list_of_pages():
    """Sphinx would say so too, and is not installed for every run."""
    docs = ROOT / "docs"
    listed = []
    for page in PAGES:
        for tree in _TREE.findall(page.read_text(encoding="utf-8")):
            entries = [line for line in tree.splitlines() if line and not line.startswith(":")]
            listed += [page.parent / f"{entry}.md" for entry in entries]
    assert len(set(listed)) == len(listed)
    assert {docs / "index.md", *listed} == {page for page in PAGES if docs in page.parents}
