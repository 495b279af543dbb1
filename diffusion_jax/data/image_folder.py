"""A folder of images, or a zip of one, with labels from its sub-folders or captions from its metadata.jsonl."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Sequence
from typing import Any

from diffusion_jax.data.example import Example
from diffusion_jax.data.files import Files, open_files
from diffusion_jax.data.transforms import SUFFIXES
from diffusion_jax.errors import UserError

METADATA = "metadata.jsonl"
SPLITS = frozenset({"train", "validation", "valid", "val", "test"})


@dataclasses.dataclass(frozen=True)
class ImageFolder:
    """Images in one folder of files; labels and captions, where there are any, go with names."""

    files: Files
    root: str  # the folder, ending in / unless it is the top
    names: Sequence[str]  # relative to root
    labels: Sequence[int] | None = None
    captions: Sequence[str] | None = None
    class_names: tuple[str, ...] | None = None

    @functools.cached_property
    def num_classes(self) -> int | None:
        """The number of class names, or one more than the largest label."""
        if self.class_names is not None:
            return len(self.class_names)
        return None if self.labels is None else max(self.labels) + 1

    @functools.cached_property
    def fingerprint(self) -> str:
        """The number of images and a hash of their names, labels and captions: the same for a folder and its zip."""
        content = json.dumps([self.names, self.labels, self.captions, self.class_names])
        return f"{len(self)} images, {hashlib.sha256(content.encode()).hexdigest()[:16]}"

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Example:
        name = self.root + self.names[index]
        example: Example = {"image": self.files.read(name), "name": f"{self.files.path}/{name}"}
        if self.labels is not None:
            example["label"] = self.labels[index]
        if self.captions is not None:
            example["caption"] = self.captions[index]
        return example


def image_folder(path: str, split: str = "train") -> ImageFolder:
    """The images under path, a folder or a zip that is read without unpacking.

    A folder with no image and one sub-folder is entered; of sub-folders that are all named like splits, the one named
    split. There, metadata.jsonl lists the images if it exists: an object a line with "file_name" and optionally "text",
    the caption, and "label", a number or a name (the layout of Hugging Face's ImageFolder). Otherwise the images are
    taken in the order of their names; each sub-folder is a class, numbered in the order of names, and images in no
    sub-folder have no labels. Hidden files and those whose suffix is no image's are left out. Raises UserError where
    that fits nothing or more than one thing.
    """
    files = open_files(path)
    root, names = _enter(files.path, files.names(), split)
    where = f"{files.path}/{root}".rstrip("/")
    if METADATA in names:
        return _from_metadata(files, root, names)
    images = [name for name in names if _is_image(name)]
    if not images:
        raise UserError(f"{where} holds no images, files that end in {', '.join(SUFFIXES)}; check the path")
    loose = [name for name in images if "/" not in name]
    if len(loose) == len(images):
        return ImageFolder(files, root, images)
    if loose:
        raise UserError(f"{where} holds both loose images, such as {loose[0]}, and folders of images; keep one kind")
    classes = [_top(name) for name in images]
    if empty := {_top(name) for name in names if "/" in name} - set(classes):
        raise UserError(f"the class folder {where}/{min(empty)} holds no images; add some or remove it")
    labels, class_names = _numbered(classes)
    return ImageFolder(files, root, images, labels, class_names=class_names)


def _enter(path: str, names: list[str], split: str) -> tuple[str, list[str]]:
    """The folder that holds the split, ending in / unless it is the top, and the names in it, relative to it."""
    root, chosen = "", False
    while METADATA not in names and not any("/" not in name and _is_image(name) for name in names):
        folders = {_top(name) for name in names if "/" in name}
        if folders and folders <= SPLITS and not chosen:
            if split not in folders:
                raise UserError(f"{path} has no split {split!r}; choose from {', '.join(sorted(folders))}")
            step, chosen = f"{split}/", True
        elif len(folders) == 1:
            step = f"{folders.pop()}/"
        else:
            break
        root += step
        names = [name.removeprefix(step) for name in names if name.startswith(step) and name != step]
    if not chosen and split != "train":
        raise UserError(f"{path} has no splits, so all of it is 'train', not {split!r}; set the split to 'train'")
    return root, names


def _from_metadata(files: Files, root: str, names: list[str]) -> ImageFolder:
    known = set(names)
    rows: list[dict[str, Any]] = []
    path = f"{files.path}/{root}{METADATA}"
    for number, line in enumerate(files.read(root + METADATA).splitlines(), 1):
        if line.strip():
            row = _row(line, f"{path}, line {number}")
            if row["file_name"] not in known:
                raise UserError(f"{path}, line {number}: there is no file {row['file_name']!r} in its folder; add it")
            if rows and row.keys() != rows[0].keys():
                raise UserError(f"{path}, line {number}: it has {', '.join(row)}, but the first {', '.join(rows[0])}")
            rows.append(row)
    if not rows:
        raise UserError(f"{path} lists no images; write an object with file_name a line")
    labels, captions = ([row[key] for row in rows] if key in rows[0] else None for key in ("label", "text"))
    class_names = None
    if labels is not None and len(kinds := {type(label) for label in labels}) > 1:
        raise UserError(f"{path} has both numbers and names as labels; keep one kind")
    if labels is not None and kinds == {str}:
        labels, class_names = _numbered(labels)
    return ImageFolder(files, root, [row["file_name"] for row in rows], labels, captions, class_names)


def _row(line: bytes, where: str) -> dict[str, Any]:
    """What a line of metadata says of its image; columns of others are left out."""
    try:
        row = json.loads(line)
    except ValueError as error:
        raise UserError(f"{where}: not JSON ({error}); write one object a line") from None
    if not isinstance(row, dict) or not isinstance(row.get("file_name"), str):
        raise UserError(f'{where}: expected an object with a file_name, such as {{"file_name": "0.png"}}')
    if not isinstance(row.get("text", ""), str):
        raise UserError(f"{where}: text must be a string; got {row['text']!r}")
    label = row.get("label", 0)
    if type(label) not in (int, str) or (type(label) is int and label < 0):
        raise UserError(f"{where}: label must be a class's name or a number from 0 on; got {label!r}")
    return {key: row[key] for key in ("file_name", "text", "label") if key in row}


def _numbered(classes: Sequence[str]) -> tuple[list[int], tuple[str, ...]]:
    """Each example's label, and the names of the classes in the order of their labels."""
    names = tuple(sorted(set(classes)))
    number = {name: i for i, name in enumerate(names)}
    return [number[name] for name in classes], names


def _top(name: str) -> str:
    return name.split("/", 1)[0]


def _is_image(name: str) -> bool:
    return name.lower().endswith(tuple(SUFFIXES))
