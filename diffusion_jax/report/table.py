"""A table as part of a figure, whose cells do not overlap."""

from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.backend_bases import RendererBase
from matplotlib.text import Text

_SIZES = (9.0, 8.0, 7.0, 6.0)  # of the font in points; the largest that fits is taken
_PAD = 0.8  # on each side of a text, in font sizes
_LINE = 1.9  # height of a row, in font sizes
_NEXT = 1.2  # height of each further line of a row, in font sizes
_WRAPPED = 9  # letters from which a name is put in two lines


def draw_table(axes: Axes, renderer: RendererBase, lines: Sequence[Sequence[str]], ink: str, rule: str) -> None:
    """Draws the lines, of which the first is the header, from the top left of axes, each column as wide as its texts.

    Where they are too wide for every size of the font, texts of the widest columns end in an ellipsis. A text may have
    several lines. It must be called after all else is in the figure, for the layout gives axes their size.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None
    axes.axis("off")
    figure.draw_without_rendering()
    box = axes.get_window_extent(renderer)
    axes.set(xlim=(0, box.width), ylim=(box.height, 0))  # pixels from the top left

    def width(text: str) -> float:
        probe.set_text(text)
        return probe.get_window_extent(renderer).width

    probe = axes.text(0, 0, "", in_layout=False)
    for size in _SIZES:
        probe.set_fontsize(size)
        em = size * figure.dpi / 72
        wanted = [max(map(width, column)) + 2 * _PAD * em for column in zip(*lines, strict=True)]
        if sum(wanted) <= box.width:
            break
    limit, bottom = _cap(wanted, box.width), 0.0
    for row, line in enumerate(lines):
        height = (_LINE + max(text.count("\n") for text in line) * _NEXT) * em
        top, bottom, right = bottom, bottom + height, 0.0
        for text, each in zip(line, wanted, strict=True):
            right += min(each, limit)
            shown = _shortened(text, min(each, limit) - 2 * _PAD * em, width)
            place = (right - _PAD * em, (top + bottom) / 2)
            cell = Text(*place, shown, ha="right", va="center", fontsize=size, color=ink)
            cell.set_in_layout(False)
            axes.add_artist(cell)
        axes.plot([0, right], [bottom] * 2, color=rule, lw=0.9 if row == 0 else 0.4, in_layout=False)
    probe.remove()


def wrapped(name: str) -> str:
    """A key of a config in two lines of similar length, split after a dot, a slash or an underscore."""
    places = [i + 1 for i, letter in enumerate(name[:-1]) if letter in "._/"]
    if not places or len(name) < _WRAPPED:
        return name
    at = min(places, key=lambda i: abs(2 * i - len(name)))
    return f"{name[:at]}\n{name[at:]}"


def _cap(widths: Sequence[float], room: float) -> float:
    """The greatest width of a column for which all columns fit into room."""
    narrow = 0.0
    for i, width in enumerate(sorted(widths)):
        cap = (room - narrow) / (len(widths) - i)
        if width > cap:
            return cap
        narrow += width
    return max(widths)


def _shortened(text: str, room: float, width: Callable[[str], float]) -> str:
    """The text, or its beginning with an ellipsis, of at most the width room."""
    letters = len(text)
    shown = text
    while letters > 0 and width(shown) > room + 0.5:
        letters -= 1
        shown = f"{text[:letters]}…"
    return shown
