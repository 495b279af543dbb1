"""The input of a training run: bytes read a step, and a sentence if the steps wait for it."""

import dataclasses
import math
import os
import sys
from collections.abc import Mapping

import numpy as np
from ml_collections import ConfigDict

from diffusion_jax import experiment
from diffusion_jax.data.example import blocks_of
from diffusion_jax.data.pipeline import MAX_CACHE, TrainBatches
from diffusion_jax.data.sources import Source
from diffusion_jax.train.hooks import Clock, Moment

SHARE = 0.25
"""The part of the time of training, spent on waiting for input, from which on the input is called slow."""

SECONDS = 10.0
"""The least time of training over which the waits are judged."""


class InputWatch:
    """Counts what is read, and prints one sentence, once in a run, if the steps wait for it.

    batches is the stream of source. prints says whether this process is the one that prints.
    """

    def __init__(self, config: ConfigDict, source: Source, batches: TrainBatches, *, prints: bool):
        self._config, self._source, self._batches, self._prints = config, source, batches, prints
        self._read = self._totals()
        self._since: Clock | None = None  # the clock at the beginning of the time that is judged

    def _totals(self) -> tuple[int, int]:
        """(bytes read for the batches so far, steps that they are of)."""
        return self._batches.bytes_read, self._batches.get_state()["position"] // self._config.train.batch_size

    def counted(self) -> Mapping[str, float]:
        """{"input_bytes": encoded bytes a step that this process read since the last call}, or {} without a step."""
        (before, first), (after, last) = self._read, self._totals()
        self._read = after, last
        return {"input_bytes": (after - before) / (last - first)} if last > first else {}

    def run(self, moment: Moment) -> None:
        """Judges the time since the last judgement; the first call begins it, after what starts slowly."""
        clock, since = moment.clock, self._since
        if since is None or clock.training - since.training >= SECONDS:
            if since is not None:
                self._judge(clock.training - since.training, clock.input - since.input, clock.steps - since.steps)
            self._since = dataclasses.replace(clock)

    def _judge(self, seconds: float, waited: float, steps: int) -> None:
        if not self._prints or waited < SHARE * seconds or not steps:
            return
        self._prints = False
        print(
            f"diffusion-jax: the steps wait for their data {waited / seconds:.0%} of the time, {waited / steps:.3g} of "
            f"{seconds / steps:.3g} s a step: {advice(self._config, self._source, _cores())}",
            file=sys.stderr,
            flush=True,
        )


def advice(config: ConfigDict, source: Source, cores: int) -> str:
    """What makes the data of a config faster on a machine with so many cores, the cheapest first."""
    options, blocks = config.data, blocks_of(source)
    size = len(source) * math.prod(experiment.shape(config)) * np.dtype(experiment.modality(config).dtype).itemsize
    busy = (options.workers or 1) * options.threads
    found = []
    one_size = not experiment.modality(config).in_buckets
    if one_size and not options.cache and not options.precomputed and size <= MAX_CACHE:
        found.append(f"data.cache=True holds the decoded examples, {max(size / 1e6, 1):,.0f} MB")
    if "://" in options.source:
        found.append(f"data.threads={2 * max(options.threads, 8)} asks the bucket for more at once")
        found.append("copy the shards to a disk here")
    elif blocks is not None and options.threads < 2 * cores:  # a worker would read every row group again
        found.append(f"data.threads={2 * cores} for {cores} cores")
    elif blocks is None and busy < cores:
        found.append(f"data.workers={cores} decodes on all {cores} cores")
    if blocks is not None and sum(blocks.bytes) > blocks.window:
        found.append("tar shards (webdataset:) read single images, where Parquet reads whole row groups")
    found.append("store the images in the size that is trained on")
    return "; or ".join(found)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
