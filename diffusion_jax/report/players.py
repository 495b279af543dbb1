"""A page of clips with players, as one file that needs no other."""

import base64
import html
from collections.abc import Sequence
from typing import NamedTuple

MOST_BYTES = 32 * 2**20
"""Of the clips in one page; a browser holds all of them in memory."""

_STYLE = """
:root { color-scheme: light dark; --paper: #fafafa; --card: #ffffff; --ink: #1c1c1e; --soft: #6a6a70; --line: #d9d9de; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #17171a; --card: #222226; --ink: #ececf0; --soft: #a0a0a8; --line: #3a3a40; }
}
body { margin: 0; padding: 1.5rem; background: var(--paper); color: var(--ink); font: 15px/1.45 system-ui, sans-serif; }
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
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>{html.escape(title)}</h1>
<p>{html.escape(line)}</p>
<main>
{figures}
</main>
</body>
</html>
""".encode()


def _figure(player: Player) -> str:
    name = html.escape(player.name)
    return f"""<figure>
<figcaption>{name}</figcaption>
<img alt="spectrogram of {name}" src="{_address("image/png", player.picture)}">
<audio controls preload="metadata" src="{_address("audio/wav", player.wav)}"></audio>
</figure>"""


def _address(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
