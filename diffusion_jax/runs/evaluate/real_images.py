"""Real images that a model is measured on or compared with: the same images for every batch size."""

import contextlib
import hashlib
from collections.abc import Iterator

import numpy as np
from ml_collections import ConfigDict

from diffusion_jax import experiment
from diffusion_jax.data.sources import Source
from diffusion_jax.data.tokens import Tokenizer
from diffusion_jax.errors import UserError
from diffusion_jax.modalities import Image
from diffusion_jax.report.progress import progress
from diffusion_jax.train.interruptible import Abandoned, read_interruptibly


def plain(config: ConfigDict, split: str | None, size: int) -> ConfigDict:
    """The config with data that are neither mirrored nor cached, of split (None: the config's), in batches of size."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.train.batch_size, config.data.flip, config.data.cache, config.data.workers = size, False, False, 0
        config.data.split = split or config.data.split
    return config


class Interrupted(Exception):
    """An evaluation was stopped after done of its num samples."""

    def __init__(self, done: int, num: int):
        super().__init__(f"{done:,} of {num:,} samples")


class RealImages:
    """The first num examples of a config's data, in the order of training; 0: all of them.

    With a model and its tokenizer, examples have the entries of the model's conditions.
    """

    def __init__(
        self, config: ConfigDict, num: int, model: experiment.Model | None = None, tokenizer: Tokenizer | None = None
    ):
        self.config, self.num, self.size = config, num, config.train.batch_size
        self.kind = experiment.modality(config)
        self._model, self._tokenizer = model, tokenizer
        self._source: Source | None = None
        self._pixels = ""

    @property
    def source(self) -> Source:
        """The data, opened at the first use. Raises UserError where it has fewer than num examples."""
        if self._source is None:
            if self._model is None:  # labels are not used
                self._source = experiment.opened(self.config)
            else:
                self._source = experiment.source(self.config, self._model.classes)
            self.num = self.num or len(self._source)
            if len(self._source) < self.num:
                raise UserError(
                    f"split {self.config.data.split} of {self.config.data.source} has {len(self._source):,} images, "
                    f"and --num is {self.num:,}; ask for fewer"
                )
        return self._source

    def batches(self, description: str = "") -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        """Yields (k, a batch of `size` examples): the first k are among the num, the others fill the batch.

        A description gives a progress bar its title; without one there is no bar. Raises Interrupted where a signal
        arrives while it waits for data.
        """
        digest = hashlib.sha256()
        stream = experiment.batches(self.config, self.source, self._model, self._tokenizer, split=False)
        reading = read_interruptibly(stream)
        with contextlib.closing(stream), progress(self.num, description=description, show=bool(description)) as bar:
            for start in range(0, self.num, self.size):
                take = min(self.size, self.num - start)
                try:
                    examples = next(reading)
                except Abandoned:
                    raise Interrupted(start, self.num) from None
                digest.update(np.ascontiguousarray(examples["x"][:take]).tobytes())
                with bar.doing(f"{'' if start else 'compiling, then '}{description}: {self.size} at once"):
                    yield take, examples  # the caller measures them meanwhile
                bar.update(start + take)
        self._pixels = digest.hexdigest()

    def record(self) -> dict[str, object]:
        """The data's fingerprint, split, number and SHA-256 of the images, after `batches` has read all of them."""
        return {
            "fingerprint": self.source.fingerprint,
            "split": self.config.data.split,
            "n": self.num,
            "pixels_sha256": self._pixels,
            "resize": "Pillow bicubic, antialiased, to cover; central crop" if isinstance(self.kind, Image) else "none",
        }
