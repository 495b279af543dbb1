"""The one exception that is the user's to mend, and the name that a mistyped one was meant to be."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Something the user can put right: one sentence with what was expected, what came and what to do.

    The commands print it without a traceback and exit with status 2.
    """


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown name: ". Did you mean 'cosine'?" where one of known is near, or "".

    Case does not count.
    """
    names = {one.lower(): one for one in known}
    near = difflib.get_close_matches(name.lower(), names, n=1)
    return f". Did you mean {names[near[0]]!r}?" if near else ""
