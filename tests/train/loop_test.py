"""The loop's order of events, with a step that takes no time; and the feed's positions."""

import signal
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.train import feed, loop, sharding
from diffusion_jax.train.step import by_time


class State(NamedTuple):
    step: jax.Array


class Recorder:
    """Runs the loop over a counting state and writes down what happens; the loss of step n is 1 / n."""

    def __init__(self, *, nan_at=None, stop_at=None, per_dispatch=1):
        self.events, self.nan_at, self.stop_at, self.n = [], nan_at, stop_at, per_dispatch

    def step(self, state, batch):
        done = int(state.step) + np.arange(1, self.n + 1)
        loss = jnp.asarray(np.where(done == self.nan_at, np.nan, 1 / done), jnp.float32)
        loss = loss if self.n > 1 else loss[0]
        return State(state.step + self.n), {"loss": loss}

    def on_step(self, at, metrics):
        if at == self.stop_at:
            signal.raise_signal(signal.SIGTERM)

    def run(self, start=0, **options):
        intervals = {"steps": 12, "log_every": 4, "save_every": 5, "sample_every": 6} | options
        return loop.fit(
            State(jnp.int32(start)),
            self.step,
            ((None, start + self.n * (i + 1)) for i in range(10**6)),
            batch_size=8,
            on_step=self.on_step,
            on_log=lambda at, metrics: self.events.append(("log", at, round(metrics["loss"], 6))),
            save=lambda state, position: self.events.append(("save", int(state.step), position)),
            sample=lambda state: self.events.append(("sample", int(state.step))),
            **intervals,
        )


def mean_loss(first, last):
    return round(float(np.mean([1 / n for n in range(first, last + 1)])), 6)


def test_events_come_at_their_intervals_and_the_end_is_saved():
    recorder = Recorder()
    assert int(recorder.run().step) == 12
    assert recorder.events == [
        ("log", 4, mean_loss(1, 4)),
        ("save", 5, 5),
        ("sample", 6),
        ("log", 8, mean_loss(5, 8)),
        ("save", 10, 10),
        ("log", 12, mean_loss(9, 12)),
        ("save", 12, 12),
        ("sample", 12),
    ]


def test_a_resumed_loop_goes_on_with_the_same_events():
    whole, rest = Recorder(), Recorder()
    whole.run()
    rest.run(start=5)
    assert [event for event in whole.events if event[1] > 8] == [event for event in rest.events if event[1] > 8]


def test_several_steps_a_dispatch_count_as_several():
    recorder = Recorder(per_dispatch=2)
    recorder.run(save_every=6)
    assert [event[:2] for event in recorder.events if event[0] != "sample"] == [
        ("log", 4),
        ("save", 6),
        ("log", 8),
        ("log", 12),
        ("save", 12),
    ]
    assert recorder.events[0][2] == mean_loss(1, 4)


def test_zero_means_never_but_for_the_last_save():
    recorder = Recorder()
    recorder.run(log_every=0, save_every=0, sample_every=0)
    assert [event[:2] for event in recorder.events] == [("log", 12), ("save", 12)]


def test_nothing_not_finite_is_saved():
    recorder = Recorder(nan_at=9)
    with pytest.raises(loop.NonFiniteLossError, match="not finite at step 9; the last checkpoint is of step 5"):
        recorder.run()
    assert max(event[1] for event in recorder.events if event[0] == "save") == 5


def test_sigterm_saves_where_it_stopped_and_restores_the_signal():
    before = signal.getsignal(signal.SIGTERM)
    recorder = Recorder(stop_at=7)
    state = recorder.run(steps=10**5, save_every=0)
    stopped = int(state.step)
    assert 7 <= stopped <= 10
    assert recorder.events[-1] == ("save", stopped, stopped)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_finished_run_does_nothing():
    recorder = Recorder()
    recorder.run(start=12)
    assert recorder.events == []


class Counting:
    """Host batches 0, 1, 2, ... whose position is the number handed out."""

    def __init__(self):
        self.handed = 0

    def __next__(self):
        self.handed += 1
        return {"image": np.full((8, 1), self.handed - 1, np.float32), "name": np.array(["x"] * 8)}

    def get_state(self):
        return self.handed


@pytest.mark.parametrize("ahead", [0, 1, 3])
@pytest.mark.parametrize("per_dispatch", [1, 4])
def test_the_position_is_that_of_the_batch_handed_out(ahead, per_dispatch):
    batches = feed.device_batches(Counting(), sharding.mesh(), steps_per_dispatch=per_dispatch, ahead=ahead)
    for n in range(5):
        batch, position = next(batches)
        first = n * per_dispatch
        np.testing.assert_array_equal(
            np.asarray(batch["image"]).reshape(per_dispatch, 8)[:, 0], first + np.arange(per_dispatch)
        )
        assert position == first + per_dispatch
        assert set(batch) == {"image"}
        assert not batch["image"].sharding.is_fully_replicated


def test_means_by_time_are_exact_over_dispatches():
    """Whatever the dispatches hold: means of all losses of a part, parts without any left out."""
    rng = np.random.default_rng(0)
    t, losses = rng.uniform(0.21, 1, (3, 2, 64)), rng.normal(size=(3, 2, 64))
    window = [
        {"loss_by_time": jax.vmap(by_time)(jnp.asarray(ts), jnp.asarray(values))}
        for ts, values in zip(t, losses, strict=True)
    ]
    means = loop.summarize(jax.device_get(window))
    assert list(means) == [f"loss_by_time/{i / 10:.1f}" for i in range(2, 10)]
    for i in range(2, 10):
        inside = (t > i / 10) & (t <= (i + 1) / 10)
        assert means[f"loss_by_time/{i / 10:.1f}"] == pytest.approx(losses[inside].mean(), abs=1e-5)


def test_the_last_and_first_time_are_in_the_last_and_first_part():
    binned = by_time(jnp.array([1.0, 1e-6, 0.1]), jnp.array([5.0, 7.0, 1.0]))
    np.testing.assert_allclose(binned.total, [8, 0, 0, 0, 0, 0, 0, 0, 0, 5])
