"""Checkpoints: what is restored is what was saved, or the damage is named and the step before it taken."""

import concurrent.futures
import resource
import shutil
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental import multihost_utils

from diffusion_jax.errors import UserError
from diffusion_jax.train import manifest, sharding
from diffusion_jax.train.arrays import replicated_like
from diffusion_jax.train.checkpoint import Checkpoints, SaveError
from diffusion_jax.train.provenance import source_commit
from diffusion_jax.train.state import create

MESH = sharding.mesh(devices=jax.devices()[:1])


def state_at(step):
    params = {"a": jnp.arange(300.0).reshape(3, 100) * step, "b": {"c": jnp.full(7, step, jnp.float32)}}
    return create(params, optax.adam(1e-3))._replace(step=jnp.int32(step))


ABSTRACT = replicated_like(jax.eval_shape(lambda: state_at(1)), MESH)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    root = tmp_path_factory.mktemp("saved") / "checkpoints"
    checkpoints = Checkpoints(root, keep=5)
    for step in (10, 20):
        checkpoints.save(state_at(step), position={"position": step * 8}, config="{}")
    checkpoints.close()
    return root


@pytest.fixture
def copy(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "checkpoints")


def files_of(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def assert_restores(root, step, *, read_only=True):
    """The newest trusted step is step, with the very arrays that were saved."""
    checkpoints = Checkpoints(root, read_only=read_only, keep=5)
    try:
        assert checkpoints.latest() == step
        state, position = checkpoints.restore(ABSTRACT, step)
        jax.tree.map(np.testing.assert_array_equal, state, state_at(step))
        assert position == {"position": step * 8}
        assert checkpoints.meta(step)["commit"] == source_commit()
    finally:
        checkpoints.close()


def test_the_newest_is_restored_as_it_was_saved(saved, capsys):
    assert_restores(saved, 20)
    assert not capsys.readouterr().err


@pytest.mark.parametrize("damage", ["flipped", "truncated", "missing", "no manifest", "never committed", "partial"])
def test_a_damaged_newest_step_is_passed_over_and_named(copy, capsys, damage):
    largest = max(files_of(copy / "20"), key=lambda path: path.stat().st_size)
    data = largest.read_bytes()
    if damage == "flipped":
        largest.write_bytes(data[:-9] + bytes([data[-9] ^ 4]) + data[-8:])
    elif damage == "truncated":
        largest.write_bytes(data[:-1])
    elif damage == "missing":
        largest.unlink()
    elif damage == "no manifest":
        largest = copy / "20" / manifest.NAME
        largest.unlink()
    elif damage == "never committed":
        (copy / "20" / "commit_success.txt").unlink()
    else:
        (copy / "30" / "ema").mkdir(parents=True)
    step, before = 20 if damage == "partial" else 10, files_of(copy)
    assert_restores(copy, step)
    error = capsys.readouterr().err
    assert f"passed over {copy / ('30' if damage == 'partial' else '20')}: " in error
    if "commit" in damage or damage == "partial":
        assert "never committed" in error
    else:
        assert largest.name in error
    assert before == files_of(copy)  # a reader touches nothing


def test_every_random_damage_to_the_newest_is_passed_over(copy, capsys):
    """Issue 5: at least 50 byte flips, truncations, deletions and empty folders."""
    rng = np.random.default_rng(0)
    files = files_of(copy / "20")
    for n in range(60):
        path = files[rng.integers(len(files))]
        data = path.read_bytes()
        if n % 4 == 0 and data:
            at = rng.integers(len(data))
            path.write_bytes(data[:at] + bytes([data[at] ^ (1 << rng.integers(8))]) + data[at + 1 :])
        elif n % 4 == 1 and data:
            path.write_bytes(data[: rng.integers(len(data))])
        elif n % 4 == 2:
            (path.parent / "empty").mkdir()
        else:
            path.unlink()
        checkpoints = Checkpoints(copy, read_only=True)
        assert checkpoints.latest() == 10, path
        checkpoints.close()
        path.write_bytes(data)
        if (path.parent / "empty").exists():
            (path.parent / "empty").rmdir()
        assert "20" in capsys.readouterr().err
    assert_restores(copy, 20)


def test_a_run_goes_on_past_a_damaged_step_and_saves_it_again(copy, capsys):
    (copy / "20" / "meta" / "metadata").write_text("{}")
    (copy / "30").mkdir()
    checkpoints = Checkpoints(copy, keep=2)
    assert checkpoints.latest() == 10
    for step in (20, 30):
        checkpoints.save(state_at(step), position={"position": step * 8}, config="{}")
    checkpoints.close()
    assert f"it is now {copy / '20.damaged'}" in capsys.readouterr().err
    assert sorted(path.name for path in copy.iterdir()) == ["20", "20.damaged", "30"]
    assert_restores(copy, 30)


def test_a_step_that_was_asked_for_is_checked_too(copy):
    (copy / "10" / "commit_success.txt").write_text("x")
    checkpoints = Checkpoints(copy, read_only=True)
    with pytest.raises(UserError, match="10 is damaged: commit_success.txt differs"):
        checkpoints.restore_tree("ema", ABSTRACT.ema, 10)
    checkpoints.close()


def test_nothing_but_damage_is_never_taken_for_nothing(copy):
    """Or a run would begin anew over the remains of the old."""
    for step in ("10", "20"):
        (copy / step / "ema" / "_METADATA").unlink()
    checkpoints = Checkpoints(copy)
    with pytest.raises(UserError, match=r"every checkpoint .* is damaged \(step 20: ema/_METADATA is missing; step 10"):
        checkpoints.latest()
    checkpoints.close()
    assert (copy / "20").exists()


def test_checkpoints_of_before_manifests_are_taken_and_said_so(copy, capsys):
    for step in ("10", "20"):
        (copy / step / manifest.NAME).unlink()
    assert_restores(copy, 20)
    assert "taken unverified" in capsys.readouterr().err


def test_a_failed_background_save_is_heard_of_and_leaves_the_others(copy, monkeypatch):
    checkpoints = Checkpoints(copy, keep=1)

    def full(self, directory):
        raise OSError(28, "No space left on device", str(directory))

    with monkeypatch.context() as patch:
        patch.setattr("orbax.checkpoint.CompositeCheckpointHandler.finalize", full)
        checkpoints.save(state_at(30), position={}, config="{}")
        concurrent.futures.wait([checkpoints._saving[1]])  # as a loop's steps would, without asking
    with pytest.raises(SaveError, match="saving step 30 in .* failed, earlier .* No space left on device"):
        checkpoints.raise_failed_save()
    checkpoints.close()
    assert_restores(copy, 20)


def test_a_disk_that_takes_no_more_is_one_sentence(copy, capfd):
    """A real limit of the system's: no file may grow beyond 100 kB."""
    big = jax.random.normal(jax.random.key(0), (100_000,))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    checkpoints = Checkpoints(copy, keep=1)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(SaveError, match="saving step 30 .* failed") as caught:  # noqa: PT012
            checkpoints.save(state_at(30)._replace(params={"a": big}), position={}, config="{}")
            checkpoints.wait()
        checkpoints.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "\n" not in str(caught.value)
    assert "Traceback" not in capfd.readouterr().err
    assert_restores(copy, 20)


@pytest.fixture
def disk(tmp_path):
    """A filesystem of 1 MB in memory."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    try:
        made = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        pytest.skip(f"there is no mount here: {error}")
    if made.returncode:
        pytest.skip(f"mount is not for this user: {made.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_is_one_sentence_and_leaves_the_others(saved, disk, capfd):
    root = shutil.copytree(saved, disk / "checkpoints")
    before = {path: path.read_bytes() for path in files_of(root)}
    noise = jax.random.normal(jax.random.key(0), (500_000,))  # does not compress
    checkpoints = Checkpoints(root, keep=1)
    with pytest.raises(SaveError, match=r"saving step 30 in .* failed, earlier .* No space left on device$") as caught:  # noqa: PT012
        checkpoints.save(state_at(30)._replace(params={"a": noise}), position={}, config="{}")
        checkpoints.wait()
    checkpoints.close()
    assert "\n" not in str(caught.value)
    assert "Traceback" not in capfd.readouterr().err
    assert {path: path.read_bytes() for path in before} == before
    assert_restores(root, 20)


def test_a_disk_that_turns_read_only_is_one_sentence_and_is_read(saved, disk):
    root = shutil.copytree(saved, disk / "checkpoints")
    checkpoints = Checkpoints(root, keep=1)
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    with pytest.raises(SaveError, match=r"saving step 30 in .* failed, earlier .* Read-only file system$") as caught:  # noqa: PT012
        checkpoints.save(state_at(30), position={}, config="{}")
        checkpoints.wait()
    checkpoints.close()
    assert "\n" not in str(caught.value)
    assert_restores(root, 20)


def test_processes_of_one_run_go_on_from_the_step_that_the_first_chose(saved, monkeypatch):
    """The others do not look for themselves, while the first may be moving a damaged step aside."""
    checkpoints = Checkpoints(saved, read_only=True)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    monkeypatch.setattr(checkpoints, "steps", lambda: pytest.fail("looked"))
    for told, step in [(10, 10), (-1, None)]:
        monkeypatch.setattr(multihost_utils, "broadcast_one_to_all", lambda _, told=told: np.int32(told))
        assert checkpoints.latest() == step
    monkeypatch.undo()
    checkpoints.close()
