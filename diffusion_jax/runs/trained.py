"""A trained model from a workdir, and whom to sample: what every command that draws from a checkpoint shares."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jax.sharding import Mesh

from diffusion_jax import build
from diffusion_jax.errors import UserError
from diffusion_jax.runs.workdir import Workdir
from diffusion_jax.train import sharding
from diffusion_jax.train.checkpoint import Checkpoints, whole
from diffusion_jax.train.state import Params

NULL_LABEL = "none"


@dataclasses.dataclass(frozen=True)
class Trained:
    """A model with the parameters of one checkpoint, on every device of this machine."""

    model: build.Model
    how: build.Sampling
    mesh: Mesh
    params: Params
    step: int
    weights: str  # ema or params

    @property
    def share(self) -> int:
        """What the size of a batch of samples must be a multiple of."""
        return self.mesh.shape["data"] * self.mesh.shape["fsdp"]


def restore(root: Path, *, step: int | None, average: bool, overrides: Mapping[str, object]) -> Trained:
    """The model of the workdir root at step (None: the newest), averaged or not.

    overrides replace fields of the config's `Sampling` where not None. Raises UserError where there is no such
    workdir or checkpoint, and before reading arrays where the model cannot be sampled like that.
    """
    workdir = Workdir(root)
    config = workdir.read_config()
    mesh = sharding.mesh()
    model = build.model(config)
    chosen = {name: value for name, value in overrides.items() if value is not None}
    how = dataclasses.replace(build.sampling(config), **chosen)  # type: ignore[arg-type]
    build.sample_program(model, how, mesh)  # raises for what cannot be sampled
    checkpoints = Checkpoints(workdir.checkpoints, read_only=True)
    step = _choose(checkpoints, step)
    weights = "ema" if average else "params"
    abstract = getattr(build.abstract_state(config, model), weights)
    params = checkpoints.restore_tree(weights, whole(abstract, mesh), step)
    return Trained(model, how, mesh, params, step, weights)


def seeds_from(seed: int, num: int) -> np.ndarray:
    """int32 [num]: seed, seed + 1, ..."""
    if num < 1:
        raise UserError(f"--num is at least 1; got {num}")
    if not 0 <= seed <= 2**31 - num:
        raise UserError(f"--seed is at least 0 and --seed + --num at most 2^31; got {seed}")
    return np.arange(seed, seed + num, dtype=np.int32)


def labels_for(seeds: np.ndarray, labels: Sequence[str], num_classes: int) -> np.ndarray:
    """int32 [N] in [0, num_classes], num_classes being the null class: labels in turn, or drawn from the seeds."""
    if not labels:
        # The class of a sample depends on its seed alone, as everything else about it.
        draw = [np.random.default_rng(int(seed)).integers(max(num_classes, 1)) for seed in seeds]
        return np.asarray(draw, np.int32)
    if not num_classes:
        raise UserError("--label needs a class-conditional model; this one has no classes")
    numbers = []
    for label in labels:
        number = num_classes if label == NULL_LABEL else int(label) if label.isdecimal() else -1
        if not 0 <= number < num_classes and label != NULL_LABEL:
            raise UserError(f"--label is a class from 0 to {num_classes - 1}, or {NULL_LABEL}; got {label}")
        numbers.append(number)
    return np.resize(np.asarray(numbers, np.int32), len(seeds))


def _choose(checkpoints: Checkpoints, step: int | None) -> int:
    steps = checkpoints.steps()
    if not steps:
        raise UserError(f"no checkpoint in {checkpoints.directory}; train first, or check --workdir")
    if step is not None and step not in steps:
        raise UserError(
            f"no checkpoint of step {step} in {checkpoints.directory}; there are {', '.join(map(str, steps))}"
        )
    return steps[-1] if step is None else step
