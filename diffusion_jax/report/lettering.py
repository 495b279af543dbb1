"""Text in pictures: the font, characters that it does not have, and lines of a given width."""

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
    """DejaVu Sans, which comes with matplotlib, of a size in pixels."""
    return ImageFont.truetype(_path(), size)


def drawable(text: str) -> str:
    r"""The text with each character that the font does not have as its Python escape, such as \u4e2d or \U0001f680.

    A font would draw the same empty box for each of them.
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
    """The code points that the font has."""
    return frozenset(FT2Font(_path()).get_charmap())


def _pieces(word: str, font: FreeTypeFont, width: float) -> list[str]:
    """The word or, where escapes make it wider than width pixels, its parts of at most that width.

    A text in Chinese is one word, for it has no spaces.
    """
    if "\\" not in word or font.getlength(word) <= width:
        return [word]
    pieces = [""]
    for part in _ESCAPE.findall(word):
        if pieces[-1] and font.getlength(pieces[-1] + part) > width:
            pieces.append("")
        pieces[-1] += part
    return pieces


def wrap(text: str, font: FreeTypeFont, width: float, lines: int) -> list[str]:
    """The text in at most `lines` lines of at most width pixels. A text that does not fit ends in an ellipsis."""
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
    """The line, or its beginning with an ellipsis, of at most width pixels."""
    whole = line
    while line and font.getlength(line if line == whole else line + "…") > width:
        line = line[:-1]
    return line if line == whole else line.rstrip(" …") + "…"
