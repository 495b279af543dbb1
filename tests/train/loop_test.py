"""The loop's order of events with the hooks of a run, by a step that takes no time; and the feed's positions."""

import contextlib
import functools
import signal
import threading
import time
from types import SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.runs.train import saving as saves
from diffusion_jax.runs.train.metric_log import MetricLog
from diffusion_jax.runs.train.saving import Saving
from diffusion_jax.train import faults, feed, interruptible, loop, sharding
from diffusion_jax.train.guard import Guard, LossSpikeError, NonFiniteLossError
from diffusion_jax.train.hooks import Hook
from diffusion_jax.train.interruptible import Abandoned
from diffusion_jax.train.spikes import Spikes
from diffusion_jax.train.step import by_time, summarize


class State(NamedTuple):
    step: jax.Array
    ema: tuple = ()


class Recorder:
    """Runs the loop over a counting state and writes down what happens; the loss of step n is 1 / n."""

    def __init__(self, *, nan_at=(), high_at=(), stop_at=None, per_dispatch=1, waits=lambda: None):
        self.events, self.nan_at, self.stop_at, self.n = [], nan_at, stop_at, per_dispatch
        self.high_at, self.waits = high_at, waits
        self.nonfinite, self.logged = [], []

    def step(self, state, batch):
        done = int(state.step) + np.arange(1, self.n + 1)
        loss = np.where(np.isin(done, self.high_at), 100.0, 1 / done)
        loss = jnp.asarray(np.where(np.isin(done, self.nan_at), np.nan, loss), jnp.float32)
        loss = loss if self.n > 1 else loss[0]
        return State(state.step + self.n), {"loss": loss}

    def watch(self, at, metrics, position):
        if at == self.stop_at:
            signal.raise_signal(signal.SIGTERM)

    def save(self, state, *, position, config, measured):
        self.events.append(("save", int(state.step), position))

    def run(self, start=0, *, steps=12, log_every=4, save_every=5, sample_every=6, limit=1, spikes=None, hooks=()):
        guard = Guard(limit, spikes, self.nonfinite.append)
        saving = Saving(self, "{}", lambda params: {}, guard)
        log = MetricLog(self.on_log, 8, (guard.drain, saving.drain))
        with faults.stop_on_signal() as stop:
            return loop.fit(
                State(jnp.int32(start)),
                self.step,
                ((self.waits(), start + self.n * (i + 1)) for i in range(10**6)),
                [
                    Hook(log_every, log.run, at_end=True),
                    Hook(save_every, saving.run, at_end=True),
                    Hook(sample_every, lambda moment: self.events.append(("sample", moment.step))),
                    *hooks,
                ],
                steps=steps,
                stop=stop,
                watch=(log.watch, self.watch, guard.watch),
            )

    def on_log(self, at, metrics):
        self.events.append(("log", at, round(metrics["loss"], 6)))
        self.logged.append((at, metrics))


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
    recorder = Recorder(nan_at=[9])
    with pytest.raises(NonFiniteLossError, match="not finite at step 9$"):
        recorder.run()
    assert max(event[1] for event in recorder.events if event[0] == "save") == 5


def test_single_steps_that_are_not_finite_are_counted_and_told():
    """Their batch is the one that ends `after` batches before the position; means leave them out."""
    recorder = Recorder(nan_at=[3, 7, 8], per_dispatch=4)
    recorder.run(limit=3, save_every=0, log_every=8)
    assert [(e.step, e.position, e.after) for e in recorder.nonfinite] == [(3, 4, 1), (7, 8, 1), (8, 8, 0)]
    (at, metrics), (_, rest) = recorder.logged
    assert (at, metrics["nonfinite_steps"]) == (8, 3)
    assert metrics["loss"] == pytest.approx(np.mean([1, 1 / 2, 1 / 4, 1 / 5, 1 / 6]), abs=1e-6)
    assert "nonfinite_steps" not in rest


def test_a_row_of_them_raises_at_its_end_and_nothing_amid_it_is_saved():
    recorder = Recorder(nan_at=[2, 8, 9, 10, 11, 12, 13, 14])
    with pytest.raises(NonFiniteLossError, match="at step 12 and the 4 before it$") as caught:
        recorder.run(steps=40, save_every=3, sample_every=0, limit=5)
    assert caught.value.position == 12
    assert [event for event in recorder.events if event[0] == "save"] == [("save", 3, 3), ("save", 6, 6)]
    assert [event.step for event in recorder.nonfinite] == [2, 8, 9, 10, 11, 12]


def spikes():
    return Spikes(factor=10.0, window=4, limit=3)


def test_a_loss_that_jumps_and_stays_raises_and_nothing_amid_it_is_saved():
    recorder = Recorder(high_at=[7, *range(12, 40)])
    with pytest.raises(LossSpikeError, match=r"is 100, over 10 times its median .* at step 14$"):
        recorder.run(steps=40, save_every=3, sample_every=0, spikes=spikes())
    assert [event[1] for event in recorder.events if event[0] == "save"] == [3, 6, 9]


def test_the_data_after_a_spike_is_told_and_a_stop_amid_one_saves():
    recorder = Recorder(high_at=range(12, 40), per_dispatch=2)
    with pytest.raises(LossSpikeError) as caught:
        recorder.run(steps=40, save_every=0, sample_every=0, spikes=spikes())
    assert caught.value.position == 14
    stopped = Recorder(high_at=range(12, 40), stop_at=12)
    state = stopped.run(steps=40, save_every=0, log_every=1, sample_every=0, spikes=spikes())
    assert stopped.events[-1][:2] == ("save", int(state.step))


def test_spikes_are_not_looked_for_unless_asked():
    assert int(Recorder(high_at=range(6, 12)).run().step) == 12


def test_what_steps_wait_for_their_input_is_in_each_log(monkeypatch):
    """A clock that hardly moves but where a batch is made."""
    clock = [0.0]

    def waits():
        clock[0] += 0.5

    def now():
        clock[0] += 1e-6
        return clock[0]

    monkeypatch.setattr(loop.time, "perf_counter", now)
    recorder = Recorder(waits=waits)
    recorder.run()
    waited = {at: metrics["input_wait_seconds"] for at, metrics in recorder.logged}
    assert waited == pytest.approx({4: 2.0, 8: 2.0, 12: 2.0}, abs=1e-3)


def test_what_saves_cost_is_in_the_next_log(monkeypatch):
    """A clock that hardly moves but in `save`."""
    clock = [0.0]

    def now():
        clock[0] += 1e-3
        return clock[0]

    monkeypatch.setattr(saves.time, "perf_counter", now)

    class Slow(list):
        def append(self, event):
            clock[0] += 2.5 * (event[0] == "save")
            super().append(event)

    recorder = Recorder()
    recorder.events = Slow()
    recorder.run(steps=24, save_every=3, log_every=8, sample_every=0)
    assert [metrics.get("save_stall_seconds") for _, metrics in recorder.logged] == pytest.approx(
        [5.0, 7.5, 5.0], abs=0.1
    )


@pytest.mark.parametrize(("event", "at"), [("log", 4), ("save", 5), ("sample", 6)])
def test_a_sigterm_amid_any_hook_ends_training_there_with_all_saved_once(event, at):
    """No sample is drawn any more, which may take long; what was logged or saved already is not again."""
    recorder = Recorder()

    class Stopping(list):
        def append(self, entry):
            super().append(entry)
            if entry[:2] == (event, at):
                signal.raise_signal(signal.SIGTERM)

    recorder.events = Stopping()
    state = recorder.run(sample_every=5 if event != "sample" else 6)
    assert int(state.step) == at
    names = [entry[0] for entry in recorder.events if entry[1] == at]
    drawn = {"log": [], "save": ["sample"], "sample": ["sample"]}[event]  # what was due when the signal came is done
    assert sorted(names) == sorted(["log", "save", *drawn])


def test_a_signal_before_a_step_leaves_out_the_sample_that_is_due_after_it():
    batches = iter(range(1, 100))
    recorder = Recorder(waits=lambda: signal.raise_signal(signal.SIGTERM) if next(batches) == 6 else None)
    assert int(recorder.run().step) == 6
    assert [event[:2] for event in recorder.events][-2:] == [("log", 6), ("save", 6)]


def test_data_that_stall_after_a_signal_are_left_and_what_is_trained_is_saved(monkeypatch):
    """Once: where the last step was saved already, it is not saved again; before the first step nothing is."""
    monkeypatch.setattr(loop, "read_interruptibly", functools.partial(interruptible.read_interruptibly, grace=0.1))
    for last_step, saved in ((7, [("log", 7), ("save", 7)]), (10, [("log", 10), ("save", 10)]), (0, [])):
        count, ended = iter(range(100)), threading.Event()

        def wait(count=count, ended=ended, last_step=last_step):
            if next(count) == last_step:
                threading.Timer(0.1, signal.raise_signal, [signal.SIGTERM]).start()
                ended.wait(30)

        recorder = Recorder(waits=wait)
        begun = time.monotonic()
        assert int(recorder.run(log_every=5).step) == last_step
        ended.set()
        assert time.monotonic() - begun < 10
        assert [event[:2] for event in recorder.events if event[1] == last_step] == saved
        while interruptible.left_behind():
            time.sleep(0.01)


def test_a_sample_that_a_signal_left_behind_is_the_last_thing_before_the_save():
    """No step comes in between, which would wait for the devices that still draw."""
    recorder = Recorder()

    class Leaving(list):
        def append(self, entry):
            super().append(entry)
            if entry[0] == "sample":
                signal.raise_signal(signal.SIGTERM)
                raise Abandoned

    recorder.events = Leaving()
    assert int(recorder.run(sample_every=6).step) == 6
    assert [entry[0] for entry in recorder.events][-3:] == ["sample", "log", "save"]


def test_a_first_step_that_a_signal_left_behind_while_it_compiled_changes_nothing(monkeypatch):
    recorder = Recorder()

    def abandoned(*args):
        raise Abandoned

    monkeypatch.setattr(recorder, "step", abandoned)
    assert int(recorder.run(start=4).step) == 4
    assert recorder.events == []


def test_a_stop_asked_for_before_the_first_step_does_no_step():
    stop = faults.Stop()
    stop.signal = "SIGTERM"
    recorder = Recorder()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(faults.Stop, "agreed", lambda self, dispatch: True)
        assert int(recorder.run(start=4).step) == 4
    assert recorder.events == []


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
        return {"x": np.full((8, 1), self.handed - 1, np.float32), "other": np.arange(8)}

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
            np.asarray(batch["x"]).reshape(per_dispatch, 8)[:, 0], first + np.arange(per_dispatch)
        )
        assert position == first + per_dispatch
        assert set(batch) == {"x", "other"}  # whatever a batch has, but "index"
        assert not batch["x"].sharding.is_fully_replicated


class Indexed(Counting):
    """Batches that say which examples they are of."""

    def __next__(self):
        return super().__next__() | {"index": np.arange(8) + 100 * self.handed}


@pytest.mark.parametrize("per_dispatch", [1, 3])
def test_examples_are_told_as_their_batch_is_handed_out_not_as_it_is_made(per_dispatch):
    told = []
    batches = feed.device_batches(
        Indexed(), sharding.mesh(), steps_per_dispatch=per_dispatch, ahead=3, handed=lambda index: told.append(index)
    )
    for n in range(3):
        _, position = next(batches)
        assert len(told) == n + 1
        assert told[-1].tolist() == [100 * i + k for i in range(n * per_dispatch + 1, position + 1) for k in range(8)]


def test_means_by_time_are_exact_over_dispatches():
    """Whatever the dispatches hold: means of all losses of a part, parts without any left out."""
    rng = np.random.default_rng(0)
    t, losses = rng.uniform(0.21, 1, (3, 2, 64)), rng.normal(size=(3, 2, 64))
    window = [
        {"loss_by_time": jax.vmap(by_time)(jnp.asarray(ts), jnp.asarray(values))}
        for ts, values in zip(t, losses, strict=True)
    ]
    means = summarize(jax.device_get(window))
    assert list(means) == [f"loss_by_time/{i / 10:.1f}" for i in range(2, 10)]
    for i in range(2, 10):
        inside = (t > i / 10) & (t <= (i + 1) / 10)
        assert means[f"loss_by_time/{i / 10:.1f}"] == pytest.approx(losses[inside].mean(), abs=1e-5)


def test_the_last_and_first_time_are_in_the_last_and_first_part():
    binned = by_time(jnp.array([1.0, 1e-6, 0.1]), jnp.array([5.0, 7.0, 1.0]))
    np.testing.assert_allclose(binned.total, [8, 0, 0, 0, 0, 0, 0, 0, 0, 5])


def test_further_hooks_come_at_their_own_intervals_and_at_the_end():
    recorder, seen = Recorder(), []
    recorder.run(
        hooks=[
            Hook(5, lambda moment: seen.append(("a", moment.step, moment.ending))),
            Hook(0, lambda moment: seen.append("never")),
        ]
    )
    assert seen == [("a", 5, False), ("a", 10, False), ("a", 12, True)]


def test_a_signal_in_a_hook_ends_training_there_with_everything_saved():
    """The state that the hook saw is the last one, though its step was not to be saved."""
    recorder = Recorder()
    state = recorder.run(hooks=[Hook(7, lambda moment: signal.raise_signal(signal.SIGTERM))])
    assert int(state.step) == 7
    assert recorder.events[-1] == ("save", 7, 7)


def test_hooks_run_within_their_phase_and_see_all_metrics_up_to_their_step():
    """However many dispatches are in flight when a hook is due."""
    seen, phases, watched = [], [], []

    @contextlib.contextmanager
    def phase(name):
        phases.append(name)
        yield
        phases.append(f"end of {name}")

    recorder = Recorder()
    loop.fit(
        State(jnp.int32(0)),
        recorder.step,
        ((None, i) for i in range(100)),
        [Hook(3, lambda moment: seen.append((moment.step, list(watched), phases[-1])), phase="save")],
        steps=6,
        stop=faults.Stop(),
        watch=(lambda at, metrics, position: watched.append(at),),
        phase=phase,
    )
    assert seen == [(3, [1, 2, 3], "save"), (6, [1, 2, 3, 4, 5, 6], "save")]
    assert phases[:4] == ["input", "end of input", "compile", "end of compile"]
    assert phases.count("step") == 5


def test_the_first_step_of_each_shape_is_compilation_and_no_time_of_training(monkeypatch):
    """Shapes 0, 0, 1, 0, 1, 2: the first, third and last step compile, which takes 100 s each, and others 1 s."""
    shapes, phases, seen, clocks, now = [0, 0, 1, 0, 1, 2], [], set(), [], [0.0]
    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def step(state, batch):
        now[0] += 1 if len(batch["x"]) in seen else 100
        seen.add(len(batch["x"]))
        return State(state.step + 1), {"loss": jnp.float32(1)}

    @contextlib.contextmanager
    def phase(name):
        phases.append(name)
        yield

    loop.fit(
        State(jnp.int32(0)),
        step,
        (({"x": np.zeros(1 + shape)}, None) for shape in shapes),
        [Hook(1, lambda moment: clocks.append((moment.clock.steps, moment.clock.training)))],
        steps=len(shapes),
        stop=faults.Stop(),
        phase=phase,
    )
    assert clocks == [(0, 0), (1, 1), (1, 1), (2, 2), (3, 3), (3, 3)]
    assert [name for name in phases if name == "compile"] == ["compile"] * 3
    steps = [name for name in phases if name in ("compile", "step")]
    assert steps == [
        "compile",
        "step",
        "step",
        "compile",
        "step",
        "step",
        "step",
        "compile",
    ]  # drained before compiling


def test_a_later_compilation_that_is_left_behind_saves_the_step_before_it():
    saved = []

    def step(state, batch):
        if len(batch["x"]) > 1:
            raise Abandoned
        return State(state.step + 1), {"loss": jnp.float32(1)}

    state = loop.fit(
        State(jnp.int32(0)),
        step,
        (({"x": np.zeros(1 + (i == 3))}, i + 1) for i in range(9)),
        [Hook(2, lambda moment: saved.append((moment.step, moment.position, moment.ending)), at_end=True)],
        steps=9,
        stop=faults.Stop(),
    )
    assert int(state.step) == 3
    assert saved == [(2, 2, False), (3, 3, True)]


def test_the_steps_before_a_compilation_are_over_when_it_begins():
    """They would be part of its time, and a watchdog or a person would see them late."""
    events = []

    def step(state, batch):
        events.append("compiling" if len(batch["x"]) > 1 else "step")
        return State(state.step + 1), {"loss": jnp.float32(1)}

    loop.fit(
        State(jnp.int32(0)),
        step,
        (({"x": np.zeros(1 + (i == 3))}, None) for i in range(4)),
        [],
        steps=4,
        stop=faults.Stop(),
        watch=[lambda step, metrics, position: events.append(step)],
    )
    assert events == ["step", 1, "step", "step", 2, 3, "compiling", 4]
