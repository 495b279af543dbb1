"""Captions of the data that a text encoder does not read to their end: said at the start of a run."""

from collections.abc import Sequence

import jax

from diffusion_jax.data.sources import Source
from diffusion_jax.data.tokens import Tokenizer
from diffusion_jax.models.text import CutNotice, Text

_LOOKED_AT = 1_000
"""Captions that are read before training. A longer one among the others is said where the first batch holds it."""


def notice(text: Text, tokenizer: Tokenizer, source: Source, prompts: Sequence[str] = ()) -> None:
    """Says on stderr how many of the first captions are longer than the text encoder reads, and what one loses.

    Likewise of the prompts of the config, which are others. One process of a run does; the others keep silent for good.
    Captions that cannot be read are left to training.
    """
    if jax.process_index() != 0:
        text.notice.given = True
        return
    captions = []
    for i in range(min(len(source), _LOOKED_AT)):
        try:
            captions.append(source[i]["caption"])
        except (KeyError, ValueError):  # of an example that is corrupt, which training names
            continue
    text.encode(tokenizer, captions)
    cut = tokenizer.encode_and_cut(prompts, text.length)[1]
    if cut and text.notice.given:  # else the grid, whose prompts they are, says it
        CutNotice().give(cut, len(prompts), text.length)
