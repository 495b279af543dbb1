"""A notice at the start of a run about captions that are too long for the text encoder."""

from collections.abc import Sequence

import jax

from diffusion_jax.data.sources import Source
from diffusion_jax.data.tokens import Tokenizer
from diffusion_jax.models.text import CutNotice, Text

_LOOKED_AT = 1_000
"""Captions that are read before training. A long one among the others is noticed in its first batch."""


def notice(text: Text, tokenizer: Tokenizer, source: Source, prompts: Sequence[str] = ()) -> None:
    """Prints to stderr how many of the first captions the text encoder cuts, and what one of them loses.

    The same is printed for the config's prompts. Only the first process of a run prints, now and later. Captions that
    cannot be read are skipped here; training names them.
    """
    if jax.process_index() != 0:
        text.notice.given = True
        return
    captions = []
    for i in range(min(len(source), _LOOKED_AT)):
        try:
            captions.append(source[i]["caption"])
        except (KeyError, ValueError):  # the example is corrupt, and training names it
            continue
    text.encode(tokenizer, captions)
    cut = tokenizer.encode_and_cut(prompts, text.length)[1]
    if cut and text.notice.given:  # otherwise the first grid of these prompts prints the notice
        CutNotice().give(cut, len(prompts), text.length)
