"""The arrays of an import, by part: "unet", "autoencoder", "text" and, of XL, "text_2".

An array is read when it is looked up.
"""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

import numpy as np

from diffusion_jax.interop import diffusers_weights
from diffusion_jax.interop.diffusers_pipeline import Pipeline
from diffusion_jax.interop.original_names import Renamed, Source

Arrays = Mapping[str, np.ndarray]

MODEL, TEXT = "diffusion_pytorch_model", "model"
"""What the names of weights begin with: diffusers' and transformers'."""


class ImportedWeights(Protocol):
    """The arrays of all parts, and their files."""

    variant: str

    def opened(self, part: str) -> contextlib.AbstractContextManager[Arrays]:
        """The part's arrays, under diffusers' names or transformers'."""

    def files(self) -> list[Path]:
        """Every file."""

    def single(self, part: str) -> Path | None:
        """The file with all arrays of this part, and no others, under these names; None where there is none."""


def weight_folders(found: Pipeline) -> dict[str, tuple[Path, str]]:
    """{part: (its folder, what the names of its weights begin with)}."""
    folders = {
        "unet": (found.unet_folder, MODEL),
        "autoencoder": (found.autoencoder_folder, MODEL),
        "text": (found.text_folder, TEXT),
        "text_2": (found.second_text.folder if found.second_text else None, TEXT),
    }
    return {part: (folder, stem) for part, (folder, stem) in folders.items() if folder is not None}


class FolderWeights:
    """The arrays in the folder of a pipeline; all of its files exist."""

    def __init__(self, found: Pipeline, variant: str):
        self.variant = variant
        self.parts = {
            part: diffusers_weights.weight_files(folder, stem, variant)
            for part, (folder, stem) in weight_folders(found).items()
        }

    def opened(self, part: str) -> contextlib.AbstractContextManager[Arrays]:
        """As `ImportedWeights`."""
        return diffusers_weights.opened(self.parts[part])

    def files(self) -> list[Path]:
        """As `ImportedWeights`."""
        return [file for part in self.parts.values() for file in _paths(part)]

    def single(self, part: str) -> Path | None:
        """As `ImportedWeights`; None where the part is in shards."""
        paths = _paths(self.parts[part])
        return paths[0] if len(paths) == 1 else None


class FileWeights:
    """The arrays in one file of another layout. sources: {part: where each of its arrays is in the file}."""

    variant = ""

    def __init__(self, file: Path, sources: Mapping[str, Mapping[str, Source]]):
        self.file, self.sources = file, sources

    @contextlib.contextmanager
    def opened(self, part: str) -> Iterator[Arrays]:
        """As `ImportedWeights`."""
        with diffusers_weights.opened([self.file]) as stored:
            yield Renamed(stored, self.sources[part])

    def files(self) -> list[Path]:
        """As `ImportedWeights`."""
        return [self.file]

    def single(self, part: str) -> Path | None:
        """As `ImportedWeights`: there is none."""
        return None


def _paths(part: Mapping[str, Path] | list[Path]) -> list[Path]:
    return sorted(set(part.values() if isinstance(part, Mapping) else part))
