"""Checks before a run starts. Each gives one line with the verdict ok or warning."""

import math
import shutil
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from diffusion_jax import experiment
from diffusion_jax.data.prepared import is_prepared
from diffusion_jax.errors import UserError
from diffusion_jax.experiment import plan as building
from diffusion_jax.models.conditions import BatchEntry
from diffusion_jax.runs.sample import examples
from diffusion_jax.train import memory
from diffusion_jax.train.state import Params, TrainState

_KEPT_A_VALUE = 2**14  # bytes for each value of x, more than networks keep: less than it needs no look at the network

Check = dict[str, str]
"""{"check", "verdict": ok or warning, "says"}."""


def checks(config: ConfigDict, model: experiment.Model | None, mesh: Mesh, checkpoint: int) -> list[Check]:
    """The checks of batch, guidance, the current folder's disk and, where they are on this machine, the data."""
    share = mesh.shape["data"] * mesh.shape["fsdp"] * config.train.accumulate
    found = [_check("batch", True, f"{config.train.batch_size} is {config.train.batch_size // share} a chip at once")]
    if model is not None and config.sample.guidance != 1:
        found.append(_guidance(config, model))
    kept = config.checkpoint.keep + 1
    free = shutil.disk_usage(Path.cwd()).free
    says = f"{free / 2**30:.1f} GiB free here; {kept} checkpoints at once take {kept * checkpoint / 2**30:.2f} GiB"
    found.append(_check("disk", free > kept * checkpoint, says))
    return found + _data(config, model)


def check_memory(config: ConfigDict, model: experiment.Model | None, state: TrainState, mesh: Mesh) -> None:
    """Raises UserError where a lower bound of a step's memory exceeds the free memory; nothing is allocated.

    state are the ShapeDtypeStructs of the training state with their layout. Counted are the state, the gradients, the
    batch and, of a diffusion model, half of what its network keeps for the gradients.
    """
    free = memory.a_device(mesh)
    if free is None:
        return
    share = mesh.shape["data"] * mesh.shape["fsdp"]
    held = _bytes_a_device(state)
    batch = sum(math.prod(a.shape) * a.dtype.itemsize for a in building.abstract_batch(config, model).values())
    batch = batch * config.train.steps_per_dispatch // share
    needs = {"the state": held, "gradients": _bytes_a_device(state.params), "the batch": batch}
    examples = -(-config.train.batch_size // (share * config.train.accumulate))
    if model is not None and held + examples * math.prod(model.x_shape) * _KEPT_A_VALUE > free:
        needs["what the network keeps for its gradients"] = examples * building.saved_bytes(model) // 2
    if sum(needs.values()) > free:
        parts = ", ".join(f"{name} {size / 2**30:,.1f}" for name, size in needs.items())
        raise UserError(
            f"a step with train.batch_size={config.train.batch_size} takes at least {sum(needs.values()) / 2**30:,.1f} "
            f"GiB a device ({parts}), and {free / 2**30:,.1f} GiB are free; make the batch or the model smaller, raise "
            "train.accumulate, or take more devices"
        )


def _bytes_a_device(tree: TrainState | Params) -> int:
    return sum(math.prod(a.sharding.shard_shape(a.shape)) * a.dtype.itemsize for a in jax.tree.leaves(tree))


def _guidance(config: ConfigDict, model: experiment.Model) -> Check:
    own = [condition.dropout for condition in model.conditions if condition.dropout is not None]
    left_out = config.condition_dropout if model.dropped_together else max(own, default=0.0)
    says = f"guidance {config.sample.guidance:g}; conditions are left out of {left_out:.0%} of the training examples"
    return _check("guidance", left_out > 0, says if left_out else f"{says}: the model never learns what it leads from")


def _data(config: ConfigDict, model: experiment.Model | None) -> list[Check]:
    """The checks of one batch, of at most 256 examples; nothing is downloaded or prepared for it."""
    n = min(config.train.batch_size, 256)
    if not is_prepared(config.data.source, config.data.data_dir or None):
        return [_check("data", False, f"not read: {config.data.source} is not prepared on this machine")]
    try:
        source = experiment.source(config)
        tokenizer = None if model is None else experiment.tokenizer(model, source)
        batch = examples.first_batch(config, source, model, tokenizer, n)
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
    if name == "x" and high - low < 0.1:
        return _check(name, False, f"{says}: the examples are all but the same everywhere")
    return _check(name, True, says)


def _check(check: str, fine: bool, says: str) -> Check:
    return {"check": check, "verdict": "ok" if fine else "warning", "says": says}
