"""A folder or zip of images, with labels from sub-folders, or labels and captions from files beside the images."""

import dataclasses
from collections.abc import Collection
from typing import ClassVar

from diffusion_jax.data.example import Example
from diffusion_jax.data.labelled_files import SPLITS as SPLITS
from diffusion_jax.data.labelled_files import LabelledFiles, labelled_files
from diffusion_jax.data.transforms import SUFFIXES


@dataclasses.dataclass(frozen=True)
class ImageFolder(LabelledFiles):
    """Images in one folder, with labels and captions where there are any."""

    suffixes: ClassVar[tuple[str, ...]] = tuple(SUFFIXES)
    noun: ClassVar[str] = "images"

    def __getitem__(self, index: int) -> Example:
        example = self.described(index)
        example["image"] = self.read(index)
        return example


def image_folder(path: str, split: str = "train", *, caption: str = "text", needs: Collection[str] = ()) -> ImageFolder:
    """The images under path, a folder or a zip, as `labelled_files` finds them."""
    return labelled_files(ImageFolder, path, split, caption=caption, needs=needs)
