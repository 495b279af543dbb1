"""Captions and classes in files beside images or sounds: metadata.jsonl, metadata.csv, or a .txt for each."""

import csv
import io
import json
import posixpath
import unicodedata
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, NamedTuple

from diffusion_jax.data.text_file import decode_text, lines_of
from diffusion_jax.errors import UserError

JSONL, CSV = "metadata.jsonl", "metadata.csv"

FILE_NAME, LABEL = "file_name", "label"
"""Names of columns; that of captions is `data.caption`."""


class Table(NamedTuple):
    """The rows of a metadata file; a column that it lacks is None."""

    names: list[str]
    captions: list[str] | None
    labels: list[int] | list[str] | None
    columns: tuple[str, ...]  # all columns of the first row


def read_table(data: bytes, path: str, known: Collection[str], caption: str, noun: str = "images") -> Table:
    """The rows of a metadata.jsonl or metadata.csv, path, about the files known, with the column caption.

    Names are matched as `lookup` does. Raises UserError that names a malformed line, or one of an unknown file.
    """
    text = decode_text(data, path)
    rows = list(_csv_rows(text, path) if path.endswith(CSV) else _jsonl_rows(text, path))
    if not rows:
        raise UserError(f"{path} lists no {noun}; write a row with {FILE_NAME} for each")
    find = lookup(known)
    names: list[str] = []
    wanted = [name for name in (FILE_NAME, caption, LABEL) if name in rows[0][1]]
    for where, row in rows:
        _check(row, where, caption)
        if (found := find(row[FILE_NAME])) is None:
            raise UserError(f"{where}: there is no file {row[FILE_NAME]!r} in its folder; {_advice(row, known)}")
        has = [name for name in (FILE_NAME, caption, LABEL) if name in row]
        if has != wanted:
            raise UserError(f"{where}: it has {', '.join(has)}, but the first {', '.join(wanted)}")
        names.append(found)
    captions, labels = ([row[key] for _, row in rows] if key in wanted else None for key in (caption, LABEL))
    if labels is not None and len({type(label) for label in labels}) > 1:
        raise UserError(f"{path} has both numbers and names as labels; keep one kind")
    return Table(names, captions, labels, tuple(rows[0][1]))


def lookup(known: Collection[str]) -> Callable[[str], str | None]:
    """A function name -> the known name equal to it, up to ./, a backslash for / and Unicode normal forms, or None."""
    exact = set(known)
    plain = {_plain(name): name for name in known}
    return lambda name: name if name in exact else plain.get(_plain(name))


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", posixpath.normpath(name.replace("\\", "/")))


def _advice(row: dict[str, Any], known: Collection[str]) -> str:
    near = [name for name in known if _plain(name).casefold() == _plain(row[FILE_NAME]).casefold()]
    return f"there is {near[0]!r}" if near else "add it"


def _jsonl_rows(text: str, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(lines_of(text), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{where}: not JSON ({error}); write one object a line") from None
        if not isinstance(row, dict) or not isinstance(row.get(FILE_NAME), str):
            raise UserError(f'{where}: expected an object with a {FILE_NAME}, such as {{"{FILE_NAME}": "0.png"}}')
        yield where, row


def _csv_rows(text: str, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (place in the file, row); labels are numbers if all of them are whole numbers."""
    first = text.partition("\n")[0]
    delimiter = next((mark for mark in ",;\t" if FILE_NAME in [cell.strip('" \r') for cell in first.split(mark)]), ",")
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows: list[tuple[str, dict[str, Any]]] = []
    try:
        header = [cell.strip() for cell in next(lines, [])]
        if FILE_NAME not in header or len(set(header)) < len(header):
            raise UserError(
                f"{path}, line 1: expected the names of the columns, {FILE_NAME} among them; got {', '.join(header)}"
            )
        for cells in lines:
            where = f"{path}, line {lines.line_num}"
            if not cells:
                continue
            if len(cells) != len(header):
                raise UserError(f"{where}: it has {len(cells)} cells, and the first line {len(header)}")
            rows.append((where, dict(zip(header, cells, strict=True))))
    except csv.Error as error:
        raise UserError(f"{path}, line {lines.line_num}: not CSV ({error}); write {FILE_NAME},text") from None
    if LABEL in header and all(row[LABEL].isascii() and row[LABEL].isdigit() for _, row in rows):
        rows = [(where, row | {LABEL: int(row[LABEL])}) for where, row in rows]
    return iter(rows)


def _check(row: dict[str, Any], where: str, caption: str) -> None:
    if not isinstance(row.get(caption, ""), str):
        raise UserError(f"{where}: {caption} must be a string; got {row[caption]!r}")
    label = row.get(LABEL, 0)
    if type(label) not in (int, str) or (type(label) is int and label < 0):
        raise UserError(f"{where}: {LABEL} must be a class's name or a number from 0 on; got {label!r}")


def text_beside(name: str) -> str:
    """The name of the .txt with the caption of the file name."""
    return posixpath.splitext(name)[0] + ".txt"


def found_instead(names: Sequence[str]) -> list[str]:
    """Files at the top that may hold captions in a form that is not supported."""
    forms = (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".arrow", ".caption", ".txt")
    return [name for name in names if "/" not in name and name.lower().endswith(forms)]
