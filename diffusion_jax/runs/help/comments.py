"""The meanings of the entries of a dict, or of the fields of a class, from comments and docstrings in its source.

So a meaning is written once, and programmers and users read the same words.
"""

import ast
import inspect
import io
import textwrap
import tokenize


def meanings(node: ast.Dict, source: str, prefix: str = "") -> dict[str, str]:
    """{dotted key: comment} of a dict display in source, and of the dicts in it.

    The comment of a key is the one after its value or, if there is none, those on the lines before it. A key whose
    value is a dict has none.
    """
    behind, alone = _comments(source)
    found: dict[str, str] = {}
    for key, value in zip(node.keys, node.values, strict=True):
        if not isinstance(key, ast.Constant) or not isinstance(key.value, str):  # **more
            continue
        if isinstance(value, ast.Dict):
            found |= meanings(value, source, f"{prefix}{key.value}.")
        elif (text := behind.get(value.end_lineno or 0)) is not None:
            found[f"{prefix}{key.value}"] = text
        else:
            above: list[str] = []
            line = key.lineno - 1
            while line in alone:
                above.insert(0, alone[line])
                line -= 1
            found |= {f"{prefix}{key.value}": " ".join(above)} if above else {}
    return found


def of_fields(cls: type) -> dict[str, str]:
    """{field: its docstring, or the comment after it} of a dataclass and of those from which it inherits.

    A class whose source cannot be read is left out.
    """
    found: dict[str, str] = {}
    for each in reversed(cls.__mro__):
        try:
            source = textwrap.dedent(inspect.getsource(each))
        except (OSError, TypeError):
            continue
        (definition,) = ast.parse(source).body
        assert isinstance(definition, ast.ClassDef)
        behind, _ = _comments(source)
        for node, after in zip(definition.body, [*definition.body[1:], None], strict=True):
            if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
                continue
            if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                found[node.target.id] = " ".join(str(after.value.value).split())
            elif text := behind.get(node.end_lineno or 0):
                found[node.target.id] = text
    return found


def _comments(source: str) -> tuple[dict[int, str], dict[int, str]]:
    """{line: comment} of the comments after code, and of those on lines of their own."""
    behind: dict[int, str] = {}
    alone: dict[int, str] = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            where = behind if token.line[: token.start[1]].strip() else alone
            where[token.start[0]] = token.string.lstrip("# ").strip()
    return behind, alone
