"""A save while the next steps overwrite the state: what is restored is the state that was saved."""

import dataclasses
import threading

import jax
import jax._src.test_util as jtu
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from diffusion_jax.errors import UserError
from diffusion_jax.train import device_copy, sharding
from diffusion_jax.train.arrays import abstract_like
from diffusion_jax.train.checkpoint import Checkpoints, SaveError
from diffusion_jax.train.state import create

MESH = sharding.mesh(2, devices=jax.devices()[:2])
STEP = jax.jit(lambda state: jax.tree.map(lambda a: a + 1, state), donate_argnums=0)


def split_state():
    """One array split over two devices, one on both of them: Orbax writes a half from each."""
    state = create({"split": jnp.arange(2.0**20).reshape(8, -1), "whole": jnp.ones((4, 3))}, optax.adam(1e-3))
    where = lambda a: NamedSharding(MESH, PartitionSpec("data") if a.shape[:1] == (8,) else PartitionSpec())  # noqa: E731
    return jax.jit(lambda: jax.tree.map(lambda a: a + 1, state), out_shardings=jax.tree.map(where, state))()


@pytest.fixture
def state():
    return split_state()


def steps_on(state, count=5):
    for _ in range(count):
        state = STEP(state)
    return jax.block_until_ready(state)


@pytest.mark.parametrize("choice", device_copy.CHOICES)
def test_steps_that_overwrite_the_state_change_nothing_of_what_is_saved(tmp_path, state, choice):
    like = abstract_like(state, jax.tree.map(lambda a: a.sharding, state))
    expected = jax.tree.map(lambda a: np.array(a, copy=True), state)
    checkpoints = Checkpoints(tmp_path / "checkpoints", copy=choice)
    checkpoints.save(state, position={"at": 8}, config="{}")
    after = steps_on(state)
    assert checkpoints.latest() == 1
    restored, position = checkpoints.restore(like, 1)
    jax.tree.map(np.testing.assert_array_equal, restored, expected)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b + 5), after, expected)
    assert position == {"at": 8}
    checkpoints.close()


@pytest.fixture
def held(tmp_path, monkeypatch):
    """Checkpoints with copies on the devices, whose way to the host begins when the event is set."""
    checkpoints, gate, begin = (
        Checkpoints(tmp_path / "checkpoints", copy="device"),
        threading.Event(),
        Checkpoints._begin,
    )

    def late(self, *given, **named):
        assert gate.wait(60)
        begin(self, *given, **named)

    monkeypatch.setattr(Checkpoints, "_begin", late)
    yield checkpoints, gate
    gate.set()
    checkpoints.close()


def test_a_copy_is_read_after_the_steps_that_overwrite_the_state_and_then_freed(held, state, monkeypatch):
    checkpoints, gate = held
    copies, copy = [], device_copy.Copier.copy
    monkeypatch.setattr(device_copy.Copier, "copy", lambda *given: copies.append(copy(*given)) or copies[-1])
    like = abstract_like(state, jax.tree.map(lambda a: a.sharding, state))
    expected = jax.tree.map(lambda a: np.array(a, copy=True), state)
    checkpoints.save(state, position={}, config="{}")
    steps_on(state)
    gate.set()
    checkpoints.wait()
    assert len(copies) == 1
    assert all(a.is_deleted() for a in jax.tree.leaves(copies))
    jax.tree.map(np.testing.assert_array_equal, checkpoints.restore(like, 1)[0], expected)


def test_whoever_asks_for_steps_waits_for_the_copy(held, state):
    checkpoints, gate = held
    checkpoints.save(state, position={}, config="{}")
    threading.Timer(0.2, gate.set).start()
    assert checkpoints.steps() == [1]


def test_a_copy_that_cannot_be_written_is_heard_of_and_freed(held, state, monkeypatch):
    checkpoints, gate = held

    def full(self, *given, **named):
        raise OSError(28, "No space left on device")

    checkpoints.save(state, position={}, config="{}")
    checkpoints.raise_failed_save()  # nothing yet
    monkeypatch.setattr("orbax.checkpoint.CheckpointManager.save", full)
    gate.set()
    with pytest.raises(SaveError, match="saving step 1 in .* failed, .*: No space left on device"):
        checkpoints.wait()
    assert checkpoints.latest() is None


FLOAT = np.dtype(np.float32)


class Gpu:
    platform = "gpu"

    def __init__(self, **stats):
        self.stats = stats or None

    def memory_stats(self):
        return self.stats


@dataclasses.dataclass(frozen=True)
class Array:
    """A MiB on each of its devices."""

    sharding: object
    shape: tuple[int, ...] = (2**18,)
    dtype: np.dtype = FLOAT


@pytest.mark.parametrize(
    ("stats", "fits"),
    [
        ({}, False),
        ({"bytes_limit": 2**24}, False),
        ({"bytes_limit": 2**24, "peak_bytes_in_use": 2**22}, True),
        ({"bytes_limit": 2**24, "peak_bytes_in_use": 2**24 - 2**21}, False),  # two of three arrays
    ],
)
def test_auto_copies_on_the_devices_where_no_program_has_used_the_memory(stats, fits):
    class Layout:
        addressable_devices = (Gpu(bytes_limit=2**30, peak_bytes_in_use=0), Gpu(**stats))

        def shard_shape(self, shape):
            return shape

    state = [Array(Layout())] * 3
    assert device_copy.Copier("auto")._fits(state) == fits
    assert device_copy.Copier("device")._fits(state)
    assert not device_copy.Copier("host")._fits(state)


def test_a_state_without_memory_for_a_copy_is_saved_by_orbax_alone(tmp_path, state, monkeypatch, capsys):
    def full(tree):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    expected = jax.tree.map(lambda a: np.array(a, copy=True), state)
    like = abstract_like(state, jax.tree.map(lambda a: a.sharding, state))
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    monkeypatch.setattr(checkpoints._copier, "_program", lambda tree, to_host: full)
    checkpoints.save(state, position={}, config="{}")
    steps_on(state)
    jax.tree.map(np.testing.assert_array_equal, checkpoints.restore(like, 1)[0], expected)
    checkpoints.close()
    assert "no copy of the state was made, so training waits for it: RESOURCE_EXHAUSTED" in capsys.readouterr().err


def test_what_is_compiled_ahead_is_what_a_save_runs(tmp_path, state):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.prepare(state).result()
    with jtu.count_jit_compilation_cache_miss() as compiled:
        checkpoints.save(state, position={}, config="{}")
    assert compiled() == 0
    checkpoints.close()


def test_another_choice_is_refused(tmp_path):
    with pytest.raises(UserError, match="checkpoint.copy is one of auto, device, host; got 'gpu'"):
        Checkpoints(tmp_path, copy="gpu")
