"""The text of a user's files: prompts, captions, lists."""

import codecs
import re

from diffusion_jax.errors import UserError

_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16's, with which it begins
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)

_NAMES = {"utf-8": "UTF-8", "utf-16-le": "UTF-16", "utf-16-be": "UTF-16", "utf-32-le": "UTF-32", "utf-32-be": "UTF-32"}

_LINE_END = re.compile(r"\r\n|\n|\r")


def decode_text(data: bytes, name: str) -> str:
    """The text of a file's bytes: UTF-8 with or without a byte-order mark, or UTF-16 or UTF-32 with one.

    The mark is not part of the text. name is the file's, for messages. Raises UserError that says at which byte the
    file is in another encoding; a byte 0 in UTF-8 is taken for UTF-16 without its mark.
    """
    mark, encoding = next(((mark, known) for mark, known in _MARKS if data.startswith(mark)), (b"", "utf-8"))
    body = data[len(mark) :]
    try:
        text = body.decode(encoding)
    except UnicodeDecodeError as error:
        where = len(mark) + error.start
        raise UserError(
            f"{name} is not {_NAMES[encoding]}: {error.reason}, byte 0x{data[where]:02x} at position {where}; "
            "save the file as UTF-8"
        ) from None
    if encoding == "utf-8" and (where := data.find(b"\0")) >= 0:
        raise UserError(
            f"{name} is not UTF-8 text: byte 0x00 at position {where}, as in UTF-16 without a byte-order mark; "
            "save the file as UTF-8"
        )
    return text


def lines_of(text: str) -> list[str]:
    r"""The lines of text without their ends, which are \n, \r\n and \r alone; nothing after the last end is no line.

    str.splitlines would also split at characters that may stand in a caption, such as U+2028 and U+0085.
    """
    lines = _LINE_END.split(text)
    return lines[:-1] if not lines[-1] else lines
