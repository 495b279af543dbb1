"""The references of the site: config keys, choices, commands and Python, each read from the code at every build.

A page asks for one by a comment on a line of its own, `<!-- generated: keys -->`, which a reader of the file does not
see.
"""

import re
from collections.abc import Callable

from reference import api, commands, keys
from sphinx.application import Sphinx

_ASKED = re.compile(r"^<!-- generated: (\w+)(?: (\S+))? -->$", re.MULTILINE)

GENERATED: dict[str, Callable[..., str]] = {
    "keys": keys.every_key,
    "lists": keys.every_list,
    "commands": commands.every_command,
    "functions": api.functions,
    "module": api.module,
    "table": api.table,
}
"""{what a page asks for: the function that gives its Markdown}."""


def setup(app: Sphinx) -> dict[str, bool]:
    """Sphinx calls this."""
    app.connect("source-read", _read)
    return {"parallel_read_safe": True}


def _read(app: Sphinx, page: str, source: list[str]) -> None:
    source[0] = _ASKED.sub(lambda asked: GENERATED[asked[1]](*filter(None, [asked[2]])), source[0])
