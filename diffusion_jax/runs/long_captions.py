"""Captions of the data that a text encoder does not read to their end: said at the start of a run."""

import jax

from diffusion_jax.build.text import Text
from diffusion_jax.data.sources import Source
from diffusion_jax.data.tokens import Tokenizer

_LOOKED_AT = 1_000
"""Captions that are read before training. A longer one among the others is said where the first batch holds it."""


def notice(text: Text, tokenizer: Tokenizer, source: Source) -> None:
    """Says on stderr how many of the first captions are longer than text encoder reads, and what is cut of one.

    One process of a run does; the others keep silent for good. Captions that cannot be read are left to training.
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
