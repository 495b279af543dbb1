"""Captions to token ids: the tokenizers of CLIP and BERT read from their folders, and one trained on captions.

A text becomes bos, its tokens, eos, then pad to the length, CLIP's way and, as [CLS] ... [SEP] [PAD], BERT's.
"""

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers

from diffusion_jax.data.text_file import decode_text
from diffusion_jax.errors import UserError

SPECIAL = ("<pad>", "<bos>", "<eos>")
"""Ids 0, 1 and 2 of a trained tokenizer; a caption that spells one gets the ids of its letters."""

CLIP_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
"""What OpenAI's CLIP counts as a word: `simple_tokenizer.py` of its code."""


class Cut(NamedTuple):
    """A text that is too long for its ids, and the end of it that is cut off."""

    text: str
    lost: str


@dataclasses.dataclass(frozen=True, eq=False)
class Tokenizer:
    """Texts to ids of one length and back; picklable, and safe in threads. Equal ones have equal `to_json()`.

    With a second tokenizer, for a second text encoder, its ids follow in each row: [B, 2 length].
    """

    model: tokenizers.Tokenizer
    bos: int
    eos: int
    pad: int
    second: "Tokenizer | None" = None

    @property
    def vocabulary(self) -> int:
        """One more than the highest id: the rows that an embedding needs."""
        own = max(max(self.model.get_vocab(with_added_tokens=True).values()), self.bos, self.eos, self.pad) + 1
        return own if self.second is None else max(own, self.second.vocabulary)

    def encode(self, texts: Sequence[str], length: int) -> np.ndarray:
        """The ids of the texts, int32 [B, length]: a long text is cut before its eos, a short one padded after it.

        The empty text, bos eos pad ..., is the null prompt. Raises UserError where length < 2 or texts is one string.
        """
        return self.encode_and_cut(texts, length)[0]

    def encode_and_cut(self, texts: Sequence[str], length: int) -> tuple[np.ndarray, list[Cut]]:
        """(ids as `encode` returns them, the texts that are too long for them, in order)."""
        if length < 2:
            raise UserError(f"a text takes at least 2 tokens, its beginning and its end; got a length of {length}")
        if isinstance(texts, str):
            raise UserError(f"encode takes a list of texts; got one text, {texts!r}; write [text]")
        ids = np.full((len(texts), length), self.pad, np.int32)
        cut = []
        for row, text in zip(ids, texts, strict=True):
            # One at a time: encode_batch starts threads, which a process that forks later would lose.
            try:
                found = self.model.encode(text, add_special_tokens=False)
            except TypeError:
                raise UserError(f"a text is a string of Unicode characters; got {text!r}") from None
            words = found.ids[: length - 2]
            if len(found.ids) > len(words):
                cut.append(Cut(text, text[found.offsets[length - 2][0] :].strip()))
            row[: len(words) + 2] = [self.bos, *words, self.eos]
        if self.second is None:
            return ids, cut
        more, also = self.second.encode_and_cut(texts, length)
        return np.concatenate([ids, more], axis=1), cut or also

    def words(self, text: str, length: int) -> list[tuple[str, list[int]]]:
        """The words of a text, what stands between spaces, and where their tokens are in a row of `encode`.

        A word that is cut has the tokens that are left; one of which none is left is not in the list.
        """
        offsets = self.model.encode(text, add_special_tokens=False).offsets[: length - 2]
        found = []
        for word in re.finditer(r"\S+", text):
            # The last character says whose a token is: in some tokenizers the first is the space before the word.
            places = [1 + i for i, (_, end) in enumerate(offsets) if word.start() < end <= word.end()]
            if places:
                found.append((word[0], places))
        return found

    def mask(self, ids: np.ndarray) -> np.ndarray:
        """True up to the eos that ends the text, False on the padding after it: [B, N] -> bool [B, N].

        Where eos pads, as in CLIP, an eos at the end of the words is taken for the end of the text.
        """
        return np.arange(ids.shape[1]) < self._lengths(ids)[:, None]

    def decode(self, ids: np.ndarray) -> list[str]:
        """The texts of ids [B, N] without bos, eos and padding; exact for a tokenizer of `train`."""
        suffix = getattr(self.model.model, "end_of_word_suffix", None)
        texts = [
            self.model.decode(row[1 : end - 1].tolist(), skip_special_tokens=False)
            for row, end in zip(ids, self._lengths(ids), strict=True)
        ]
        return [text.replace(suffix, " ").strip() for text in texts] if suffix else texts

    def to_json(self) -> str:
        """The tokenizer as one line of JSON, from which `from_json` makes an equal one."""
        ids = {"bos": self.bos, "eos": self.eos, "pad": self.pad}
        more = {} if self.second is None else {"second": json.loads(self.second.to_json())}
        return json.dumps({**ids, "tokenizer": json.loads(self.model.to_str()), **more})

    @staticmethod
    def from_json(text: str) -> "Tokenizer":
        """The tokenizer of the JSON that `to_json` wrote; raises UserError for other text."""
        try:
            saved = json.loads(text)
            model = tokenizers.Tokenizer.from_str(json.dumps(saved["tokenizer"]))
            second = Tokenizer.from_json(json.dumps(saved["second"])) if "second" in saved else None
            return Tokenizer(model, saved["bos"], saved["eos"], saved["pad"], second)
        except Exception as error:  # tokenizers raises Exception itself
            raise UserError(f"this is not the JSON of a tokenizer that was saved here ({error!r})") from None

    def _lengths(self, ids: np.ndarray) -> np.ndarray:
        """The number of ids [B] before the padding of each row."""
        count = ids.shape[1]
        last = count - np.argmax(ids[:, ::-1] != self.pad, axis=1)  # after the last id that is not pad's
        # Where eos pads, as in CLIP, the first of the last ids is the text's own.
        return np.minimum(last + 1, count) if self.pad == self.eos else last


def train(captions: Iterable[str], vocabulary: int) -> Tokenizer:
    """A byte-level BPE (arXiv:1508.07909, over bytes as in GPT-2) of at most `vocabulary` ids.

    Every text has ids, and they decode to it exactly. A function of the counts of the captions' words alone: their
    order changes nothing. Raises UserError where `vocabulary` cannot hold the bytes or `captions` is one string.
    """
    if isinstance(captions, str):
        raise UserError(f"train takes captions; got one text, {captions!r}; write [text]")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    least = len(SPECIAL) + len(alphabet)
    if vocabulary < least:
        raise UserError(
            f"a vocabulary holds {least} ids, the bytes and {', '.join(SPECIAL)}, or more; got {vocabulary}"
        )
    model = tokenizers.Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=2,
        special_tokens=list(SPECIAL),
        initial_alphabet=alphabet,
        show_progress=False,
    )
    model.train_from_iterator(captions, trainer)
    # As added tokens they would match "<eos>" in a caption; as entries of the vocabulary alone they do not.
    model = tokenizers.Tokenizer.from_str(json.dumps({**json.loads(model.to_str()), "added_tokens": []}))
    return Tokenizer(model, bos=1, eos=2, pad=0)


def from_folder(path: str | Path) -> Tokenizer:
    """The tokenizer of a Hugging Face folder: tokenizer.json, or CLIP's vocab.json and merges.txt, or BERT's vocab.txt.

    Raises UserError where the folder holds none of them, or one that does not enclose texts in two special tokens.
    """
    folder = Path(path)
    settings = {**_json(folder / "special_tokens_map.json", {}), **_json(folder / "tokenizer_config.json", {})}
    named = {name: value for name, value in settings.items() if name.endswith("_token")}
    names = {name: _content(value) for name, value in named.items() if isinstance(value, str | dict)}
    try:
        if (folder / "tokenizer.json").is_file():
            model = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
            model.no_truncation()
        elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
            model = _clip(folder, names)
        elif (folder / "vocab.txt").is_file():
            model = _bert(folder, names, settings)
        else:
            raise UserError(
                f"{path} holds no tokenizer: neither tokenizer.json, nor vocab.json and merges.txt, nor vocab.txt"
            )
    except UserError:
        raise
    except Exception as error:  # tokenizers raises Exception itself
        raise UserError(f"the tokenizer in {path} cannot be read ({error}); fetch its files anew") from None
    _add(model, folder, settings, names)
    padding = model.padding
    model.no_padding()
    ends = model.encode("").ids
    pad = _pad(model, padding, names, ends[-1]) if len(ends) == 2 else None
    if pad is None:
        raise UserError(
            f"the tokenizer in {path} does not put texts between two special tokens and pad them, as CLIP's and BERT's "
            f"do: an empty text gives {ends}, and the padding is {names.get('pad_token')!r}"
        )
    return Tokenizer(model, bos=ends[0], eos=ends[1], pad=pad)


def _clip(folder: Path, names: dict[str, str]) -> tokenizers.Tokenizer:
    """OpenAI's BPE: NFC, one space for many, lower case; words by CLIP_WORDS, their last byte marked </w>."""
    bos = names.setdefault("bos_token", "<|startoftext|>")
    eos = names.setdefault("eos_token", "<|endoftext|>")
    model = tokenizers.Tokenizer(
        models.BPE.from_file(
            str(folder / "vocab.json"),
            str(folder / "merges.txt"),
            unk_token=names.setdefault("unk_token", eos),
            end_of_word_suffix="</w>",
            continuing_subword_prefix="",
        )
    )
    names.setdefault("pad_token", eos)
    model.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(tokenizers.Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    words = pre_tokenizers.Split(tokenizers.Regex(CLIP_WORDS), behavior="removed", invert=True)
    model.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    model.decoder = decoders.ByteLevel()
    model.post_processor = processors.RobertaProcessing(_pair(model, eos), _pair(model, bos), False, False)
    return model


def _bert(folder: Path, names: dict[str, str], settings: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """BERT's WordPiece: cleaned, in lower case without accents unless the settings keep them, Chinese by character."""
    cls, sep = names.setdefault("cls_token", "[CLS]"), names.setdefault("sep_token", "[SEP]")
    for name in ("pad", "mask"):
        names.setdefault(f"{name}_token", f"[{name.upper()}]")
    unk = names.setdefault("unk_token", "[UNK]")
    model = tokenizers.Tokenizer(models.WordPiece.from_file(str(folder / "vocab.txt"), unk_token=unk))
    model.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
        strip_accents=settings.get("strip_accents"),
        lowercase=settings.get("do_lower_case", True),
    )
    model.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    model.decoder = decoders.WordPiece(prefix="##")
    model.post_processor = processors.BertProcessing(_pair(model, sep), _pair(model, cls))
    return model


def _add(model: tokenizers.Tokenizer, folder: Path, settings: Mapping[str, Any], names: Mapping[str, str]) -> None:
    """Adds the tokens that the folder adds to its vocabulary, and makes the special ones whole wherever they stand."""
    listed = {int(i): token for i, token in settings.get("added_tokens_decoder", {}).items()}
    listed |= {i: {"content": token} for token, i in _json(folder / "added_tokens.json", {}).items() if i not in listed}
    for i, token in sorted(listed.items()):
        flags = {key: value for key, value in token.items() if key in ("single_word", "lstrip", "rstrip", "normalized")}
        added = AddedToken(token["content"], special=token.get("special", False), **flags)
        (model.add_special_tokens if added.special else model.add_tokens)([added])
        if model.token_to_id(added.content) != i:
            raise UserError(
                f"{folder}: the added token {added.content!r} should have id {i}, but the vocabulary gives it "
                f"{model.token_to_id(added.content)}; fetch the files of one tokenizer"
            )
    known = {token["content"] for token in listed.values()}
    for token in dict.fromkeys(names.values()):
        if token not in known and model.token_to_id(token) is not None:
            model.add_special_tokens([AddedToken(token, special=True, normalized=False)])


def _pad(
    model: tokenizers.Tokenizer, padding: Mapping[str, Any] | None, names: Mapping[str, str], eos: int
) -> int | None:
    """The padding id: the first of that of the folder's pad_token, of tokenizer.json, of [PAD], and eos as in CLIP."""
    if "pad_token" in names:
        return model.token_to_id(names["pad_token"])
    if padding:
        return padding["pad_id"]
    pad = model.token_to_id("[PAD]")
    return eos if pad is None else pad


def _pair(model: tokenizers.Tokenizer, token: str) -> tuple[str, int]:
    i = model.token_to_id(token)
    if i is None:
        raise UserError(f"the vocabulary lacks its special token {token!r}; fetch the files of one tokenizer")
    return token, i


def _content(token: str | Mapping[str, Any]) -> str:
    """The text of a token in the settings, which is a text or an object with its content."""
    return token if isinstance(token, str) else token["content"]


def _json(path: Path, absent: dict[str, Any]) -> dict[str, Any]:
    """The object in a JSON file, or absent where there is no file; raises UserError where it is not JSON."""
    if not path.is_file():
        return absent
    text = decode_text(path.read_bytes(), str(path))
    try:
        return json.loads(text)
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); fetch it anew") from None
