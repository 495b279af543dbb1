"""The columns of a data set in Parquet that hold its images, classes and captions."""

import dataclasses
import json
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from diffusion_jax.data.classes import shown
from diffusion_jax.errors import UserError

if TYPE_CHECKING:  # pyarrow is of the extra "parquet"
    import pyarrow

IMAGES = ("image", "img", "jpg", "jpeg", "png", "webp", "picture")
"""Names by which a column of plain bytes counts as images."""

CAPTION = "text"
"""The value of `data.caption` that stands for "text" or "caption"."""


@dataclasses.dataclass(frozen=True)
class Columns:
    """Names of columns; None for what the data do not have."""

    image: str
    nested: bool  # image is a struct with the entry bytes, as Hugging Face writes it
    label: str | None
    class_names: tuple[str, ...] | None  # as the file lists them
    caption: str | None

    @property
    def read(self) -> list[str]:
        """What is read for an example, in the words of pyarrow."""
        image = f"{self.image}.bytes" if self.nested else self.image
        return [image, *(name for name in (self.label, self.caption) if name is not None)]


def columns_of(schema: "pyarrow.Schema", where: str, caption: str, needs: Collection[str]) -> Columns:
    """The columns of a file; raises UserError where it has no image, or several and none is called "image".

    The class is the column "label" or, of one column with names, that one; the caption is that of `data.caption`.
    Raises UserError where needs has "label" or "caption", and the file does not say which column that is.
    """
    features = _features(schema)
    images = [name for name in schema.names if _is_image(schema, name, features)]
    if not images:
        raise UserError(
            f"{where} has no column of images, bytes or a struct with bytes; it has {shown(schema.names)}; plain "
            "arrays are read by arrays:FILE"
        )
    image = _one("image", images)
    if image is None:
        raise UserError(f"{where} has several columns of images, {shown(images)}, and none is called image; rename one")
    label = _label(schema, features, where, needed="label" in needs)
    found = features.get(label, {}).get("names") if label is not None else None
    return Columns(
        image,
        _is_struct(schema, image),
        label,
        tuple(map(str, found)) if found else None,
        _caption(schema, where, caption, needed="caption" in needs),
    )


def _features(schema: "pyarrow.Schema") -> dict[str, dict[str, Any]]:
    """What Hugging Face's `datasets` wrote of the columns; {} for files of others."""
    try:
        found = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError):
        return {}
    return {name: each for name, each in found.items() if isinstance(each, dict)} if isinstance(found, dict) else {}


def _is_struct(schema: "pyarrow.Schema", name: str) -> bool:
    kind = schema.field(name).type
    return str(kind).startswith("struct") and any(kind.field(i).name == "bytes" for i in range(kind.num_fields))


def _is_image(schema: "pyarrow.Schema", name: str, features: Mapping[str, Mapping[str, Any]]) -> bool:
    kind = str(schema.field(name).type)
    if _is_struct(schema, name):
        return features.get(name, {}).get("_type", "Image") == "Image"  # sounds are such structs too
    return kind in ("binary", "large_binary") and (
        features.get(name, {}).get("_type") == "Image" or name.lower() in IMAGES
    )


def _one(name: str, names: Sequence[str]) -> str | None:
    """The name if it is among names, or the only one of names; None otherwise."""
    return name if name in names else names[0] if len(names) == 1 else None


def _label(
    schema: "pyarrow.Schema", features: Mapping[str, Mapping[str, Any]], where: str, *, needed: bool
) -> str | None:
    classes = [name for name in schema.names if features.get(name, {}).get("_type") == "ClassLabel"]
    if "label" in schema.names and str(schema.field("label").type) in _LABELS:
        return "label"
    if (found := _one("label", classes)) is not None:
        return found
    if needed and classes:
        raise UserError(
            f"{where} has several columns of classes, {shown(classes)}, and none is called label; rename one"
        )
    return None


def _caption(schema: "pyarrow.Schema", where: str, caption: str, *, needed: bool) -> str | None:
    texts = [name for name in schema.names if str(schema.field(name).type) in _TEXTS]
    wanted = ("text", "caption") if caption == CAPTION else (caption,)
    found = next((name for name in wanted if name in texts), None)
    if found is None and (needed or caption != CAPTION):
        raise UserError(
            f"{where} has no column {caption!r} of captions; its texts are {shown(texts) or 'none'}: name one with "
            "data.caption"
        )
    return found


_TEXTS = {"string", "large_string", "string_view"}
_LABELS = _TEXTS | {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
