"""Figures of matplotlib as SVG within a page, in the page's colours and letters."""

import io
import re
from collections.abc import Mapping

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

INK = "#000000"
"""The colour of texts and axes, which becomes the page's own."""


def inline_svg(figure: Figure, name: str, colours: Mapping[str, str]) -> str:
    """The SVG of a figure for an HTML page, whose colours are those of the page by day and by night.

    colours is {a colour of the figure: the one in CSS that takes its place}, such as {"#1f3f66": "var(--curve)"}; `INK`
    is currentColor. name, an identifier, tells the figures of a page apart, and equal figures are equal text.
    """
    figure.patch.set_alpha(0)
    for axes in figure.axes:
        axes.patch.set_alpha(0)
    file = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        FigureCanvasSVG(figure).print_svg(file, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = file.getvalue().decode()
    text = text[text.index("<svg") :]
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", text)  # an id is the page's
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' width="[\d.]+pt" height="[\d.]+pt"', "", text, count=1)
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", text)  # the page's letters
    for colour, css in {INK: "currentColor", **colours}.items():
        text = text.replace(colour, css)
    # Texts have no colour where they are black, which is the default of SVG.
    return text.replace("<svg", '<svg fill="currentColor" role="img"', 1)
