"""The one exception that is the user's to mend, the name that a mistyped one was meant to be, and how flags are called
in Python.
"""

import contextlib
import difflib
import re
from collections.abc import Iterable, Iterator


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


_ARGUMENTS = {"label": "labels", "prompt": "prompts", "noema": "ema=False"}
"""{flag: the argument of the Python functions that stands for it}, where it is not the flag's own name."""

_TRUST = re.compile(r"give --extension=(\w+)")

_FLAG = re.compile(r"--([a-z]\w*)(=(?=\s|$))?")  # the group after it: a value that is empty


def in_python(message: str) -> str:
    """A message that names flags, `--label=cat`, with the arguments of the Python functions in their place."""

    def argument(match: re.Match[str]) -> str:
        return _ARGUMENTS.get(match[1], match[1]) + ("=''" if match[2] else "")

    return _FLAG.sub(argument, _TRUST.sub(r"call diffusion_jax.trust('\1')", message))


@contextlib.contextmanager
def naming_arguments() -> Iterator[None]:
    """While entered, the message of a UserError names arguments of Python functions where it would name flags.

    Messages are written for the commands. The functions of `import diffusion_jax` enter this, and nothing else
    translates.
    """
    try:
        yield
    except UserError as error:
        error.args = (in_python(str(error)), *error.args[1:])
        raise
