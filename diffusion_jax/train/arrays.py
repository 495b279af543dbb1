"""The arrays of a tree as shapes with layouts, and as lists that are compared before a checkpoint is read."""

from typing import TypeVar

import chex
import jax
from jax.sharding import Mesh

from diffusion_jax.errors import UserError
from diffusion_jax.train.sharding import replicated

Tree = TypeVar("Tree")

Listing = dict[str, list[object]]
"""{path of an array: [shape as a list, dtype as text]}, as JSON keeps it."""


def abstract_like(tree: Tree, shardings: chex.ArrayTree) -> Tree:
    """The `ShapeDtypeStruct`s of a tree with these shardings: what `Checkpoints.restore` takes.

    tree has arrays or `ShapeDtypeStruct`s, shardings a `Sharding` for each of them.
    """
    return jax.tree.map(lambda a, sharding: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), tree, shardings)


def replicated_like(tree: Tree, mesh: Mesh) -> Tree:
    """`abstract_like` with every array whole on each device of the mesh: how a sampler holds its parameters."""
    return abstract_like(tree, jax.tree.map(lambda _: replicated(mesh), tree))


def listing(tree: chex.ArrayTree) -> Listing:
    """The path, shape and dtype of every array of a tree."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): [list(leaf.shape), str(leaf.dtype)]
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def check_same_arrays(checkpoint: str, saved: Listing, wanted: Listing) -> None:
    """Raises UserError that names the arrays which only one side has, or which differ in shape or dtype."""
    wrong = [f"{name} is not in the checkpoint" for name in sorted(set(wanted) - set(saved))]
    wrong += [f"{name} is only in the checkpoint" for name in sorted(set(saved) - set(wanted))]
    wrong += [
        f"{name} is {saved[name][1]}{saved[name][0]} in the checkpoint, {wanted[name][1]}{wanted[name][0]} here"
        for name in sorted(set(saved) & set(wanted))
        if saved[name] != wanted[name]
    ]
    if wrong:
        shown = "; ".join(wrong[:4]) + (f"; and {len(wrong) - 4} more" if len(wrong) > 4 else "")
        raise UserError(f"checkpoint {checkpoint} is of another network: {shown}")
