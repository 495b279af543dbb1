"""Checkpoints: all that a run needs to go on exactly. Orbax writes a directory a step, with a manifest in each."""

import concurrent.futures
import contextlib
import functools
import logging
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import chex
import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from diffusion_jax.errors import UserError
from diffusion_jax.train import device_copy, manifest
from diffusion_jax.train.arrays import check_same_arrays, listing
from diffusion_jax.train.checkpoint_meta import TREES, Meta, Trees, meta_of, trees_of
from diffusion_jax.train.retention import manager_options
from diffusion_jax.train.save_error import SaveError, save_error
from diffusion_jax.train.state import Params, Position, TrainState

_COMMITTED = "commit_success.txt"  # the file by which Orbax marks a complete step


_BEGINNER = concurrent.futures.ThreadPoolExecutor(1, "begin save")
"""In which saves of all `Checkpoints` begin, in the order of `save`, which is the same in every process: Orbax numbers
them in one sequence, and the processes meet at each."""


class Checkpoints:
    """The checkpoints in one directory: the trees of the state, the data position, the config and the versions.

    Saves are asynchronous and atomic. A step without its commit file does not exist. A step without a manifest, which
    is written in the background after the commit, is unverified. A save that failed raises SaveError at the next call
    of `raise_failed_save`, `save`, `wait` or `close`.
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
        copy: str = "auto",
        write_gb: int | None = None,
    ):
        """The checkpoints in directory, which the first save creates.

        keep is how many of the newest steps stay, None for all; every multiple of keep_every stays too, and so do the
        `best` steps of the lowest rating {step: number}, which the caller may fill in later. read_only changes nothing
        on the disk. The first process calls on_saved in the background once a step has its manifest; a SaveError that
        on_saved raises counts as one of the save. copy says where a state is copied to before the next step may
        overwrite it, `device_copy.CHOICES`. write_gb is how many gigabytes of a tree are written at once, more than its
        largest array takes; what is written is in memory once more, compressed. None leaves that to Orbax. Raises
        UserError where read_only finds no directory.
        """
        if read_only and not directory.is_dir():
            raise UserError(f"no checkpoint in {directory}; train first, or check --workdir")
        self.directory, self._read_only, self._on_saved = directory, read_only, on_saved
        self._copier = device_copy.Copier(copy)
        self._verdicts: dict[int, manifest.Verdict] = {}
        self._saving: tuple[int, concurrent.futures.Future[None]] | None = None
        folders = directory.iterdir() if directory.is_dir() else ()
        self._partial = [path for path in folders if path.name.isdecimal() and not (path / _COMMITTED).is_file()]
        self._begun: concurrent.futures.Future[None] | None = None  # Orbax has what the save under way writes
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "save")
        logging.getLogger("absl").addFilter(_for_the_user)
        self._write_gb = write_gb
        rating = {} if rating is None else rating  # not `or`: the caller may fill an empty one later
        self._options = manager_options(directory, keep, keep_every, best, rating, read_only=read_only)
        # Several processes create the manager together: one may see the directory before another does.
        if directory.is_dir() or jax.process_count() > 1:
            _ = self._manager

    @functools.cached_property
    def _manager(self) -> ocp.CheckpointManager:
        """Orbax's manager. It creates the directory, so it is made at the first save: other runs leave none."""
        if self._write_gb is None:
            return ocp.CheckpointManager(
                self.directory.absolute(), item_names=(*TREES.values(), "meta"), options=self._options
            )
        handlers: dict[str, ocp.CheckpointHandler] = {
            name: ocp.StandardCheckpointHandler(save_concurrent_gb=self._write_gb) for name in TREES.values()
        }
        handlers["meta"] = ocp.JsonCheckpointHandler()
        return ocp.CheckpointManager(self.directory.absolute(), item_handlers=handlers, options=self._options)

    @property
    def _orbax(self) -> ocp.CheckpointManager:
        """The manager, for one thread at a time: a save that is about to begin is waited for."""
        if self._begun is not None:
            concurrent.futures.wait([self._begun])
        return self._manager

    def _committed(self) -> list[int]:
        """The steps that Orbax lists, oldest first."""
        return sorted(self._orbax.all_steps()) if self._begun or "_manager" in self.__dict__ else []

    def latest(self) -> int | None:
        """The newest of `steps`, or None for no step. All processes of a run get the same answer."""
        if jax.process_count() == 1:
            return max(self.steps(), default=None)
        steps = self.steps() if jax.process_index() == 0 else []
        step = int(multihost_utils.broadcast_one_to_all(np.int32(max(steps, default=-1))))
        self._orbax.reload()
        return None if step < 0 else step

    def steps(self) -> list[int]:
        """The committed steps, oldest first, up to the newest that its manifest verifies.

        Where none is verified, they go up to the newest step without a manifest. Newer steps are passed over: each is
        named on stderr and, unless read_only, moved aside so that the run can save that step again. Raises UserError
        where all steps are damaged.
        """
        committed = self._committed()
        verified = next((step for step in reversed(committed) if self._has_status(step, manifest.VERIFIED)), None)
        trusted = verified
        if verified is None:
            trusted = next((step for step in reversed(committed) if self._has_status(step, manifest.UNVERIFIED)), None)
        if committed and trusted is None:
            reasons = "; ".join(f"step {step}: {self._verdicts[step].reason}" for step in reversed(committed))
            raise UserError(
                f"every checkpoint in {self.directory} is damaged ({reasons}); restore a copy, or move it away"
            )
        for path in self._partial:  # Orbax deletes them unless read_only
            if int(path.name) > max(committed, default=-1):
                _say(f"passed over {path}: it was never committed")
        self._partial = []
        for step in reversed(committed):
            if trusted is not None and step > trusted:
                self._pass_over(step)
        if trusted is not None and verified is None:
            _say(f"step {trusted} in {self.directory} is taken unverified: {self._verdicts[trusted].reason}")
        return [step for step in committed if trusted is not None and step <= trusted]

    def _has_status(self, step: int, status: str) -> bool:
        """Whether the manifest gives a step this status; a save of the step that is under way is waited for."""
        if self._saving is not None and self._saving[0] == step:
            self.wait()
        if step not in self._verdicts:
            self._verdicts[step] = manifest.verify(self.directory / str(step))
        return self._verdicts[step].status == status

    def _pass_over(self, step: int) -> None:
        """Says on stderr that a step is not used; unless read_only, renames its folder to STEP.damaged or the like."""
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
        self, state: TrainState, *, position: Position, config: str, measured: Mapping[str, float] | None = None
    ) -> None:
        """Starts to save the state under its step, and returns before the save is complete.

        position is the data iterator's and config JSON text. measured has numbers that were measured with the averaged
        parameters, such as the deviation of an autoencoder's latents. Once this returns, steps may overwrite the state.
        Raises SaveError where the save before failed.
        """
        self.wait()
        trees = trees_of(state)
        step = int(state.step)
        begin = functools.partial(self._begin, step, position=position, config=config, measured=dict(measured or {}))
        self._verdicts.pop(step, None)
        copied = self._copier.copy(trees)
        if copied is None:
            try:
                begin(trees)
            except Exception as error:
                raise self._failed(step, error) from error
            self._saving = step, self._thread.submit(self._complete, step)
        else:
            self._begun = _BEGINNER.submit(begin, copied)
            self._saving = step, self._thread.submit(self._save_copy, step, copied, self._begun)

    def prepare(self, state: TrainState) -> "concurrent.futures.Future[None]":
        """Compiles in the background what the first save of such a state would wait for."""
        return self._thread.submit(self._copier.compiled_later(trees_of(state)))

    def _begin(
        self,
        step: int,
        trees: Trees,
        *,
        position: Position,
        config: str,
        measured: Mapping[str, float],
    ) -> None:
        """Has Orbax copy the arrays to the host, which is waited for, and write them in the background."""
        meta = meta_of(trees, step, position, config, measured)
        items = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
        self._manager.save(step, args=ocp.args.Composite(**items, meta=ocp.args.JsonSave(meta)), force=True)

    def _save_copy(self, step: int, copied: Trees, begun: "concurrent.futures.Future[None]") -> None:
        """Waits until the copy of a state is saved, manifest and all, and gives up its memory."""
        try:
            begun.result()
            self._complete(step)
        finally:
            device_copy.free(copied)

    def _complete(self, step: int) -> None:
        """Waits until the step is committed, then writes its manifest."""
        self._manager.wait_until_finished()
        if jax.process_index() == 0:
            manifest.write(self.directory / str(step))
            if self._on_saved is not None:
                self._on_saved()

    def _failed(self, step: int, error: Exception) -> SaveError:
        """The error of a save that failed, by its cause; what the save has written is deleted."""
        if jax.process_index() == 0 and not (self.directory / str(step) / _COMMITTED).is_file():
            shutil.rmtree(self.directory / str(step), ignore_errors=True)  # a full disk stays full otherwise
        return save_error(step, self.directory, error)

    def meta(self, step: int) -> Meta:
        """What was saved with the arrays of a step."""
        return self._orbax.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]

    def restore(self, abstract: TrainState, step: int) -> tuple[TrainState, Position]:
        """The state saved at step, and the data position after it.

        abstract has the `ShapeDtypeStruct`s with shardings (`arrays.abstract_like`) that the state is restored to.
        Raises UserError where the step is damaged or holds other arrays.
        """
        wanted = {name: getattr(abstract, field) for field, name in TREES.items()}
        trees = {name: tree for name, tree in wanted.items() if not jax.tree.leaves(tree)}  # empty trees are not saved
        trees |= self._restore({name: tree for name, tree in wanted.items() if name not in trees}, step)
        count = jax.device_put(np.int32(step), abstract.step.sharding)
        fields = {field: trees[name] for field, name in TREES.items()}
        return TrainState(step=count, **fields), self.meta(step)["position"]

    def restore_tree(self, name: str, abstract: Params, step: int) -> Params:
        """One tree of the state saved at step, such as "ema", without reading the others. Raises as `restore` does."""
        return self._restore({name: abstract}, step)[name]

    def _restore(self, abstract: Mapping[str, chex.ArrayTree], step: int) -> dict[str, chex.ArrayTree]:
        if jax.process_index() == 0 and self._has_status(step, manifest.DAMAGED):
            raise UserError(f"checkpoint {self.directory}/{step} is damaged: {self._verdicts[step].reason}")
        saved = self.meta(step)["arrays"]
        for name, tree in abstract.items():
            check_same_arrays(f"{self.directory}/{step} ({name})", saved.get(name, {}), listing(tree))
        items = {name: ocp.args.StandardRestore(tree) for name, tree in abstract.items()}
        restored = self._orbax.restore(step, args=ocp.args.Composite(**items))
        return {name: restored[name] for name in abstract}

    def drop_after(self, step: int) -> None:
        """Deletes the checkpoints of later steps, for a run that trains those steps again."""
        for later in self._committed():
            if later > step:
                self._orbax.delete(later)
                self._verdicts.pop(later, None)

    def raise_failed_save(self) -> None:
        """Raises SaveError if the last save has failed. A save that is under way is not waited for."""
        if self._saving is not None and self._saving[1].done():
            self.wait()

    def wait(self) -> None:
        """Waits until the last save is committed and has its manifest. Raises SaveError where it failed."""
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
        """Waits for the last save and ends the threads. Raises SaveError where the save failed."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()
            if "_manager" in self.__dict__:
                with contextlib.suppress(Exception):  # that of a failed save, which `wait` has raised
                    self._manager.close()


def holds_checkpoint(directory: Path) -> bool:
    """Whether the directory holds a committed step, damaged or not. Without one, `Checkpoints.latest` is None."""
    folders = directory.iterdir() if directory.is_dir() else ()
    return any(path.name.isdecimal() and (path / _COMMITTED).is_file() for path in folders)


def _say(text: str) -> None:
    print(f"diffusion-jax: {text}", file=sys.stderr)


def _for_the_user(record: logging.LogRecord) -> bool:
    """Whether to show a log record: not Orbax's notes on its defaults, nor tracebacks of errors that it also raises."""
    return "orbax" not in record.pathname or (record.levelno > logging.WARNING and not record.exc_info)
