"""A table of every parameter: its name, shape, type, size and layout on the mesh."""

from collections.abc import Iterable

import jax

from diffusion_jax.train.state import Params

_HEAD = ("name", "shape", "type", "elements", "layout")


def parameter_table(params: Params) -> str:
    """The table as text: a line for each array, in the order of names, then their number, elements and bytes."""
    rows = [_HEAD]
    leaves = jax.tree_util.tree_leaves_with_path(params)
    for path, a in leaves:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        rows.append((name, _tuple(a.shape), str(a.dtype), f"{a.size:,}", _tuple(getattr(a.sharding, "spec", ()))))
    widths = [max(len(row[i]) for row in rows) for i in range(len(_HEAD))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    size, nbytes = sum(a.size for _, a in leaves), sum(a.nbytes for _, a in leaves)
    return "\n".join([*lines, f"{len(leaves):,} arrays of {size:,} elements, {nbytes:,} bytes"]) + "\n"


def _tuple(values: Iterable[object]) -> str:
    return f"({', '.join('-' if value is None else str(value) for value in values)})"
