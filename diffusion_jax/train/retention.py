"""Which checkpoints are kept when a new one is saved, as options of Orbax's manager."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import options as ocp_options
from orbax.checkpoint.checkpoint_managers import preservation_policy


@dataclasses.dataclass(frozen=True)
class LowestRated:
    """Keeps the `count` steps with the lowest rating.

    rating is {step: number}, which the caller may fill in later. A step without a rating, or with one that is not
    finite, is not kept.
    """

    count: int
    rating: Mapping[int, float]

    def should_preserve(
        self,
        checkpoints: Sequence[preservation_policy.PolicyCheckpointInfo],
        *,
        context: preservation_policy.PreservationContext,
    ) -> list[bool]:
        """Whether to keep each of the checkpoints."""
        rated = [c.step for c in checkpoints if math.isfinite(self.rating.get(c.step, math.nan))]
        best = set(sorted(rated, key=lambda step: (self.rating[step], step))[: self.count])
        return [c.step in best for c in checkpoints]


def _processes(directory: Path) -> ocp_options.MultiprocessingOptions:
    """All processes, which then meet by jax's coordination service.

    By default they meet by a collective of their devices, which in another thread might come before a step in one
    process and after it in the next.
    """
    return ocp_options.MultiprocessingOptions(
        active_processes=set(range(jax.process_count())), barrier_sync_key_prefix=directory.name
    )


def manager_options(
    directory: Path, keep: int | None, keep_every: int, best: int, rating: Mapping[int, float], *, read_only: bool
) -> ocp.CheckpointManagerOptions:
    """The options of a manager that keeps the newest, the regular and the best steps, and commits a step by a file.

    keep is how many of the newest steps stay (None: all), keep_every the interval of steps that stay (0: none), best
    how many of the lowest rating {step: number} stay. read_only deletes and creates nothing; otherwise the processes of
    a run find the directory there.
    """
    several = jax.process_count() > 1
    if several and not read_only:
        directory.mkdir(parents=True, exist_ok=True)
    policy = None
    if best and not read_only:
        policies: list[preservation_policy.PreservationPolicy] = [
            preservation_policy.LatestN(keep),
            LowestRated(best, rating),
        ]
        if keep_every:
            policies.append(preservation_policy.EveryNSteps(keep_every))
        policy = preservation_policy.AnyPreservationPolicy(policies)
    return ocp.CheckpointManagerOptions(
        max_to_keep=None if read_only or best else keep,
        keep_period=None if best else keep_every or None,
        preservation_policy=policy,
        create=not read_only and not several,
        read_only=read_only,
        cleanup_tmp_directories=not read_only,
        multiprocessing_options=_processes(directory) if several else ocp_options.MultiprocessingOptions(),
        atomicity_options=ocp_options.AtomicityOptions(mode=ocp_options.AtomicityMode.COMMIT_FILE),
    )
