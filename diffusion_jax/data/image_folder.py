"""A folder of images, or a zip of one, with labels from its sub-folders, or what files beside the images say."""

import dataclasses
from collections.abc import Collection
from typing import ClassVar

from diffusion_jax.data.example import Example
from diffusion_jax.data.labelled_files import SPLITS as SPLITS
from diffusion_jax.data.labelled_files import LabelledFiles, labelled_files
from diffusion_jax.data.transforms import SUFFIXES


@dataclasses.dataclass(frozen=True)
class ImageFolder(LabelledFiles):
    """Images in one folder of files; labels and captions, where there are any, go with names."""

    suffixes: ClassVar[tuple[str, ...]] = tuple(SUFFIXES)
    noun: ClassVar[str] = "images"

    def __getitem__(self, index: int) -> Example:
        example = self.told(index)
        example["image"] = self.read(index)
        return example


def image_folder(path: str, split: str = "train", *, caption: str = "text", needs: Collection[str] = ()) -> ImageFolder:
    """The images under path, a folder or a zip, as `labelled_files` finds them."""
    return labelled_files(ImageFolder, path, split, caption=caption, needs=needs)
