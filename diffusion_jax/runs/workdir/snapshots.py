"""Snapshots of profiles of the parameters' average, and the averages that they give: arXiv:2312.02696, section 3.2."""

import contextlib
from pathlib import Path
from typing import Any

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
"""The greatest error of a profile that is reconstructed, of its norm; the parameters' is far below."""


def writable(workdir: Workdir, config: ConfigDict) -> Checkpoints | None:
    """Where a run saves its snapshots, all of which are kept; None where it keeps no profiles."""
    if not config.ema.profiles:
        return None
    return Checkpoints(workdir.snapshots, keep=None)


def check(config: ConfigDict) -> None:
    """Raises UserError for profiles that there are not, or that are never saved."""
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
    """Starts saving the profiles of state; config is JSON."""
    alone = TrainState(state.step, params=(), ema=(), opt_state=(), history=(), profiles=state.profiles)
    snapshots.save(alone, position=None, config=config)


def reconstruct(root: Path, config: ConfigDict, abstract: Params, mesh: Mesh, sigma: float, step: int) -> Params:
    """The average of length sigma_rel after step steps, on every device: a least-squares sum of snapshots, float64.

    Raises UserError where the workdir has no snapshots, or these are too few to tell that average.
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
        kept = [ema.gamma_of(each) for each in config.ema.profiles]
        ends = np.repeat(steps, len(kept))
        weights, error = ema.reconstruction(np.tile(kept, len(steps)), ends, gamma, step)
        if error > WITHIN:
            raise UserError(
                f"--ema={sigma:g} at step {step} is told by the snapshots of steps {_range(steps)} to within "
                f"{error:.0%} alone, {WITHIN:.0%} at most is needed: lengths near {_lengths(config)} are told "
                "best, at a step that has a snapshot; or train with a smaller ema.every"
            )
        total: Any = None
        like = replicated_like((abstract,) * len(kept), mesh)
        for i, each in enumerate(steps):
            profiles = snapshots.restore_tree("profiles", like, each)
            for k, profile in enumerate(profiles):
                total = _plus(total, float(weights[i * len(kept) + k]), profile)
    placed = replicated_like(abstract, mesh)
    return jax.tree.map(lambda a, to: jax.device_put(a.astype(to.dtype), to.sharding), total, placed)


def _plus(total: Any, weight: float, profile: Params) -> Any:
    """Total, None for 0, + weight profile, on the host."""
    scaled = jax.tree.map(lambda a: weight * np.asarray(a, np.float64), profile)
    return scaled if total is None else jax.tree.map(np.add, total, scaled)


def _lengths(config: ConfigDict) -> str:
    return " and ".join(f"{sigma:g}" for sigma in config.ema.profiles)


def _range(steps: list[int]) -> str:
    return ", ".join(map(str, steps)) if len(steps) < 8 else f"{steps[0]}, {steps[1]} to {steps[-1]}"
