"""The report of a sweep: well formed, of one file, ranked rightly, and it shows what it is given."""

import base64
import html.parser
import io
import itertools
import re
import xml.etree.ElementTree as xml

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from PIL import Image

from diffusion_jax.report.sweep import report_html
from diffusion_jax.report.sweep_figures import (
    DARK,
    LIGHT,
    Row,
    best_of,
    curves_svg,
    parallel_svg,
    places,
    ranked,
    report_figure,
    report_png,
)

ROWS = [
    Row(0, "done", 0.5, {"optimizer.lr": 1e-3, "decay": "cosine <&>"}, ((10, 0.9), (20, 0.5)), seconds=3.0),
    Row(1, "pruned", 0.2, {"optimizer.lr": 1e-2, "decay": "constant"}, ((10, 0.2),)),
    Row(2, "failed", None, {"optimizer.lr": 1e2, "decay": "constant"}, ((10, float("nan")),), "status 3: <b>not</b>"),
    Row(3, "done", 0.4, {"optimizer.lr": 3e-4, "decay": "constant"}, ((10, 0.8), (20, 0.4))),
    Row(4, "unfinished", None, {"optimizer.lr": 1e-5, "decay": "constant"}),
]


class Reader(html.parser.HTMLParser):
    """Checks that what is opened is closed, and keeps rows and links."""

    def __init__(self):
        super().__init__()
        self.open, self.links, self.rows = [], [], []

    def handle_starttag(self, tag, attrs):
        self.links += [value for name, value in attrs if name in ("src", "href", "srcset")]
        if tag == "tr":
            self.rows.append([])
        if tag not in ("meta", "link", "img", "source"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1].append(data)


@pytest.fixture(scope="module")
def page():
    png = io.BytesIO()
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(png, "PNG")
    rows = ranked(ROWS, "minimize")
    facts = {"config": "a <b>.py"}
    return report_html(
        rows, title="Sweep & co", metric="loss", facts=facts, command="train --x='<1>'", grid=png.getvalue()
    ).decode()


def test_the_order_is_done_by_value_then_pruned_then_the_rest():
    assert [row.number for row in ranked(ROWS, "minimize")] == [3, 0, 1, 2, 4]
    assert [row.number for row in ranked(ROWS, "maximize")] == [0, 3, 1, 2, 4]


def test_the_page_is_well_formed_and_loads_nothing_from_elsewhere(page):
    reader = Reader()
    reader.feed(page)
    assert reader.open == []
    assert len(reader.links) == 6  # an icon, two figures in light and dark, the grid
    assert all(link.startswith("data:") for link in reader.links)
    assert not re.search(r"https?://|<script|@import|url\(", page)
    assert "prefers-color-scheme: dark" in page
    for link in reader.links[1:]:
        kind, content = link.removeprefix("data:").split(";base64,")
        data = base64.b64decode(content)
        if kind == "image/svg+xml":
            assert xml.fromstring(data).tag.endswith("svg")
            assert not re.search(rb'(href|src)="http', data)
        else:
            Image.open(io.BytesIO(data)).verify()


def test_the_table_says_what_was_given_escaped(page):
    reader = Reader()
    reader.feed(page)
    head, *rows = reader.rows
    assert head == ["rank", "trial", "loss", "optimizer.lr", "decay", "steps", "seconds", "state"]
    assert [row[:2] for row in rows[:3]] == [["1", "003"], ["2", "000"], ["3", "001"]]
    assert "cosine <&>" in rows[1]
    assert rows[3][-1] == "failed: status 3: <b>not</b>"
    assert "train --x=&#x27;&lt;1&gt;&#x27;" in page


def test_colours_are_readable_on_both_pages():
    """WCAG's contrast of text, at least 4.5, for ink and for the best trial."""

    def luminance(color):
        parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]
        return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))

    for theme in (LIGHT, DARK):
        for color in (theme.ink, theme.best):
            dark, light = sorted([luminance(color), luminance(theme.background)])
            assert (light + 0.05) / (dark + 0.05) >= 4.5


def test_figures_of_odd_sweeps():
    """One trial; nothing finished; booleans, texts and tuples."""
    one = [Row(0, "done", 0.5, {"flip": True, "multipliers": (1, 2)}, ((10, 0.5),))]
    none = [Row(0, "failed", None, {"flip": True})]
    for rows in (one, none):
        for draw in (curves_svg, parallel_svg):
            assert xml.fromstring(draw(rows, "loss", LIGHT)).tag.endswith("svg")
    picture = Image.open(io.BytesIO(report_png(one, "loss", "title", np.zeros((8, 8, 3), np.uint8))))
    assert picture.size == (1400, 950)
    assert curves_svg(one, "loss", LIGHT) == curves_svg(one, "loss", LIGHT)
    assert curves_svg(one, "loss", LIGHT) != curves_svg(one, "loss", DARK)


def texts(figure):
    """(text, box in pixels) of the table in the order of its cells."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    (table,) = (axes for axes in figure.axes if axes.get_label() == "T")
    found = [artist for artist in table.get_children() if isinstance(artist, Text) and artist.get_text()]
    return [(artist.get_text(), artist.get_window_extent(canvas.get_renderer())) for artist in found], table


LONG = {
    "optimizer.learning_rate": 3.1234e-5,
    "model.channels": 128,
    "autoencoder.channels": 64,
    "model.multipliers": (1, 2, 2, 4),
    "schedule": "cosine(steps=4000) | zero_snr | shift(scale=0.5)",
    "condition_dropout": 0.1,
    "train.batch_size": 4096,
    "sample.guidance_interval": (0.25, 12.5),
}


@pytest.mark.parametrize("keys", [1, 3, 8])
@pytest.mark.parametrize("grid", [None, np.zeros((40, 80, 3), np.uint8)], ids=["alone", "beside a grid"])
def test_no_cell_of_the_picture_s_table_covers_another_or_leaves_it(keys, grid):
    changes = dict(list(LONG.items())[-keys:])
    rows = ranked([Row(i, "done", 0.123456 + i, changes, ((10, 0.5), (20, 0.2))) for i in range(12)], "minimize")
    cells, table = texts(report_figure(rows, "eval/frechet_distance", "title", grid))
    assert len(cells) == 11 * (4 + keys)
    for (a, one), (b, other) in itertools.combinations(cells, 2):
        assert not one.overlaps(other), (a, b)
    window = table.get_window_extent()
    assert all(window.x0 <= box.x0 and box.x1 <= window.x1 and window.y0 <= box.y0 for _, box in cells)
    if keys == 3:
        assert "…" not in "".join(text for text, _ in cells)


def test_what_failed_has_no_rank_and_is_not_the_best(page):
    """In the picture, the page and the figures alike; nor has what is unfinished, or a value that is no number."""
    rows = ranked([*ROWS, Row(5, "pruned", float("nan"), ROWS[0].changes)], "minimize")
    assert [(row.number, rank) for row, rank in zip(rows, places(rows), strict=True)] == [
        (3, "1"),
        (0, "2"),
        (1, "3"),
        (5, ""),
        (2, ""),
        (4, ""),
    ]
    cells, _ = texts(report_figure(rows, "loss", "title", None))
    assert [text for text, _ in cells if text.isdecimal() and len(text) == 1] == ["1", "2", "3"]
    reader = Reader()
    reader.feed(page)
    assert [row[0] for row in reader.rows[4:]] == ["002", "004"]  # the empty rank has no text
    for rows in ([ROWS[2]], [ROWS[1]]):
        assert best_of(rows) is None
        assert b"the best" not in curves_svg(rows, "loss", LIGHT)
