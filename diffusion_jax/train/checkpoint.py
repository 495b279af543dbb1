"""Checkpoints on Orbax: everything needed to go on exactly, in one directory a step."""

import importlib.metadata
import platform
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from orbax.checkpoint import options as ocp_options

from diffusion_jax.errors import UserError
from diffusion_jax.train.sharding import replicated
from diffusion_jax.train.state import Params, TrainState

TREES = tuple(field for field in TrainState._fields if field != "step")

_PACKAGES = ("diffusion-jax", "jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that decide a run's numbers."""
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in _PACKAGES}


class Checkpoints:
    """The checkpoints under one directory: each tree of the state, the data position, the config and the versions.

    Saves are asynchronous and atomic: a step without its commit file does not exist. A failed background save raises at
    the next `save` or at `close`. With read_only nothing on disk is touched.
    """

    def __init__(self, directory: Path, *, keep: int = 2, keep_every: int = 0, read_only: bool = False):
        if read_only and not directory.is_dir():
            raise UserError(f"no checkpoint in {directory}; train first, or check --workdir")
        self.directory = directory
        self._orbax = ocp.CheckpointManager(
            directory.absolute(),
            item_names=(*TREES, "meta"),
            options=ocp.CheckpointManagerOptions(
                max_to_keep=None if read_only else keep,
                keep_period=keep_every or None,
                create=not read_only,
                read_only=read_only,
                cleanup_tmp_directories=not read_only,
                atomicity_options=ocp_options.AtomicityOptions(mode=ocp_options.AtomicityMode.COMMIT_FILE),
            ),
        )

    def latest(self) -> int | None:
        """The newest committed step, or None."""
        return self._orbax.latest_step()

    def steps(self) -> list[int]:
        """All committed steps, oldest first."""
        return sorted(self._orbax.all_steps())

    def save(self, state: TrainState, *, position: Any, config: str) -> None:
        """Starts saving the state under its step; position is the data iterator's, JSON-able, and config is JSON."""
        trees = {name: getattr(state, name) for name in TREES if jax.tree.leaves(getattr(state, name))}
        meta = {
            "step": int(state.step),
            "position": position,
            "config": config,
            "versions": versions(),
            "arrays": {name: _listing(tree) for name, tree in trees.items()},
        }
        items = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
        self._orbax.save(meta["step"], args=ocp.args.Composite(**items, meta=ocp.args.JsonSave(meta)), force=True)

    def meta(self, step: int) -> dict[str, Any]:
        """What was saved beside the arrays: step, position, config (JSON), versions and the list of arrays."""
        return self._orbax.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]

    def restore(self, abstract: TrainState, step: int) -> tuple[TrainState, Any]:
        """(state, data position) saved at step, laid out as the ShapeDtypeStructs of abstract say."""
        wanted = {name: getattr(abstract, name) for name in TREES}
        trees = {name: tree for name, tree in wanted.items() if not jax.tree.leaves(tree)}  # nothing to save or restore
        trees |= self._restore({name: tree for name, tree in wanted.items() if name not in trees}, step)
        count = jax.device_put(jnp.int32(step), abstract.step.sharding)
        return TrainState(step=count, **trees), self.meta(step)["position"]

    def restore_tree(self, name: str, abstract: Params, step: int) -> Params:
        """One tree of the state, such as "ema", without reading the others."""
        return self._restore({name: abstract}, step)[name]

    def _restore(self, abstract: dict[str, Any], step: int) -> dict[str, Any]:
        saved = self.meta(step)["arrays"]
        for name, tree in abstract.items():
            _check_same_arrays(f"{self.directory}/{step} ({name})", saved.get(name, {}), _listing(tree))
        items = {name: ocp.args.StandardRestore(tree) for name, tree in abstract.items()}
        restored = self._orbax.restore(step, args=ocp.args.Composite(**items))
        return {name: restored[name] for name in abstract}

    def wait(self) -> None:
        """Returns when the last save is committed; raises what made it fail."""
        self._orbax.wait_until_finished()

    def close(self) -> None:
        """Waits for the last save and frees the threads."""
        self._orbax.wait_until_finished()
        self._orbax.close()


def abstract_like(tree: Any, shardings: Any) -> Any:
    """The ShapeDtypeStructs of tree with the given layout: what `restore` takes."""
    return jax.tree.map(lambda a, sharding: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), tree, shardings)


def whole(tree: Any, mesh: jax.sharding.Mesh) -> Any:
    """`abstract_like` with every array replicated: how a sampler holds its parameters."""
    return abstract_like(tree, jax.tree.map(lambda _: replicated(mesh), tree))


def _listing(tree: Any) -> dict[str, list[Any]]:
    """{path: [shape, dtype]} of every array."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): [list(leaf.shape), str(leaf.dtype)]
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _check_same_arrays(where: str, saved: dict[str, list[Any]], wanted: dict[str, list[Any]]) -> None:
    """Raises UserError that lists the arrays only one side has, or has in another shape."""
    wrong = [f"{name} is not in the checkpoint" for name in sorted(set(wanted) - set(saved))]
    wrong += [f"{name} is only in the checkpoint" for name in sorted(set(saved) - set(wanted))]
    wrong += [
        f"{name} is {saved[name][1]}{saved[name][0]} in the checkpoint, {wanted[name][1]}{wanted[name][0]} here"
        for name in sorted(set(saved) & set(wanted))
        if saved[name] != wanted[name]
    ]
    if wrong:
        shown = "; ".join(wrong[:4]) + (f"; and {len(wrong) - 4} more" if len(wrong) > 4 else "")
        raise UserError(f"checkpoint {where} is of another network: {shown}")
