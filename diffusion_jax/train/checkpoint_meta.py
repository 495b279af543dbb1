"""What a checkpoint holds: the trees of a state by name, and what is saved with them."""

from collections.abc import Mapping
from typing import TypedDict

import chex
import jax

from diffusion_jax.train.arrays import Listing, listing
from diffusion_jax.train.provenance import source_commit, versions
from diffusion_jax.train.state import Position, TrainState

TREES = {field: {"history": "times"}.get(field, field) for field in TrainState._fields if field != "step"}
"""{field of the state: its name in a checkpoint}, which is that of version 0.1."""

Trees = Mapping[str, chex.ArrayTree]
"""{name in a checkpoint: tree of arrays} of a state."""


def trees_of(state: TrainState) -> Trees:
    """The trees of a state that are saved: all that have arrays."""
    trees = {name: getattr(state, field) for field, name in TREES.items()}
    return {name: tree for name, tree in trees.items() if jax.tree.leaves(tree)}


class Meta(TypedDict):
    """What a checkpoint holds beside its arrays, as JSON."""

    step: int
    position: Position
    config: str  # JSON
    measured: dict[str, float]  # numbers measured with the averaged parameters, such as an autoencoder's latent_std
    versions: dict[str, str]
    commit: str | None
    arrays: dict[str, Listing]  # by tree


def meta_of(
    trees: Mapping[str, chex.ArrayTree], step: int, position: Position, config: str, measured: Mapping[str, float]
) -> Meta:
    """What is saved with the trees {name: arrays} of a state after `step` steps, by this code."""
    return {
        "step": step,
        "position": position,
        "config": config,
        "measured": dict(measured),
        "versions": versions(),
        "commit": source_commit(),
        "arrays": {name: listing(tree) for name, tree in trees.items()},
    }
