"""What can be known to go wrong before a run is started: each check a line, ok or a warning."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from diffusion_jax import build
from diffusion_jax.build import plan as building
from diffusion_jax.build.conditions import BatchEntry
from diffusion_jax.data.at_hand import at_hand
from diffusion_jax.errors import UserError
from diffusion_jax.runs import preview

Check = dict[str, str]
"""{"check", "verdict": ok or warning, "says"}."""


def checks(config: ConfigDict, model: build.Model | None, mesh: Mesh, checkpoint: int) -> list[Check]:
    """Those of the batch and the mesh, guidance, the disk of the current folder and, where it is at hand, the data."""
    share = mesh.shape["data"] * mesh.shape["fsdp"] * config.train.accumulate
    found = [_check("batch", True, f"{config.train.batch_size} is {config.train.batch_size // share} a chip at once")]
    if model is not None and config.sample.guidance != 1:
        found.append(_guidance(config, model))
    kept = config.checkpoint.keep + 1
    free = shutil.disk_usage(Path.cwd()).free
    says = f"{free / 2**30:.1f} GiB free here; {kept} checkpoints at once take {kept * checkpoint / 2**30:.2f} GiB"
    found.append(_check("disk", free > kept * checkpoint, says))
    return found + _data(config, model)


def _guidance(config: ConfigDict, model: build.Model) -> Check:
    own = [condition.dropout for condition in model.conditions if condition.dropout is not None]
    left_out = config.condition_dropout if model.together else max(own, default=0.0)
    says = f"guidance {config.sample.guidance:g}; conditions are left out of {left_out:.0%} of the training examples"
    return _check("guidance", left_out > 0, says if left_out else f"{says}: the model never learns what it leads from")


def _data(config: ConfigDict, model: build.Model | None) -> list[Check]:
    """Of one batch, of at most 256 examples; nothing is downloaded or made for it."""
    n = min(config.train.batch_size, 256)
    if not at_hand(config.data.source, config.data.data_dir or None):
        return [_check("data", False, f"not read: {config.data.source} is not prepared on this machine")]
    try:
        source = build.source(config)
        tokenizer = None if model is None else build.tokenizer(model, source)
        batch = preview.first_batch(config, source, model, tokenizer, n)
    except (UserError, OSError, ImportError) as error:
        return [_check("data", False, f"not read: {error}")]
    found = [_check("data", True, f"{len(source):,} examples in {config.data.source}")]
    for name, wanted in building.batch_entries(config, model, precomputed=False).items():
        if name not in batch:
            found.append(_check(name, False, f"the data has none; the step reads {[n, *wanted.shape]}"))
            continue
        found.append(_entry(name, batch[name], n, wanted))
    return found


def _entry(name: str, a: np.ndarray, n: int, wanted: BatchEntry) -> Check:
    low, high = float(a.min()), float(a.max())
    says = f"{list(a.shape[1:])} {a.dtype}, from {low:g} to {high:g}"
    if a.shape != (n, *wanted.shape) or a.dtype != wanted.dtype:
        return _check(name, False, f"{says}; the step reads {list(wanted.shape)} {np.dtype(wanted.dtype)}")
    if not (np.isfinite(a).all() and wanted.low <= low and high <= wanted.high):
        return _check(name, False, f"{says}; within {wanted.low:g} to {wanted.high:g} is expected")
    if name == "image" and high - low < 0.1:
        return _check(name, False, f"{says}: the images are all but blank")
    return _check(name, True, says)


def _check(check: str, fine: Any, says: str) -> Check:
    return {"check": check, "verdict": "ok" if fine else "warning", "says": says}
