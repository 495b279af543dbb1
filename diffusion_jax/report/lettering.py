"""Text in pictures: the one font, what it cannot draw, and lines of a width."""

import functools
import re
from pathlib import Path

import matplotlib
from matplotlib.ft2font import FT2Font
from PIL import ImageFont
from PIL.ImageFont import FreeTypeFont

_FILE = "fonts/ttf/DejaVuSans.ttf"  # has Greek, Cyrillic, Arabic; no Chinese, a few emoji
_ESCAPE = re.compile(r"\\u[0-9a-f]{4}|\\U[0-9a-f]{8}|.", re.DOTALL)


def font(size: int) -> FreeTypeFont:
    """DejaVu Sans, which matplotlib brings, of a size in pixels."""
    return ImageFont.truetype(_path(), size)


def drawable(text: str) -> str:
    r"""Text in which a character that the font has no glyph for is its Python escape: \u4e2d, \U0001f680.

    So that a reader can tell what it is: a font would draw the same empty box for each of them.
    """
    glyphs = _glyphs()
    return "".join(c if ord(c) in glyphs or c.isspace() else _escape(c) for c in text)


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _path() -> str:
    return str(Path(matplotlib.get_data_path(), _FILE))


@functools.cache
def _glyphs() -> frozenset[int]:
    """The code points that the font has a glyph for."""
    return frozenset(FT2Font(_path()).get_charmap())


def _pieces(word: str, font: FreeTypeFont, width: float) -> list[str]:
    """The word, or where escapes make it wider than width pixels, its parts of at most that: Chinese has no spaces."""
    if "\\" not in word or font.getlength(word) <= width:
        return [word]
    pieces = [""]
    for part in _ESCAPE.findall(word):
        if pieces[-1] and font.getlength(pieces[-1] + part) > width:
            pieces.append("")
        pieces[-1] += part
    return pieces


def wrap(text: str, font: FreeTypeFont, width: float, lines: int) -> list[str]:
    """Text in at most that many lines, none wider than width pixels; what does not fit ends in an ellipsis."""
    wrapped: list[str] = []
    words = [piece for word in drawable(text).split() for piece in _pieces(word, font, width)]
    while words and len(wrapped) < lines:
        n = 1
        while n < len(words) and font.getlength(" ".join(words[: n + 1])) <= width:
            n += 1
        wrapped.append(" ".join(words[:n]))
        words = words[n:]
    if words:
        wrapped[-1] += " …"
    return [_cut(line, font, width) for line in wrapped]


def _cut(line: str, font: FreeTypeFont, width: float) -> str:
    whole = line
    while line and font.getlength(line if line == whole else line + "…") > width:
        line = line[:-1]
    return line if line == whole else line.rstrip(" …") + "…"
