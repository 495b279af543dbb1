"""Prompts from a file, and captions that are longer than the text encoder: nothing is changed or cut in silence."""

import codecs
import pickle

import jax
import numpy as np
import pytest

from diffusion_jax.data import tokens
from diffusion_jax.errors import UserError
from diffusion_jax.models.text import transformer
from diffusion_jax.runs.sample.conditioning import read_prompts
from diffusion_jax.runs.train import long_captions

PROMPTS = ["a red square", "line\u2028separator, next\x85line, tab\x0bulator", "naïve café 日本語"]


@pytest.mark.parametrize(
    ("mark", "encoding", "end"),
    [
        (b"", "utf-8", "\n"),
        (codecs.BOM_UTF8, "utf-8", "\r\n"),
        (b"", "utf-8", "\r"),
        (codecs.BOM_UTF16_LE, "utf-16-le", "\r\n"),
    ],
)
def test_a_file_gives_the_same_prompts_however_it_was_saved(tmp_path, mark, encoding, end):
    file = tmp_path / "prompts.txt"
    file.write_bytes(mark + end.join([PROMPTS[0], "", f"  {PROMPTS[1]}\t", PROMPTS[2], "  "]).encode(encoding))
    assert read_prompts(file) == PROMPTS


def test_a_file_without_readable_prompts_is_one_sentence(tmp_path):
    file = tmp_path / "prompts.txt"
    for content, message in (
        ("a café".encode("latin-1"), "prompts.txt is not UTF-8: .*byte 0xe9 at position 5; save the file as UTF-8"),
        (b"\n \n", "holds no caption; write one a line"),
    ):
        file.write_bytes(content)
        with pytest.raises(UserError, match=message):
            read_prompts(file)
    with pytest.raises(UserError, match="there is no file"):
        read_prompts(tmp_path / "none.txt")


class Captions(list):
    """A source of captions alone; None is an example without one."""

    def __getitem__(self, index):
        caption = super().__getitem__(index)
        return {} if caption is None else {"caption": caption}


SHORT, LONG = "a red square", "a red square beside a blue circle"


@pytest.fixture
def text():
    return transformer(length=10, vocabulary=300)


@pytest.fixture(scope="module")
def tokenizer():
    return tokens.train([SHORT] * 5, 300)


def test_a_run_says_once_how_many_captions_are_cut_and_what_is_lost(text, tokenizer, capsys):
    long_captions.notice(text, tokenizer, Captions([SHORT, LONG, None, f"{LONG}, too"]))
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "2 of 3 captions are longer than the 10 tokens that the text encoder reads" in said
    # 10 tokens: both ends, "a", " red", " square" and five letters
    assert f"the first, {LONG!r}, loses 'de a blue circle'" in said
    ids = pickle.loads(pickle.dumps(text)).encode(tokenizer, [LONG])  # as a worker process has it
    np.testing.assert_array_equal(ids, text.encode(tokenizer, [LONG]))
    assert capsys.readouterr().err == ""


def test_a_long_caption_that_was_not_looked_at_is_said_when_it_is_met(text, tokenizer, capsys, monkeypatch):
    monkeypatch.setattr(long_captions, "_LOOKED_AT", 2)
    long_captions.notice(text, tokenizer, Captions([SHORT, SHORT, LONG]))
    text.encode(tokenizer, [SHORT])
    assert capsys.readouterr().err == ""
    text.encode(tokenizer, [SHORT, LONG])
    text.encode(tokenizer, [LONG])
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "1 of 2 captions" in said


def test_a_prompt_of_the_config_is_said_beside_the_captions_of_the_data(text, tokenizer, capsys):
    long_captions.notice(text, tokenizer, Captions([LONG]), (SHORT, f"{LONG}, too"))
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert "1 of 2 captions" in said[1]
    assert f"{LONG}, too" in said[1]


def test_one_process_of_a_run_says_it(text, tokenizer, capsys, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    long_captions.notice(text, tokenizer, Captions([LONG]))
    text.encode(tokenizer, [LONG])
    assert capsys.readouterr().err == ""
