"""A folder or zip of sounds, with labels and captions as in a folder of images."""

import collections
import dataclasses
import os
from collections.abc import Collection
from typing import ClassVar

from diffusion_jax.data import sound
from diffusion_jax.data.classes import shown
from diffusion_jax.data.example import Example
from diffusion_jax.data.labelled_files import LabelledFiles, labelled_files
from diffusion_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class AudioFolder(LabelledFiles):
    """WAV, FLAC and OGG files in one folder, which become clips at `rate` Hz."""

    suffixes: ClassVar[tuple[str, ...]] = sound.SUFFIXES
    noun: ClassVar[str] = "sounds"

    rate: int = 0

    @property
    def modality(self) -> str:
        """The spec of clips at the rate."""
        return f"audio(rate={self.rate})"

    def __getitem__(self, index: int) -> Example:
        example = self.described(index)
        example["audio"] = self.read(index)
        return example


def audio_folder(spec: str, split: str = "train", *, caption: str = "text", needs: Collection[str] = ()) -> AudioFolder:
    """The sounds under the path of "PATH" or "PATH@RATE", a folder or a zip, as `labelled_files` finds them.

    They are resampled to RATE in Hz. Without it the header of every file is read, and all must have one rate; files
    whose header cannot be read are skipped here, and are corrupt examples in training. Raises UserError that lists the
    rates where they differ, and as `labelled_files` does.
    """
    path, rate = path_and_rate(spec)
    found = labelled_files(AudioFolder, path, split, caption=caption, needs=needs)
    if rate is not None and rate < 1:
        raise UserError(f"the rate in 'audio:{spec}' is at least 1 Hz; got {rate}")
    return dataclasses.replace(found, rate=_common_rate(found, path) if rate is None else rate)


def path_and_rate(spec: str) -> tuple[str, int | None]:
    """(PATH, RATE in Hz) of "PATH@RATE"; the rate is None in "PATH", and where a file has the whole name."""
    path, at, text = spec.rpartition("@")
    if not (at and text.isascii() and text.isdigit()) or os.path.exists(os.path.expanduser(spec)):
        return spec, None
    return path, int(text)


def _common_rate(folder: AudioFolder, path: str) -> int:
    rates: dict[int, list[str]] = collections.defaultdict(list)
    unreadable = []
    for index, name in enumerate(folder.names):
        try:
            rates[_header(folder, index).rate].append(name)
        except UserError as error:
            unreadable.append(str(error))
    if not rates:
        raise UserError(f"none of the {len(unreadable):,} sounds under {path} can be read: {unreadable[0]}")
    if len(rates) > 1:
        order = sorted(rates, key=lambda rate: -len(rates[rate]))
        listed = [f"{rate} Hz ({len(rates[rate]):,}, such as {rates[rate][0]})" for rate in order]
        raise UserError(
            f"the sounds under {path} have {len(rates)} rates: {shown(listed)}; write one for all of them, as in "
            f"audio:{path}@{order[0]}"
        )
    return next(iter(rates))


def _header(folder: AudioFolder, index: int) -> sound.SoundHeader:
    """The header of the file at index; of a zip the whole file is read."""
    name = folder.described(index)["name"]
    on_disk = os.path.isdir(folder.files.path)
    return sound.read_header(name if on_disk else folder.read(index), name)
