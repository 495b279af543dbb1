"""Tokenizers: what is trained round-trips and is determined, what is read gives transformers' ids."""

import json
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from diffusion_jax.data.tokens import Tokenizer, from_folder, train
from diffusion_jax.errors import UserError

CAPTIONS = [
    f"a {size} {colour} {thing} {where}"
    for size in ("small", "large")
    for colour in ("red", "green", "blue")
    for thing in ("square", "circle", "triangle")
    for where in ("on the left", "on the right")
]
TEXTS = [
    "",
    " ",
    "a small red circle on the left",
    "A  Large\tcircle,\n on the LEFT!!",
    "naïve café — Ångström, ﬁne",
    "日本語のキャプション, ภาษาไทย, 👩🏽‍🎨🖼",
    "it's 12,345.67% of <eos> and <pad><bos>",
    "\x00\x7f\u200b\ufeff",
    "cafe\u0301",  # not in NFC
]
CLIP_ENDS = ["<|startoftext|>", "<|endoftext|>"]


@pytest.fixture(scope="module")
def trained():
    return train(CAPTIONS, 300)


def clip_folder(folder, **settings):
    """CLIP's files; the merges build the words of the captions from the left, and some bytes of Chinese and emoji."""
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    words = sorted({word for caption in CAPTIONS for word in caption.split()} | {"æĹ¥æľ¬", "ðŁĳ", "!!", "it"})
    rules = dict.fromkeys((word[:i], word[i]) for word in words for i in range(1, len(word) - 1))
    rules |= dict.fromkeys((word[:-1], word[-1] + "</w>") for word in words if len(word) > 1)
    entries = dict.fromkeys([*letters, *(c + "</w>" for c in letters), *map("".join, rules), *CLIP_ENDS])
    folder.mkdir(exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(entries)}))
    merges = "".join(f"{a} {b}\n" for a, b in rules)
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}", encoding="utf-8")
    if settings:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def bert_folder(folder, **settings):
    pieces = [
        "[PAD]",
        "[unused0]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *"abcdefghijklmnopqrstuvwxyz0123456789.,!-'<>%",
    ]
    pieces += [f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz0123456789"]
    pieces += ["small", "red", "circle", "on", "the", "##le", "##ft", "cafe", "café", "A", "##RGE", "本", "語", "##ing"]
    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")
    if settings:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def test_any_text_is_decoded_to_itself(trained):
    assert trained.decode(trained.encode(TEXTS, 200)) == TEXTS
    rng = np.random.default_rng(0)
    points = np.r_[:0xD800, 0xE000:0x110000]  # all of Unicode
    texts = ["".join(map(chr, rng.choice(points, 40))) for _ in range(50)]
    assert trained.decode(trained.encode(texts, 400)) == texts


def test_the_layout_of_a_trained_tokenizer(trained):
    assert (trained.pad, trained.bos, trained.eos) == (0, 1, 2)
    ids = trained.encode(["", "<eos><pad>", *CAPTIONS], 24)
    assert ids.dtype == np.int32
    np.testing.assert_array_equal(ids[0], [1, 2, *[0] * 22])  # the null prompt
    inside = trained.mask(ids)
    np.testing.assert_array_equal(ids[~inside], 0)
    assert ids[inside].min() > 0  # no text's own letters become a special token
    np.testing.assert_array_equal((ids == 2).sum(axis=1), 1)
    np.testing.assert_array_equal(ids[np.arange(len(ids)), inside.sum(axis=1) - 1], 2)
    assert ids.max() < trained.vocabulary <= 300


def test_a_long_text_is_cut_before_its_eos(trained):
    whole = trained.encode(CAPTIONS, 64)
    lengths = trained.mask(whole).sum(axis=1)
    for length in (2, 5, int(lengths.min()), int(lengths.max())):
        cut = trained.encode(CAPTIONS, length)
        for row, full, count in zip(cut, whole, lengths, strict=True):
            kept = min(count, length)
            assert [*row] == [*full[: kept - 1], 2, *[0] * (length - kept)]
        np.testing.assert_array_equal(trained.mask(cut).sum(axis=1), np.minimum(lengths, length))


def test_what_a_cut_text_loses_is_said(trained):
    """Kept and lost make the text, letter by letter; a text that just fits loses nothing."""
    lengths = trained.mask(trained.encode(TEXTS + CAPTIONS, 128)).sum(axis=1)
    for length in (2, 5, int(lengths.max()) - 1, int(lengths.max())):
        ids, cut = trained.encode_and_cut(TEXTS + CAPTIONS, length)
        np.testing.assert_array_equal(ids, trained.encode(TEXTS + CAPTIONS, length))
        long = [text for text, count in zip(TEXTS + CAPTIONS, lengths, strict=True) if count > length]
        assert [each.text for each in cut] == long
        kept = dict(zip(TEXTS + CAPTIONS, trained.decode(ids), strict=True))
        for text, lost in cut:
            if text in CAPTIONS:
                assert " ".join(f"{kept[text]} {lost}".split()).replace(" ", "") == text.replace(" ", "")
            assert text.strip().endswith(lost)


@pytest.mark.parametrize("kind", ["clip", "bert"])
def test_a_published_tokenizer_says_what_is_lost_in_the_words_of_the_text(kind, tmp_path):
    """Not in its own, which are in lower case."""
    tokenizer = from_folder((clip_folder if kind == "clip" else bert_folder)(tmp_path))
    text = "A Small RED circle  on the LEFT"
    words = [tokenizer.mask(tokenizer.encode([part], 64)).sum() for part in ("A Small RED", text)]
    ids, (cut,) = tokenizer.encode_and_cut([text], int(words[0]))
    np.testing.assert_array_equal(ids, tokenizer.encode(["a small red"], int(words[0])))
    assert cut == (text, "circle  on the LEFT")
    assert tokenizer.encode_and_cut([text], int(words[1]))[1] == []


@pytest.mark.parametrize("kind", ["bytes", "trained", "clip", "bert"])
def test_the_tokens_of_a_word_are_those_that_spell_it(kind, trained, tmp_path):
    """In "bytes" each byte is a token of its own; those of spaces are of no word."""
    folders = {"clip": clip_folder, "bert": bert_folder}
    tokenizer = (
        from_folder(folders[kind](tmp_path)) if kind in folders else trained if kind == "trained" else train([], 300)
    )
    for text in (CAPTIONS[0], "  Small   circle, left!! ", "hexagon hexagon"):
        ids = tokenizer.encode([text], 100)[0]
        words = tokenizer.words(text, 100)
        assert [word for word, _ in words] == text.split()
        places = [place for _, each in words for place in each]
        assert len(set(places)) == len(places)
        assert not {tokenizer.bos, tokenizer.eos, tokenizer.pad} & set(ids[places].tolist())
        for word, each in words:
            row = np.asarray([[tokenizer.bos, *ids[each], tokenizer.eos]])
            alone = tokenizer.decode(tokenizer.encode([word], 100))
            assert [part.strip() for part in tokenizer.decode(row)] == alone


def test_words_that_are_cut_have_no_tokens(trained):
    words = trained.words(CAPTIONS[0], 5)
    assert {place for _, each in words for place in each} <= {1, 2, 3}  # 0 is the start, 4 the end
    assert [word for word, _ in words] == CAPTIONS[0].split()[: len(words)]
    assert 0 < len(words) < len(CAPTIONS[0].split())
    assert trained.words("", 5) == []


def test_training_finds_the_words_and_only_their_counts_matter(trained):
    words = trained.mask(trained.encode(CAPTIONS, 64)).sum(axis=1) - 2
    assert words.sum() < sum(map(len, CAPTIONS)) / 3
    assert train(reversed(CAPTIONS), 300).to_json() == trained.to_json()
    assert train(CAPTIONS[:10], 300).to_json() != trained.to_json()
    # Ids of bytes alone where there is nothing to merge.
    assert train([], 1000).vocabulary == 3 + 256


def test_another_process_trains_the_same_tokenizer(trained):
    program = (
        "import json, sys; from diffusion_jax.data.tokens import train;"
        "sys.stdout.write(train(json.load(sys.stdin), 300).to_json())"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], input=json.dumps(CAPTIONS), capture_output=True, text=True, check=True
    )
    assert run.stdout == trained.to_json()


@pytest.mark.parametrize("kind", ["trained", "clip", "bert"])
def test_saved_pickled_and_threaded_tokenizers_are_the_same(kind, trained, tmp_path):
    folders = {"clip": clip_folder, "bert": bert_folder}
    tokenizer = from_folder(folders[kind](tmp_path)) if kind in folders else trained
    ids = tokenizer.encode(TEXTS, 40)
    for twin in (Tokenizer.from_json(tokenizer.to_json()), pickle.loads(pickle.dumps(tokenizer))):
        np.testing.assert_array_equal(twin.encode(TEXTS, 40), ids)
        assert twin.to_json() == tokenizer.to_json()
        assert (twin.vocabulary, twin.pad, twin.bos, twin.eos) == (
            tokenizer.vocabulary,
            tokenizer.pad,
            tokenizer.bos,
            tokenizer.eos,
        )
    with ThreadPoolExecutor(4) as pool:
        for result in pool.map(lambda _: tokenizer.encode(TEXTS, 40), range(40)):
            np.testing.assert_array_equal(result, ids)


def test_clip_by_hand(tmp_path):
    words = [*"abc", "a</w>", "b</w>", "c</w>", "ab", "abc</w>", "ca</w>", *CLIP_ENDS]
    (tmp_path / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\nab c</w>\nc a</w>\n")
    tokenizer = from_folder(tmp_path)
    assert (tokenizer.bos, tokenizer.eos, tokenizer.pad, tokenizer.vocabulary) == (9, 10, 10, 11)
    # Lower-cased; "abc" is one word, "abca" is ab, then c a</w>; "ab" ends in b</w>, so that a b is no rule for it.
    ids = tokenizer.encode(["ABC  abca\nab", "", "abc " * 9], 8)
    np.testing.assert_array_equal(ids[0], [9, 7, 6, 8, 0, 4, 10, 10])
    np.testing.assert_array_equal(ids[1], [9, *[10] * 7])
    np.testing.assert_array_equal(ids[2], [9, *[7] * 6, 10])
    np.testing.assert_array_equal(tokenizer.mask(ids).sum(axis=1), [7, 2, 8])
    assert tokenizer.decode(ids) == ["abc abca ab", "", "abc abc abc abc abc abc"]


def test_bert_by_hand(tmp_path):
    tokenizer = from_folder(bert_folder(tmp_path))
    ids = tokenizer.encode(["Small café: left", ""], 10)
    pieces = (tmp_path / "vocab.txt").read_text(encoding="utf-8").split("\n")
    assert " ".join(pieces[i] for i in ids[0]) == "[CLS] small cafe [UNK] l ##e ##ft [SEP] [PAD] [PAD]"
    assert [pieces[i] for i in ids[1]] == ["[CLS]", "[SEP]", *["[PAD]"] * 8]
    np.testing.assert_array_equal(tokenizer.mask(ids).sum(axis=1), [8, 2])


ALIKE = [
    *TEXTS,
    "a small red circle " * 40,
    " ".join(CLIP_ENDS),
    "[MASK] ing [SEP]x",
    "ǅ İstanbul ẞ ½ ١٢ x²",
    "hi! wow!!",
]


def alike(tokenizer, twin, length=77):
    """Equal ids, and masks, to those of a tokenizer of transformers."""
    expected = twin(ALIKE, padding="max_length", truncation=True, max_length=length, return_tensors="np")
    ids = tokenizer.encode(ALIKE, length)
    np.testing.assert_array_equal(ids, expected["input_ids"])
    assert ids[ALIKE.index("a small red circle " * 40), -1] == tokenizer.eos
    return tokenizer.mask(ids), expected["attention_mask"].astype(bool)


@pytest.mark.parity
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"pad_token": "!"},  # Stable Diffusion 2's
        {
            "bos_token": {"__type": "AddedToken", "content": "<|startoftext|>", "lstrip": False, "normalized": True},
            "eos_token": {"__type": "AddedToken", "content": "<|endoftext|>", "lstrip": False, "normalized": True},
            "pad_token": "<|endoftext|>",
        },
    ],
)
def test_clip_is_transformers(tmp_path, settings):
    from transformers import CLIPTokenizer

    folder = clip_folder(tmp_path, **settings)
    tokenizer, twin = from_folder(folder), CLIPTokenizer.from_pretrained(folder)
    ours, theirs = alike(tokenizer, twin)
    clear = np.array([tokenizer.pad != tokenizer.eos or not text.endswith(CLIP_ENDS[1]) for text in ALIKE])
    np.testing.assert_array_equal(ours[clear], theirs[clear])
    alike(tokenizer, twin, 5)
    assert tokenizer.vocabulary == len(twin)
    twin.save_pretrained(tmp_path / "fast")
    assert (tmp_path / "fast" / "tokenizer.json").is_file()
    alike(from_folder(tmp_path / "fast"), twin)


@pytest.mark.parity
@pytest.mark.parametrize("settings", [{}, {"do_lower_case": False}, {"do_lower_case": True, "strip_accents": False}])
def test_bert_is_transformers(tmp_path, settings):
    from transformers import BertTokenizer

    folder = bert_folder(tmp_path, **settings)
    tokenizer, twin = from_folder(folder), BertTokenizer.from_pretrained(folder)
    np.testing.assert_array_equal(*alike(tokenizer, twin))
    alike(tokenizer, twin, 5)
    assert tokenizer.vocabulary == len(twin)
    twin.save_pretrained(tmp_path / "fast")
    alike(from_folder(tmp_path / "fast"), twin)


@pytest.mark.parity
def test_added_tokens_are_transformers(tmp_path):
    from transformers import BertTokenizer

    twin = BertTokenizer.from_pretrained(bert_folder(tmp_path))
    twin.add_tokens(["naïve", "LEFT"])
    twin.save_pretrained(tmp_path / "added")
    tokenizer = from_folder(tmp_path / "added")
    np.testing.assert_array_equal(*alike(tokenizer, twin))
    assert tokenizer.vocabulary == len(twin) == from_folder(tmp_path).vocabulary + 2


def test_mistakes_are_said(tmp_path, trained):
    with pytest.raises(UserError, match="at least 2 tokens"):
        trained.encode(["a"], 1)
    with pytest.raises(UserError, match="got one text, 'a'"):
        trained.encode("a", 4)
    for wrong in (None, "half of a pair: \ud83d"):
        with pytest.raises(UserError, match="string of Unicode characters; got"):
            trained.encode(["a", wrong], 4)
    with pytest.raises(UserError, match="train takes captions; got one text"):
        train("a small red circle", 300)
    with pytest.raises(UserError, match="holds 259 ids.*or more; got 258"):
        train(CAPTIONS, 258)
    with pytest.raises(UserError, match="not the JSON of a tokenizer"):
        Tokenizer.from_json("{}")
    with pytest.raises(UserError, match="holds no tokenizer"):
        from_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        from_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_text(json.dumps(json.loads(trained.to_json())["tokenizer"]))
    with pytest.raises(UserError, match="does not put texts between two special tokens"):
        from_folder(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "vocab.txt").write_text("a\nb\n")
    with pytest.raises(UserError, match=r"lacks its special token '\[SEP\]'"):
        from_folder(tmp_path)
    (bert_folder(tmp_path) / "added_tokens.json").write_text('{"new": 90000}')
    with pytest.raises(UserError, match="added token 'new' should have id 90000"):
        from_folder(tmp_path)
