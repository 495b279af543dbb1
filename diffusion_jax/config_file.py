"""What went wrong in a config file, which is Python, as one sentence: file, line, the last error."""

import sysconfig
import traceback
from pathlib import Path

from diffusion_jax.errors import UserError

_INSTALLED = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
_LIBRARIES = tuple(str(Path(folder).resolve()) for folder in [str(Path(__file__).parent), *_INSTALLED])
_LONGEST = 300  # characters of an error's own words


def failure(path: str, error: BaseException) -> UserError | None:
    """The sentence about an error that running the Python file at path raised; None for an error from elsewhere.

    The line is the innermost one of the user's own code: of the file itself, or of one that it imports.
    """
    for one in _chain(error):
        if isinstance(one, SyntaxError) and one.filename and not _library(one.filename):
            where = f"{_shown(one.filename, path)}, line {one.lineno}"
            return UserError(f"cannot read the config: {where}: {type(one).__name__}: {one.msg}")
        frames = traceback.extract_tb(one.__traceback__)
        if any(_same(frame.filename, path) for frame in frames):
            own = [frame for frame in frames if not _library(frame.filename) or _same(frame.filename, path)][-1]
            kind = "" if isinstance(one, UserError) else f"{type(one).__name__}: "
            where = f"{_shown(own.filename, path)}, line {own.lineno}"
            return UserError(f"cannot read the config: {where}: {kind}{said(one)}")
    text = str(error)
    if "has no attribute 'get_config'" in text:
        return UserError(f"the config file {path} has no get_config(); define it, with the config as what it returns")
    if "get_config()" in text and "argument" in text:
        reason = text.rpartition("get_config()")[2].strip()
        return UserError(f"get_config() of {path} {reason}; an argument is written --config=FILE:ARGUMENT")
    if isinstance(error, UnicodeDecodeError) or "source code" in text:
        return UserError(f"the config file {path} is no Python: {text.splitlines()[-1]}")
    return None


def said(error: BaseException) -> str:
    """An error's own words on one line, without the list of all other keys that ml_collections adds."""
    if isinstance(error, KeyError) and error.args:  # its text is a repr
        text = str(error.args[0])
    elif isinstance(error, OSError) and error.strerror:
        text = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    else:
        text = str(error)
    text = " ".join(text.replace("\\'", "'").replace("\\n", " ").strip('"').split())
    words, _, hint = text.partition("Did you mean")
    words = words.partition("Other fields present")[0].strip()
    words = words[1:] if words.count("'") % 2 else words
    words = words if len(words) <= _LONGEST else words[:_LONGEST].rstrip() + " ..."
    return f"{words} Did you mean{hint}".rstrip("'") if hint else words


def _chain(error: BaseException | None) -> list[BaseException]:
    """The error and what it was raised from or in, the last one first."""
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def _same(file: str, path: str) -> bool:
    return Path(file).resolve() == Path(path).resolve()


def _library(file: str) -> bool:
    return file.startswith("<") or str(Path(file).resolve()).startswith(_LIBRARIES)


def _shown(file: str, path: str) -> str:
    """The file as the user wrote it, where it is the one at path."""
    return path if _same(file, path) else file
