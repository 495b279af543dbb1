"""Checkpoints on Orbax: everything needed to go on exactly, in one directory a step, each with its manifest."""

import concurrent.futures
import contextlib
import dataclasses
import errno
import functools
import importlib.metadata
import logging
import math
import os
import platform
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint import options as ocp_options
from orbax.checkpoint.checkpoint_managers import preservation_policy

from diffusion_jax.errors import UserError
from diffusion_jax.train import manifest
from diffusion_jax.train.sharding import replicated
from diffusion_jax.train.state import Params, TrainState

TREES = {field: {"history": "times"}.get(field, field) for field in TrainState._fields if field != "step"}
"""{field of the state: its name in a checkpoint}, which is that of version 0.1."""

_COMMITTED = "commit_success.txt"  # by which Orbax knows a complete step

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG, errno.EIO)
"""What is the disk's and its user's to mend; tensorstore buries it at the end of long messages."""

_PACKAGES = ("diffusion-jax", "jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that decide a run's numbers."""
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in _PACKAGES}


@functools.cache
def source_commit() -> str | None:
    """The git commit of this package's source, with "-dirty" where it was changed since; None if git knows none."""
    folder = str(Path(__file__).parents[1])
    try:
        for command in (
            ["ls-files", "--error-unmatch", "__init__.py"],
            ["describe", "--always", "--dirty", "--abbrev=40"],
        ):
            run = subprocess.run(
                ["git", "-C", folder, *command], capture_output=True, text=True, timeout=10, check=True
            )
    except (OSError, subprocess.SubprocessError):
        return None
    return run.stdout.strip()


class SaveError(OSError):
    """A checkpoint could not be written; those before it are as they were."""


class Checkpoints:
    """The checkpoints under one directory: each tree of the state, the data position, the config and the versions.

    Saves are asynchronous and atomic: a step without its commit file does not exist, and one without its manifest,
    which follows in the background, is not verified. A failed save raises SaveError at the next `check`, `save`, `wait`
    or `close`. The directory is made by the first save; with read_only nothing on disk is touched. keep counts the
    newest steps, None all; best those of the lowest rating, which the caller may go on filling in: {step: rating}.
    on_saved is called in the background, by the first process, when a step has its manifest; a SaveError of its own is
    raised like that of a failed save.
    """

    def __init__(
        self,
        directory: Path,
        *,
        keep: int | None = 2,
        keep_every: int = 0,
        read_only: bool = False,
        best: int = 0,
        rating: Mapping[int, float] | None = None,
        on_saved: Callable[[], None] | None = None,
    ):
        if read_only and not directory.is_dir():
            raise UserError(f"no checkpoint in {directory}; train first, or check --workdir")
        self.directory, self._read_only, self._on_saved = directory, read_only, on_saved
        self._verdicts: dict[int, manifest.Verdict] = {}
        self._saving: tuple[int, concurrent.futures.Future[None]] | None = None
        folders = directory.iterdir() if directory.is_dir() else ()
        self._partial = [path for path in folders if path.name.isdecimal() and not (path / _COMMITTED).is_file()]
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "manifest")
        logging.getLogger("absl").addFilter(_for_the_user)
        self._options = ocp.CheckpointManagerOptions(
            max_to_keep=None if read_only or best else keep,
            keep_period=None if best else keep_every or None,
            preservation_policy=_kept(keep, keep_every, best, {} if rating is None else rating)
            if best and not read_only
            else None,
            create=not read_only,
            read_only=read_only,
            cleanup_tmp_directories=not read_only,
            atomicity_options=ocp_options.AtomicityOptions(mode=ocp_options.AtomicityMode.COMMIT_FILE),
        )
        # Several processes make it together, and may not see alike whether the directory is there.
        if directory.is_dir() or jax.process_count() > 1:
            _ = self._orbax

    @functools.cached_property
    def _orbax(self) -> ocp.CheckpointManager:
        """Orbax's own, which makes the directory: a run that never saves leaves none."""
        return ocp.CheckpointManager(
            self.directory.absolute(), item_names=(*TREES.values(), "meta"), options=self._options
        )

    def _committed(self) -> list[int]:
        """The steps that Orbax lists, oldest first."""
        return sorted(self._orbax.all_steps()) if "_orbax" in self.__dict__ else []

    def latest(self) -> int | None:
        """The newest step of `steps`, or None; processes of one run get the same answer."""
        if jax.process_count() == 1:
            return max(self.steps(), default=None)
        steps = self.steps() if jax.process_index() == 0 else []
        step = int(multihost_utils.broadcast_one_to_all(np.int32(max(steps, default=-1))))
        self._orbax.reload()
        return None if step < 0 else step

    def steps(self) -> list[int]:
        """The committed steps up to the newest that verifies, oldest first; says on stderr what it passes over.

        Where none verifies: up to the newest without a manifest. Raises UserError where all are damaged. Unless
        read_only, what is passed over is moved aside, out of the way of the run that goes on.
        """
        committed = self._committed()
        verified = next((step for step in reversed(committed) if self._is(step, manifest.VERIFIED)), None)
        trusted = verified
        if verified is None:
            trusted = next((step for step in reversed(committed) if self._is(step, manifest.UNVERIFIED)), None)
        if committed and trusted is None:
            reasons = "; ".join(f"step {step}: {self._verdicts[step].reason}" for step in reversed(committed))
            raise UserError(
                f"every checkpoint in {self.directory} is damaged ({reasons}); restore a copy, or move it away"
            )
        for path in self._partial:  # Orbax takes them away where it may write
            if int(path.name) > max(committed, default=-1):
                _say(f"passed over {path}: it was never committed")
        self._partial = []
        for step in reversed(committed):
            if trusted is not None and step > trusted:
                self._pass_over(step)
        if trusted is not None and verified is None:
            _say(f"step {trusted} in {self.directory} is taken unverified: {self._verdicts[trusted].reason}")
        return [step for step in committed if trusted is not None and step <= trusted]

    def _is(self, step: int, status: str) -> bool:
        if self._saving is not None and self._saving[0] == step:
            self.wait()
        if step not in self._verdicts:
            self._verdicts[step] = manifest.check(self.directory / str(step))
        return self._verdicts[step].status == status

    def _pass_over(self, step: int) -> None:
        status, reason = self._verdicts[step]
        where, aside = self.directory / str(step), self.directory / f"{step}.{status.split()[0]}"
        if self._read_only:
            _say(f"passed over {where}: {reason}")
            return
        shutil.rmtree(aside, ignore_errors=True)
        where.rename(aside)
        del self._verdicts[step]
        self._orbax.reload()
        _say(f"passed over {where}: {reason}; it is now {aside}")

    def save(
        self, state: TrainState, *, position: Any, config: str, measured: Mapping[str, float] | None = None
    ) -> None:
        """Starts saving the state under its step; position is the data iterator's, JSON-able, and config is JSON.

        measured is what is known of the averaged parameters, such as the scale of an autoencoder's latents.
        """
        self.wait()
        trees = {name: getattr(state, field) for field, name in TREES.items()}
        trees = {name: tree for name, tree in trees.items() if jax.tree.leaves(tree)}
        meta = {
            "step": int(state.step),
            "position": position,
            "config": config,
            "measured": dict(measured or {}),
            "versions": versions(),
            "commit": source_commit(),
            "arrays": {name: _listing(tree) for name, tree in trees.items()},
        }
        step = meta["step"]
        items = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
        try:
            self._orbax.save(step, args=ocp.args.Composite(**items, meta=ocp.args.JsonSave(meta)), force=True)
        except Exception as error:
            raise self._failed(step, error) from error
        self._verdicts.pop(step, None)
        self._saving = step, self._thread.submit(self._complete, step)

    def _complete(self, step: int) -> None:
        """Waits for the commit, then writes the manifest."""
        self._orbax.wait_until_finished()
        if jax.process_index() == 0:
            manifest.write(self.directory / str(step))
            if self._on_saved is not None:
                self._on_saved()

    def _failed(self, step: int, error: Exception) -> SaveError:
        # What Orbax had begun and dropped is of no use to the one who reads the error.
        warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
        if jax.process_index() == 0 and not (self.directory / str(step) / _COMMITTED).is_file():
            shutil.rmtree(self.directory / str(step), ignore_errors=True)  # or it would go on filling the disk
        text = " ".join(str(error).split())
        reason = next((known for known in map(os.strerror, _DISK) if known.lower() in text.lower()), text[:300])
        return SaveError(
            f"saving step {step} in {self.directory} failed, earlier checkpoints are as they were: {reason}"
        )

    def meta(self, step: int) -> dict[str, Any]:
        """What was saved beside the arrays: step, position, config (JSON), versions and the list of arrays."""
        return self._orbax.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]

    def restore(self, abstract: TrainState, step: int) -> tuple[TrainState, Any]:
        """(state, data position) saved at step, laid out as the ShapeDtypeStructs of abstract say."""
        wanted = {name: getattr(abstract, field) for field, name in TREES.items()}
        trees = {name: tree for name, tree in wanted.items() if not jax.tree.leaves(tree)}  # nothing to save or restore
        trees |= self._restore({name: tree for name, tree in wanted.items() if name not in trees}, step)
        count = jax.device_put(np.int32(step), abstract.step.sharding)
        fields = {field: trees[name] for field, name in TREES.items()}
        return TrainState(step=count, **fields), self.meta(step)["position"]

    def restore_tree(self, name: str, abstract: Params, step: int) -> Params:
        """One tree of the state, such as "ema", without reading the others."""
        return self._restore({name: abstract}, step)[name]

    def _restore(self, abstract: dict[str, Any], step: int) -> dict[str, Any]:
        if jax.process_index() == 0 and self._is(step, manifest.DAMAGED):
            raise UserError(f"checkpoint {self.directory}/{step} is damaged: {self._verdicts[step].reason}")
        saved = self.meta(step)["arrays"]
        for name, tree in abstract.items():
            _check_same_arrays(f"{self.directory}/{step} ({name})", saved.get(name, {}), _listing(tree))
        items = {name: ocp.args.StandardRestore(tree) for name, tree in abstract.items()}
        restored = self._orbax.restore(step, args=ocp.args.Composite(**items))
        return {name: restored[name] for name in abstract}

    def drop_after(self, step: int) -> None:
        """Deletes the steps after step: those of a future that is trained anew."""
        for later in self._committed():
            if later > step:
                self._orbax.delete(later)
                self._verdicts.pop(later, None)

    def check(self) -> None:
        """Raises what made the last save fail, if it has; does not wait for it."""
        if self._saving is not None and self._saving[1].done():
            self.wait()

    def wait(self) -> None:
        """Returns when the last save is committed and has its manifest; raises SaveError where it failed."""
        saving, self._saving = self._saving, None
        if saving is None:
            return
        try:
            saving[1].result()
        except SaveError:
            raise
        except Exception as error:
            raise self._failed(saving[0], error) from error

    def close(self) -> None:
        """Waits for the last save and frees the threads."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()
            if "_orbax" in self.__dict__:
                with contextlib.suppress(Exception):  # of a failed save, which `wait` has raised
                    self._orbax.close()


def holds_checkpoint(directory: Path) -> bool:
    """Whether there is a committed step, intact or not: where there is none, `Checkpoints.latest` is None."""
    folders = directory.iterdir() if directory.is_dir() else ()
    return any(path.name.isdecimal() and (path / _COMMITTED).is_file() for path in folders)


def _kept(
    keep: int | None, keep_every: int, best: int, rating: Mapping[int, float]
) -> preservation_policy.PreservationPolicy:
    policies: list[Any] = [preservation_policy.LatestN(keep), _Best(best, rating)]
    if keep_every:
        policies.append(preservation_policy.EveryNSteps(keep_every))
    return preservation_policy.AnyPreservationPolicy(policies)


@dataclasses.dataclass(frozen=True)
class _Best:
    """Preserves the `best` steps of the lowest rating; a step without one, or with one that is no number, is not."""

    best: int
    rating: Mapping[int, float]

    def should_preserve(
        self,
        checkpoints: Sequence[preservation_policy.PolicyCheckpointInfo],
        *,
        context: preservation_policy.PreservationContext,
    ) -> list[bool]:
        """Of each checkpoint."""
        rated = [c.step for c in checkpoints if math.isfinite(self.rating.get(c.step, math.nan))]
        kept = set(sorted(rated, key=lambda step: (self.rating[step], step))[: self.best])
        return [c.step in kept for c in checkpoints]


def abstract_like(tree: Any, shardings: Any) -> Any:
    """The ShapeDtypeStructs of tree with the given layout: what `restore` takes."""
    return jax.tree.map(lambda a, sharding: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), tree, shardings)


def whole(tree: Any, mesh: jax.sharding.Mesh) -> Any:
    """`abstract_like` with every array replicated: how a sampler holds its parameters."""
    return abstract_like(tree, jax.tree.map(lambda _: replicated(mesh), tree))


def _say(text: str) -> None:
    print(f"diffusion-jax: {text}", file=sys.stderr)


def _for_the_user(record: logging.LogRecord) -> bool:
    """False for what Orbax logs of its defaults, and for the traceback of an error that it raises as well."""
    return "orbax" not in record.pathname or (record.levelno > logging.WARNING and not record.exc_info)


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
