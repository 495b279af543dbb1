"""What each checkpoint of a run is of, for the trackers."""

from diffusion_jax.runs.evaluate.run import checkpoint_digest
from diffusion_jax.runs.train.parts import Run
from diffusion_jax.train.hooks import Moment
from diffusion_jax.train.manifest import NAME
from diffusion_jax.train.provenance import source_commit, versions


class Provenance:
    """Tells the trackers of each checkpoint that is complete."""

    def __init__(self, run: Run):
        self._run = run
        self._told: set[int] = set()

    def run(self, moment: Moment) -> None:
        """Tells of the checkpoints that were completed since the last call."""
        self.tell()

    def tell(self) -> None:
        """Tells of the checkpoints that were completed since the last call."""
        run = self._run
        if not run.first:
            return
        complete = (int(file.parent.name) for file in run.workdir.checkpoints.glob(f"[0-9]*/{NAME}"))
        for step in sorted(set(complete) - self._told):
            self._told.add(step)
            run.trackers.checkpoint(
                step,
                {
                    "step": step,
                    "folder": str((run.workdir.checkpoints / str(step)).resolve()),
                    "manifest_sha256": checkpoint_digest(run.workdir.root, step),
                    "data": run.task.source.fingerprint,
                    "examples_seen": step * run.config.train.batch_size,
                    "commit": source_commit(),
                    "versions": versions(),
                },
            )
