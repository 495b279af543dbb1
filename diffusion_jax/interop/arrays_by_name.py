"""The arrays of a network from the state dict of another library, found by their names there."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import numpy as np

from diffusion_jax.errors import UserError

Path = tuple[str, ...]
"""The names from the top of a tree of parameters to an array."""

Place = Callable[[np.ndarray], np.ndarray | jax.Array]
"""Puts an array where it is to stay."""


class Naming(NamedTuple):
    """How the arrays of one kind of network are named and laid out there."""

    noun: str  # of the network, for messages
    current: Callable[[str], str]  # a name in a file, which may be an earlier one -> the name of today
    ours: Callable[[Path, np.ndarray], np.ndarray]  # (path, their array) -> our array, float32


def arrays(
    state: Mapping[str, np.ndarray],
    names: Mapping[Path, str],
    shapes: Mapping[Path, tuple[int, ...]],
    naming: Naming,
    place: Place,
) -> dict[Path, np.ndarray | jax.Array]:
    """{path: our array} of a state dict; names has their name of each path, shapes the shape of ours.

    The arrays are read one by one, and `place` puts each where it is to stay; so a state that reads from files is never
    in memory as a whole. Raises UserError, naming all of them, where arrays are missing, left over or of another shape.
    """
    stored = {naming.current(name): name for name in state}
    missing, extra = sorted(set(names.values()) - set(stored)), sorted(set(stored) - set(names.values()))
    if missing or extra:
        raise UserError(f"the weights are of another {naming.noun}: missing {missing}; left over {extra}")
    found = {path: place(naming.ours(path, state[stored[name]])) for path, name in names.items()}
    wrong = [f"{names[p]} {found[p].shape}, not {shapes[p]}" for p in shapes if found[p].shape != shapes[p]]
    if wrong:
        sizes = "; ".join(wrong)
        raise UserError(f"the weights are of another {naming.noun}, of other sizes (shapes channels last): {sizes}")
    return found
