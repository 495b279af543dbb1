"""The text of files: one text whatever the encoding and the line ends, and a sentence where it can't be told."""

import codecs

import pytest

from diffusion_jax.data.text_file import decode_text, lines_of
from diffusion_jax.errors import UserError

TEXT = "a red square\nnaïve café, 日本語, 👩🏽‍🎨\n"

ENCODED = {
    "utf-8": TEXT.encode(),
    "utf-8 with a mark": codecs.BOM_UTF8 + TEXT.encode(),
    "utf-16-le": codecs.BOM_UTF16_LE + TEXT.encode("utf-16-le"),
    "utf-16-be": codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"),
    "utf-32-le": codecs.BOM_UTF32_LE + TEXT.encode("utf-32-le"),
}


@pytest.mark.parametrize("encoding", ENCODED)
def test_the_text_is_the_same_in_every_encoding(encoding):
    assert decode_text(ENCODED[encoding], "prompts.txt") == TEXT


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("a café".encode("latin-1"), r"prompts.txt is not UTF-8: .*, byte 0xe9 at position 5; save the file as UTF-8"),
        (codecs.BOM_UTF8 + b"ab\xff", "byte 0xff at position 5"),
        ("a red".encode("utf-16-le"), "byte 0x00 at position 1, as in UTF-16 without a byte-order mark"),
        (codecs.BOM_UTF16_LE + b"a\0b", "prompts.txt is not UTF-16: truncated data, byte 0x62 at position 4"),
    ],
)
def test_another_encoding_is_one_sentence_with_the_byte(data, message):
    with pytest.raises(UserError, match=message):
        decode_text(data, "prompts.txt")


def test_lines_end_as_in_a_file_and_nowhere_else():
    inside = "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\x1dh\x1ei"
    for end in ("\n", "\r\n", "\r"):
        assert lines_of(f"{inside}{end}{end}second{end}") == [inside, "", "second"]
        assert lines_of(f"{inside}{end}second") == [inside, "second"]
    assert lines_of("") == []
    assert lines_of("\n") == [""]
