"""A page of clips with players, as one file that needs no other."""

import html
from collections.abc import Sequence
from typing import NamedTuple

from diffusion_jax.report.page import address, document

MOST_BYTES = 32 * 2**20
"""Of the clips in one page; a browser holds all of them in memory."""

_STYLE = """
h1 { margin: 0 0 .25rem; font-size: 1.25rem; }
p { margin: 0 0 1.25rem; color: var(--soft); }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(264px, 1fr)); gap: 1rem; }
figure { margin: 0; padding: .75rem; background: var(--card); border: 1px solid var(--line); border-radius: 8px; }
figcaption { margin-bottom: .5rem; font-weight: 600; overflow-wrap: anywhere; }
img { display: block; width: 100%; height: auto; border-radius: 4px; image-rendering: auto; }
audio { display: block; width: 100%; height: 36px; margin-top: .5rem; }
"""


class Player(NamedTuple):
    """One clip of a page."""

    name: str
    wav: bytes
    picture: bytes  # PNG


def shown_count(sizes: Sequence[int]) -> int:
    """How many of the first clips, of these sizes in bytes, a page holds: one at least, of MOST_BYTES at most."""
    total = 0
    for count, size in enumerate(sizes):
        total += size
        if count and total > MOST_BYTES:
            return count
    return len(sizes)


def players_page(players: Sequence[Player], title: str, line: str) -> bytes:
    """An HTML page of players in order under a title and a line of text.

    Sounds and pictures are in it as data: addresses, so that the page can be sent by itself; it runs no script.
    """
    figures = "\n".join(_figure(player) for player in players)
    body = f"""<h1>{html.escape(title)}</h1>
<p>{html.escape(line)}</p>
<main>
{figures}
</main>"""
    return document(title, _STYLE, body)


def _figure(player: Player) -> str:
    name = html.escape(player.name)
    return f"""<figure>
<figcaption>{name}</figcaption>
<img alt="spectrogram of {name}" src="{address("image/png", player.picture)}">
<audio controls preload="metadata" src="{address("audio/wav", player.wav)}"></audio>
</figure>"""
