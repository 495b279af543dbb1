"""A page about a run: what it shows, that it stands alone, and its curves in the colours of day and night."""

import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest

from diffusion_jax.report import pictures
from diffusion_jax.report.inline_svg import inline_svg
from diffusion_jax.report.run_page import MOST_BYTES, RunPage, Section, run_page

EMPTY = {"facts": {}, "records": [], "grids": {}, "sections": [], "commands": "", "config": ""}


class Parsed(HTMLParser):
    """The tags of a page with their attributes, in order; raises where one is not closed."""

    VOID = ("meta", "img", "br")

    def __init__(self, page):
        super().__init__()
        self.tags, self.open = [], []
        self.feed(page.decode())
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def of(**parts):
    return run_page(RunPage(title="a <run>", line="of 'x' & y", **(EMPTY | parts)))


def test_texts_are_escaped_and_every_tag_is_closed():
    page = of(
        facts={"<k>": "<v>"},
        sections=[Section("<t>", ("<h>",), [("<c>",)], details={"<s>": "</pre><script>"}, warns=True)],
        commands="a && b < c",
        config="'<config>'",
    )
    tags = {tag for tag, _ in Parsed(page).tags}
    assert not tags & {"run", "k", "v", "t", "h", "c", "s", "config", "script"}
    assert b"a &amp;&amp; b &lt; c" in page


def records(count):
    rng = np.random.default_rng(0)
    bins = {f"loss_by_time/{i / 10:.1f}": 0.5 + i for i in range(10)}
    return [
        {"step": 10 * i, "loss": rng.uniform(), "eval/fd": 3.0, "input_wait_seconds": 0.1} | bins
        for i in range(1, count + 1)
    ]


def test_the_page_needs_no_other_file_and_its_ids_are_unique():
    page = of(records=records(30))
    parsed = Parsed(page)
    for _, attributes in parsed.tags:
        for name in ("href", "xlink:href", "src"):
            assert attributes.get(name, "#").startswith(("#", "data:"))
    ids = [attributes["id"] for _, attributes in parsed.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    used = {found for found in re.findall(r"url\(#([^)]*)\)", page.decode())}
    assert used <= set(ids)
    assert used
    text = page.decode()
    assert text.count("<svg") == 3  # loss, the score, loss by time: not the seconds of waiting
    assert ">fd<" in text
    assert not re.search(r"@import|url\((?!#)", text)


def test_a_curve_has_the_colours_of_the_page_and_no_others():
    colours = {pictures.MEAN: "var(--mean)", pictures.POINTS: "var(--points)"}
    text = inline_svg(pictures.curve(records(30)), "one", colours)
    ElementTree.fromstring(text.replace("xlink:href", "href"))  # well-formed
    left = set(re.findall(r"#[0-9a-f]{6}\b", text))
    assert left <= {"#b0b0b0"}  # the lines of the grid
    assert "var(--mean)" in text
    assert "var(--points)" in text
    assert "currentColor" in text
    assert inline_svg(pictures.curve(records(30)), "one", colours) == text


def test_a_spike_and_a_loss_that_is_not_finite_are_drawn():
    values = [{"step": i, "loss": float("nan") if i == 5 else 10.0**i} for i in range(10)]
    assert "not finite" in of(records=values).decode()


def test_grids_are_spread_over_training_and_within_the_bytes_of_a_page(tmp_path):
    files = {}
    for step in range(100, 3100, 100):
        files[step] = tmp_path / f"{step}.png"
        pictures.save_png(files[step], np.full((8, 8, 3), step % 256, np.uint8))
    shown = [
        int(found.replace(",", "")) for found in re.findall(r"<figcaption>step ([\d,]+)<", of(grids=files).decode())
    ]
    assert len(shown) == 12
    assert (shown[0], shown[-1]) == (100, 3000)
    assert max(np.diff(shown)) <= 300
    for file in files.values():
        with file.open("ab") as opened:
            opened.truncate(MOST_BYTES // 3)
    assert of(grids=files).count(b"<figcaption>") == 3


@pytest.mark.parametrize("count", [0, 1])
def test_a_run_that_has_barely_begun_has_a_page(count):
    page = of(records=records(count)).decode()
    Parsed(page.encode())
    assert ("Nothing was logged yet" in page) == (count == 0)
    assert "has drawn none" in page
