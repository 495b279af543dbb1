"""Where the words of a text are among its tokens."""

import numpy as np
import pytest

from diffusion_jax.data import tokens

CAPTIONS = ["a small red circle", "a large green triangle left of a purple square", "two blue hexagons"]


@pytest.mark.parametrize("vocabulary", [259, 320])
def test_the_tokens_of_a_word_spell_it(vocabulary):
    """With 259 each byte is a token of its own."""
    tokenizer = tokens.train(CAPTIONS, vocabulary)
    for text in [*CAPTIONS, "hexagon, hexagon!", "  spaces   around "]:
        ids = tokenizer.encode([text], 100)[0]
        words = tokenizer.words(text, 100)
        assert [word for word, _ in words] == text.split()
        places = [place for _, each in words for place in each]
        assert len(set(places)) == len(places)
        for word, each in words:
            spelled = tokenizer.decode(np.asarray([[tokenizer.bos, *ids[each], tokenizer.eos]]))[0]
            assert spelled.strip() == word
        assert not {tokenizer.bos, tokenizer.eos, tokenizer.pad} & set(ids[places].tolist())


def test_words_that_are_cut_are_left_out():
    tokenizer = tokens.train(CAPTIONS, 300)
    words = tokenizer.words(CAPTIONS[1], 5)
    assert {place for _, each in words for place in each} <= {1, 2, 3}  # 0 is the start, 4 the end
    assert [word for word, _ in words] == ["a", "large"]
    assert tokenizer.words("", 5) == []
