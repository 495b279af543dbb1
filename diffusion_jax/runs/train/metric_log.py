"""Means of the metrics of training, and its speed, at intervals of steps."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from diffusion_jax.train.hooks import Clock, Moment
from diffusion_jax.train.state import Position
from diffusion_jax.train.step import Metrics, summarize


class MetricLog:
    """Calls write(step, scalars) with the means of metrics since the last log, images_per_second, input_wait_seconds.

    batch_size is that of the global batch. Each of counters returns further scalars, counted since its last call.
    learning_rate gives, from the number of steps before, the rate of a step; that of the last step is written.
    """

    def __init__(
        self,
        write: Callable[[int, Mapping[str, float]], None],
        batch_size: int,
        counters: Sequence[Callable[[], Mapping[str, float]]] = (),
        learning_rate: Callable[[int], float] | None = None,
    ):
        self._learning_rate = learning_rate
        self._write, self._batch_size, self._counters = write, batch_size, counters
        self._window: list[Metrics] = []
        self._before = Clock()  # at the last log
        self.latest: dict[str, float] = {}  # the means over the last dispatch

    def watch(self, step: int, metrics: Metrics, position: Position) -> None:
        """Adds the metrics of the dispatch that ended with this step."""
        self._window.append(metrics)
        self.latest = summarize([metrics])

    def run(self, moment: Moment) -> None:
        """Writes the means and starts anew."""
        clock, before = moment.clock, self._before
        means = summarize(self._window)
        if self._learning_rate is not None:
            means["learning_rate"] = self._learning_rate(moment.step - 1)
        means["input_wait_seconds"] = clock.input - before.input
        if clock.steps > before.steps:
            seconds = clock.training - before.training
            means["images_per_second"] = (clock.steps - before.steps) * self._batch_size / seconds
        for counted in self._counters:
            means |= counted()
        self._write(moment.step, means)
        self._window.clear()
        self._before = dataclasses.replace(clock)
