"""Snapshots of profiles of the parameters' average, and averages made of them: section 3.2 of arXiv:2312.02696."""

import contextlib
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from diffusion_jax.errors import UserError
from diffusion_jax.runs.workdir.paths import Workdir
from diffusion_jax.train import ema
from diffusion_jax.train.arrays import replicated_like
from diffusion_jax.train.checkpoint import Checkpoints
from diffusion_jax.train.state import Params, TrainState

WITHIN = 0.05
"""The greatest error of a reconstructed profile, relative to its norm. The error of parameters is far smaller."""


def writable(workdir: Workdir, config: ConfigDict) -> Checkpoints | None:
    """The snapshots of a run, all of which are kept; None for a run without profiles."""
    if not config.ema.profiles:
        return None
    return Checkpoints(workdir.snapshots, keep=None)


def check_profiles(config: ConfigDict) -> None:
    """Raises UserError for lengths of profiles that do not exist, and for profiles that are never saved."""
    options = config.ema
    for sigma in options.profiles:
        ema.gamma_of(sigma)
    if len(set(options.profiles)) < len(options.profiles):
        raise UserError(f"ema.profiles={options.profiles} names a length twice")
    if bool(options.profiles) != (options.every > 0):
        raise UserError(
            f"ema.profiles={options.profiles} are saved every ema.every={options.every} steps; give both, or neither"
        )


def save(snapshots: Checkpoints, state: TrainState, config: str) -> None:
    """Starts to save the profiles of a state; config is JSON text."""
    alone = TrainState(state.step, params=(), ema=(), opt_state=(), history=(), profiles=state.profiles)
    snapshots.save(alone, position=None, config=config)


def reconstruct(root: Path, config: ConfigDict, abstract: Params, mesh: Mesh, sigma: float, step: int) -> Params:
    """The average of length sigma (sigma_rel) after `step` steps, on every device, as a weighted sum of snapshots.

    The weights are least squares, and the sum is in float64. Raises UserError where the workdir has no snapshots, and
    where they do not determine that average.
    """
    gamma = ema.gamma_of(sigma)
    workdir = Workdir(root)
    if not config.ema.profiles or not workdir.snapshots.is_dir():
        raise UserError(
            f"--ema={sigma:g} takes snapshots, and {root} has none; train with ema.profiles=(0.05,0.1) and ema.every, "
            "or give --ema=true"
        )
    with contextlib.closing(Checkpoints(workdir.snapshots, read_only=True)) as snapshots:
        steps = [each for each in snapshots.steps() if each <= step]
        if not steps:
            raise UserError(f"--ema={sigma:g}: {workdir.snapshots} has no snapshot of the first {step} steps")
        gammas = [ema.gamma_of(each) for each in config.ema.profiles]
        ends = np.repeat(steps, len(gammas))
        weights, error = ema.reconstruction(np.tile(gammas, len(steps)), ends, gamma, step)
        if error > WITHIN:
            raise UserError(
                f"--ema={sigma:g} at step {step} is told by the snapshots of steps {_range(steps)} to within "
                f"{error:.0%} alone, {WITHIN:.0%} at most is needed: lengths near {_lengths(config)} are told "
                "best, at a step that has a snapshot; or train with a smaller ema.every"
            )
        total: Params = None
        like = replicated_like((abstract,) * len(gammas), mesh)
        for i, each in enumerate(steps):
            profiles = snapshots.restore_tree("profiles", like, each)
            for k, profile in enumerate(profiles):
                total = _plus(total, float(weights[i * len(gammas) + k]), profile)
    placed = replicated_like(abstract, mesh)
    return jax.tree.map(lambda a, to: jax.device_put(a.astype(to.dtype), to.sharding), total, placed)


def _plus(total: Params, weight: float, profile: Params) -> Params:
    """total + weight * profile on the host, in float64. A total of None counts as 0."""
    scaled = jax.tree.map(lambda a: weight * np.asarray(a, np.float64), profile)
    return scaled if total is None else jax.tree.map(np.add, total, scaled)


def _lengths(config: ConfigDict) -> str:
    return " and ".join(f"{sigma:g}" for sigma in config.ema.profiles)


def _range(steps: list[int]) -> str:
    return ", ".join(map(str, steps)) if len(steps) < 8 else f"{steps[0]}, {steps[1]} to {steps[-1]}"
