"""Files of one kind in a folder or zip, with labels from sub-folders, or labels and captions from files beside them."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Collection, Sequence
from typing import ClassVar, TypeVar

from diffusion_jax.data import metadata
from diffusion_jax.data.classes import counted, natural_order
from diffusion_jax.data.example import Example
from diffusion_jax.data.files import Files, open_files
from diffusion_jax.data.text_file import decode_text
from diffusion_jax.errors import UserError

SPLITS = frozenset({"train", "validation", "valid", "val", "test"})


@dataclasses.dataclass(frozen=True)
class LabelledFiles:
    """Files of one kind in one folder; labels and captions, where there are any, are in the order of names.

    A subclass has the kind's suffixes and noun, and reads an example: it is a `Source`.
    """

    suffixes: ClassVar[tuple[str, ...]] = ()
    """The suffixes of the kind, in lower case."""
    noun: ClassVar[str] = "files"
    """The word for such files in messages."""

    files: Files
    root: str  # the folder, ending in / unless it is the top
    names: Sequence[str]  # relative to root
    labels: Sequence[int] | None = None
    captions: Sequence[str] | None = None
    class_names: tuple[str, ...] | None = None
    left_out: Sequence[str] = ()  # files of root without a row or a caption

    @functools.cached_property
    def num_classes(self) -> int | None:
        """The number of class names, or one more than the largest label."""
        return counted(self.class_names, self.labels)

    @functools.cached_property
    def fingerprint(self) -> str:
        """The number of files and a hash of their names, classes and captions: the same for a folder and its zip.

        It does not depend on the order of the classes: in it, they are numbered by code points.
        """
        labels, names = self.labels, self.class_names
        if labels is not None and names is not None:
            rank = {name: i for i, name in enumerate(sorted(names))}
            labels, names = [rank[names[label]] for label in labels], tuple(rank)
        content = json.dumps([self.names, labels, self.captions, names])
        return f"{len(self)} {self.noun}, {hashlib.sha256(content.encode()).hexdigest()[:16]}"

    def __len__(self) -> int:
        return len(self.names)

    def described(self, index: int) -> Example:
        """The example at index without the file's content: its name, and its label and caption where there are any."""
        example: Example = {"name": f"{self.files.path}/{self.root}{self.names[index]}"}
        if self.labels is not None:
            example["label"] = self.labels[index]
        if self.captions is not None:
            example["caption"] = self.captions[index]
        return example

    def read(self, index: int) -> bytes:
        """The file at index; raises UserError that names it if it can't be read."""
        return self.files.read(self.root + self.names[index])

    def read_head(self, index: int, most: int) -> bytes:
        """The first `most` bytes of the file at index, or all of it; raises UserError if it can't be read."""
        return self.files.read(self.root + self.names[index], most)

    @classmethod
    def has(cls, name: str) -> bool:
        """Whether a file called name is of the kind."""
        return name.lower().endswith(cls.suffixes)


T = TypeVar("T", bound=LabelledFiles)


def labelled_files(
    kind: type[T], path: str, split: str = "train", *, caption: str = "text", needs: Collection[str] = ()
) -> T:
    """The files of a kind under path, a folder or a zip that is read without unpacking.

    A folder with no file of the kind and one sub-folder is entered; of sub-folders that are all named like splits, the
    one named split. There, metadata.jsonl lists the files if it exists: an object a line with "file_name" and
    optionally the column caption, the caption, and "label", a number or a name (the layout of Hugging Face's
    ImageFolder and AudioFolder). Otherwise the files are taken in the order of their names; each sub-folder is a class,
    numbered in natural order, and files in no sub-folder have no labels. Hidden files, files of another suffix, and
    those that operating systems add are left out.

    With "caption" in needs, captions are read from a metadata.csv of the same columns, or from a .txt beside each
    file, where no metadata.jsonl has them; with "label", labels from a metadata.csv where there are no class folders,
    and loose files have the name of the folder that was entered last as their class. Raises UserError where the folder
    has none of these layouts, or more than one.
    """
    files = open_files(path, kind.noun)
    everything = files.names()
    tables = (metadata.JSONL, metadata.CSV) if "caption" in needs else (metadata.JSONL,)
    found, names = _open(kind, files, everything, split, caption, tables)
    if "label" in needs and found.labels is None and metadata.CSV in names:
        found, names = _open(kind, files, everything, split, caption, (metadata.JSONL, metadata.CSV))
    if "caption" in needs and found.captions is None:
        found = _captioned(found, names, caption)
    entered = found.root.rstrip("/").rpartition("/")[2]
    if "label" in needs and found.labels is None and entered and entered not in SPLITS:
        found = dataclasses.replace(found, labels=[0] * len(found), class_names=(entered,))
    return found


def _open(
    kind: type[T], files: Files, everything: list[str], split: str, caption: str, tables: Sequence[str]
) -> tuple[T, list[str]]:
    """(the files of the kind, listed by the first of tables that is there, all names in their folder)."""
    root, names = _enter(kind, files.path, everything, split, tables)
    where = f"{files.path}/{root}".rstrip("/")
    found = [name for name in names if kind.has(name)]
    for file in tables:
        if file in names:
            return _from_table(kind, files, root, file, names, caption), names
    if not found:
        raise UserError(f"{where} holds no {kind.noun}, files that end in {', '.join(kind.suffixes)}; check the path")
    loose = [name for name in found if "/" not in name]
    if len(loose) == len(found):
        return kind(files, root, found), names
    if loose:
        raise UserError(
            f"{where} holds both loose {kind.noun}, such as {loose[0]}, and folders of {kind.noun}; keep one kind"
        )
    classes = [_top(name) for name in found]
    if empty := {_top(name) for name in names if "/" in name} - set(classes):
        raise UserError(f"the class folder {where}/{min(empty)} holds no {kind.noun}; add some or remove it")
    labels, class_names = _numbered(classes)
    return kind(files, root, found, labels, class_names=class_names), names


def _enter(
    kind: type[LabelledFiles], path: str, names: list[str], split: str, tables: Sequence[str]
) -> tuple[str, list[str]]:
    """(the folder of the split, ending in / unless it is the top, the names in it, relative to it)."""
    root, chosen = "", False
    while not set(tables) & set(names) and not any("/" not in name and kind.has(name) for name in names):
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


def _from_table(kind: type[T], files: Files, root: str, file: str, names: list[str], caption: str) -> T:
    table = metadata.read_table(files.read(root + file), f"{files.path}/{root}{file}", names, caption, kind.noun)
    listed = set(table.names)
    left_out = [name for name in names if kind.has(name) and name not in listed]
    labels, class_names = table.labels, None
    if labels is not None and isinstance(labels[0], str):
        labels, class_names = _numbered(labels)
    return kind(files, root, table.names, labels, table.captions, class_names, left_out)


def _captioned(folder: T, names: list[str], caption: str) -> T:
    """The files with a .txt beside them, whose texts are the captions; raises UserError where there is no .txt."""
    where = f"{folder.files.path}/{folder.root}"
    for file in (metadata.JSONL, metadata.CSV):
        if file in names:
            content = folder.files.read(folder.root + file)
            table = metadata.read_table(content, where + file, names, caption, folder.noun)
            raise UserError(
                f"{where}{file} has no column {caption!r} of captions; it has {', '.join(table.columns)}: name one "
                "with data.caption"
            )
    texts = {name for name in names if name.endswith(".txt")}
    has = [i for i, name in enumerate(folder.names) if metadata.text_beside(name) in texts]
    if not has:
        found = metadata.found_instead(names)
        raise UserError(
            f"{where.rstrip('/')} has no captions: no {metadata.JSONL} or {metadata.CSV} with the columns file_name "
            f"and {caption}, and no .txt file beside any of the {folder.noun}"
            + (f"; {', '.join(found[:5])} is not read" if found else "")
            + "; write one of these"
        )
    paths = [metadata.text_beside(folder.names[i]) for i in has]
    captions = [decode_text(folder.files.read(folder.root + path), where + path).strip() for path in paths]
    labels = None if folder.labels is None else [folder.labels[i] for i in has]
    without = [name for name in folder.names if metadata.text_beside(name) not in texts]
    return dataclasses.replace(
        folder, names=[folder.names[i] for i in has], labels=labels, captions=captions, left_out=without
    )


def _numbered(classes: Sequence[str]) -> tuple[list[int], tuple[str, ...]]:
    """(the label of each example, the names of the classes in the order of their labels)."""
    names = natural_order(classes)
    number = {name: i for i, name in enumerate(names)}
    return [number[name] for name in classes], names


def _top(name: str) -> str:
    return name.split("/", 1)[0]
