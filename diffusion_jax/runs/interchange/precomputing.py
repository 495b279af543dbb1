"""`diffusion-jax precompute`: latents, and features of captions, computed once instead of at every step."""

import functools
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
import numpy as np
from jax.stages import Wrapped
from ml_collections import ConfigDict

from diffusion_jax import experiment
from diffusion_jax.config import check
from diffusion_jax.data.decoded import Decoded
from diffusion_jax.data.precomputed import write_precomputed
from diffusion_jax.data.readers import Rows
from diffusion_jax.data.sources import Source
from diffusion_jax.data.tokens import Tokenizer
from diffusion_jax.errors import UserError
from diffusion_jax.report.progress import progress
from diffusion_jax.runs.workdir import pretrained
from diffusion_jax.runs.workdir.output_folder import OutputFolder
from diffusion_jax.runs.workdir.paths import Workdir
from diffusion_jax.train.interruptible import interruptible
from diffusion_jax.train.state import Params

DTYPES = ("float32", "float16")


def precompute(config: ConfigDict, out: Path, *, batch: int, dtype: str) -> None:
    """Writes means and log variances of latents, and features of captions, of config's data to the folder out.

    dtype float32 changes nothing of training, float16 takes half of the disk. A part that is trained with the model is
    not precomputed. Raises UserError, before anything is written, for options or a config that do not fit.
    """
    config = experiment.resolved(check(config))
    if batch < 1 or dtype not in DTYPES:
        raise UserError(f"--batch is at least 1, --dtype {' or '.join(DTYPES)}; got {batch} and {dtype}")
    if os.path.lexists(out):  # also a symbolic link to nowhere, which no folder could be renamed to
        raise UserError(f"{out} exists already; give --out a new folder")
    OutputFolder(out).check()
    if jax.process_count() > 1:
        raise UserError("precompute runs in one process; start it on one host")
    model = pretrained.model(config, pretrained.origin(config, Workdir(out)))
    parts = experiment.precompute.parts(model, one_size=not experiment.modality(config).in_buckets)
    source = experiment.opened(config)  # labels are not precomputed
    tokenizer = experiment.tokenizer(model, source) if "text" in parts else None
    latents = "autoencoder" in parts
    flip = config.data.flip and latents
    write_precomputed(
        out,
        _records(config, model, source, tokenizer, latents=latents, flip=flip, batch=batch, dtype=np.dtype(dtype)),
        fingerprint=source.fingerprint,
        count=len(source),
        flip=flip,
        weights={
            part: made
            for part, made in experiment.precompute.made_by(model).items()
            if part in parts or ("text" in parts and part not in model.pretrained)
        },
    )
    print(f"precomputed {len(source):,} examples: {out}; train with --config.data.precomputed={out}")


def _records(
    config: ConfigDict,
    model: experiment.Model,
    source: Source,
    tokenizer: Tokenizer | None,
    *,
    latents: bool,
    flip: bool,
    batch: int,
    dtype: np.dtype,
) -> Iterator[dict[str, np.ndarray]]:
    """The arrays of every example in the source's order, then of their mirror images."""
    weights = jax.device_put(model.pretrained)
    program = experiment.precompute_program(model)
    each = [condition.reader(tokenizer) for condition in model.conditions if condition.features]
    readers = [reader for reader in each if reader is not None]
    shape, kind = experiment.shape(config), experiment.modality(config)
    decoded = Decoded(source, kind, shape, readers, arrays=latents)
    total = len(source) * (2 if flip else 1)
    with progress(total, units_per_step=1) as bar:
        for start in range(0, total, batch):
            places = np.arange(start, start + batch).clip(max=total - 1)
            examples = decoded.read(places % len(source))
            told = {}
            if latents:
                arrays = kind.mirror(examples.arrays, places >= len(source)) if flip else examples.arrays
                told["x"] = kind.to_model(arrays)
            rows = Rows(config.seed, start, batch, shape[:-1], None)
            for reader, values in zip(readers, examples.values, strict=True):
                told |= reader.entries(values, rows)
            found = interruptible(functools.partial(_computed, program, weights, told))
            for row in range(min(batch, total - start)):
                yield {
                    name: array[row] if array.dtype == bool else array[row].astype(dtype)
                    for name, array in found.items()
                }
            bar.update(min(start + batch, total))


def _computed(program: Wrapped, weights: Mapping[str, Params], told: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return jax.device_get(program(weights, told))
