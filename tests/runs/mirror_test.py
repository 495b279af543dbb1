"""A mirror of a workdir: what comes back from it is whole, of the same run, and enough to go on."""

import contextlib
import shutil
from pathlib import Path

import fsspec
import jax
import numpy as np
import pytest

from diffusion_jax.cli.main import main
from diffusion_jax.errors import UserError
from diffusion_jax.report.metrics import read_metrics
from diffusion_jax.runs.workdir import mirror as mirror_module
from diffusion_jax.runs.workdir.mirror import Mirror, MirrorError
from diffusion_jax.runs.workdir.restored import restore
from diffusion_jax.train import manifest
from diffusion_jax.train.checkpoint import SaveError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def address(tmp_path, monkeypatch):
    monkeypatch.setattr(mirror_module, "WAITS", (0.0,))
    yield f"memory://{tmp_path.name}"
    fsspec.filesystem("memory").rm(f"/{tmp_path.name}", recursive=True)


def write_step(root, step, kind="checkpoints"):
    folder = root / kind / str(step)
    (folder / "ema" / "empty").mkdir(parents=True)
    (folder / "ema" / "array").write_bytes(bytes([step]) * 100)
    (folder / "commit_success.txt").touch()
    manifest.write(folder)


def write_run(root, *steps):
    for step in steps:
        write_step(root, step)
    (root / "samples").mkdir(parents=True)
    (root / "samples" / "grid.png").write_bytes(b"png")
    (root / "config.json").write_text("{}")
    (root / ".hidden.part").write_text("half")


def contents(root):
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_what_is_fetched_is_the_newest_step_and_all_that_is_not_a_checkpoint(tmp_path, address):
    write_run(tmp_path / "a", 10, 20)
    write_step(tmp_path / "a", 15, "snapshots")
    Mirror(address, tmp_path / "a").begin()
    assert Mirror(address, tmp_path / "b").fetch() == 20
    expected = contents(tmp_path / "a")
    del expected[".hidden.part"]
    assert contents(tmp_path / "b") == {k: v for k, v in expected.items() if not k.startswith("checkpoints/10/")}
    assert manifest.verify(tmp_path / "b/checkpoints/20").status == manifest.VERIFIED  # empty folders and all


def test_a_copy_cut_short_anywhere_leaves_the_step_before(tmp_path, address, monkeypatch):
    root = tmp_path / "a"
    write_run(root, 10)
    Mirror(address, root).begin()
    write_step(root, 20)
    shutil.rmtree(root / "checkpoints/10")
    memory = fsspec.filesystem("memory")
    put, left = type(memory).put_file, []

    def put_some(self, *args, **kwargs):
        if not left:
            raise OSError("the line is cut")
        left.pop()
        return put(self, *args, **kwargs)

    fetched = []
    for files in range(4):
        left[:] = [None] * files
        with monkeypatch.context() as patch:
            patch.setattr(type(memory), "put_file", put_some)
            mirror = Mirror(address, root)
            mirror._copied |= {path: stamp(root / path) for path in ("config.json", "mirror.json", "samples/grid.png")}
            with pytest.raises(MirrorError, match="the line is cut") if files < 3 else contextlib.nullcontext():
                mirror.push()
        fetched.append(Mirror(address, tmp_path / f"b{files}").fetch())
    assert fetched == [10, 10, 10, 20]  # an array, the commit, the manifest


def stamp(path):
    return path.stat().st_size, path.stat().st_mtime_ns


def test_of_what_is_damaged_there_the_step_before_is_taken_and_nothing_where_there_is_none(tmp_path, address):
    write_run(tmp_path / "a", 10, 20)
    mirror = Mirror(address, tmp_path / "a")
    mirror.begin()
    memory = fsspec.filesystem("memory")
    memory.pipe_file(f"/{tmp_path.name}/checkpoints/20/ema/array", b"\0" * 100)
    assert Mirror(address, tmp_path / "b").fetch() == 10
    assert not (tmp_path / "b/checkpoints/20").exists()
    memory.rm_file(f"/{tmp_path.name}/checkpoints/10/ema/array")
    with pytest.raises(UserError, match=r"step 20: ema/array differs from its SHA-256; step 10: ema/array is missing"):
        Mirror(address, tmp_path / "c").fetch()
    assert not list((tmp_path / "c").rglob("*.json"))


def test_only_what_changed_is_copied_and_what_is_gone_is_taken_away(tmp_path, address, monkeypatch):
    root = tmp_path / "a"
    write_run(root, 10, 20)
    mirror = Mirror(address, root)
    mirror.begin()
    memory = fsspec.filesystem("memory")
    put, seen = type(memory).put_file, []

    def record(self, source, target, **kwargs):
        seen.append(Path(source).relative_to(root).as_posix())
        return put(self, source, target, **kwargs)

    monkeypatch.setattr(type(memory), "put_file", record)
    mirror.push()
    assert seen == []
    shutil.rmtree(root / "checkpoints/10")
    (root / "checkpoints/30").mkdir()  # not complete: it has no manifest
    (root / "config.json").write_text('{"seed": 1}')
    mirror.push()
    assert seen == ["config.json"]
    there = memory.find(f"/{tmp_path.name}")
    assert not [path for path in there if "/10/" in path or "/30" in path]
    assert any("/20/" in path for path in there)


def test_a_workdir_that_is_behind_its_mirror_catches_up_and_one_that_is_ahead_stays(tmp_path, address):
    write_run(tmp_path / "a", 10)
    Mirror(address, tmp_path / "a").begin()
    shutil.copytree(tmp_path / "a", tmp_path / "old")
    write_step(tmp_path / "a", 20)
    Mirror(address, tmp_path / "a").push()
    write_step(tmp_path / "a", 30)
    for name, steps in (("old", ["10", "20"]), ("a", ["10", "20", "30"])):
        Mirror(address, tmp_path / name).catch_up()
        assert sorted(path.name for path in (tmp_path / name / "checkpoints").iterdir()) == steps


def test_a_snapshot_ahead_of_the_checkpoints_fetches_none(tmp_path, address, monkeypatch):
    write_run(tmp_path / "a", 10)
    write_step(tmp_path / "a", 15, "snapshots")
    Mirror(address, tmp_path / "a").begin()
    shutil.rmtree(tmp_path / "a/snapshots/15")
    write_step(tmp_path / "a", 12)
    monkeypatch.setattr(Mirror, "fetch", lambda self: pytest.fail("fetched"))
    Mirror(address, tmp_path / "a").catch_up()


def test_a_file_that_goes_while_others_are_copied_is_left_out(tmp_path, address, monkeypatch):
    write_run(tmp_path / "a", 10)
    loose = Mirror._loose
    monkeypatch.setattr(Mirror, "_loose", lambda self: [*loose(self), "evaluations/unfinished.npz"])
    Mirror(address, tmp_path / "a").begin()
    assert Mirror(address, tmp_path / "b").fetch() == 10


def test_a_mirror_in_its_own_workdir_is_refused(tmp_path):
    for inside in (tmp_path / "a", tmp_path / "a/mirror"):
        with pytest.raises(UserError, match="lies in the workdir"):
            Mirror(f"file://{inside}", tmp_path / "a")
    Mirror(f"file://{tmp_path}", tmp_path / "a")


def test_a_mirror_of_another_run_is_refused_and_left_as_it_was(tmp_path, address):
    for name in "ab":
        write_run(tmp_path / name, 10)
    Mirror(address, tmp_path / "a").begin()
    memory = fsspec.filesystem("memory")
    there = {path: memory.cat_file(path) for path in memory.find(f"/{tmp_path.name}")}
    for root in (tmp_path / "b", tmp_path / "b"):
        with pytest.raises(UserError, match="is of another run than"):
            Mirror(address, root).catch_up()
        (tmp_path / "b" / mirror_module.NAME).write_text('{"run": "another"}')
    assert {path: memory.cat_file(path) for path in memory.find(f"/{tmp_path.name}")} == there


@pytest.mark.parametrize(
    ("address", "message"),
    [("/some/folder", "is an address such as gs://"), ("nothing://run", "nothing://run is not at hand")],
)
def test_an_address_that_is_none(tmp_path, address, message):
    with pytest.raises(UserError, match=message):
        Mirror(address, tmp_path)


def test_a_mirror_that_cannot_be_written_is_tried_again_and_named(tmp_path, monkeypatch):
    monkeypatch.setattr(mirror_module, "WAITS", (0.0, 0.0))
    write_run(tmp_path / "a", 10)
    (tmp_path / "file").write_text("in the way")
    tries = []
    upload = Mirror._upload
    monkeypatch.setattr(Mirror, "_upload", lambda self, path: tries.append(path) or upload(self, path))
    with pytest.raises(SaveError, match=r"copying mirror\.json to the mirror file://.*/file/run failed: .*is whole"):
        Mirror(f"file://{tmp_path}/file/run", tmp_path / "a").begin()
    assert tries == ["mirror.json"] * 3


def test_a_run_goes_on_from_its_mirror_on_another_machine(tmp_path, capsys):
    def train(name, steps, **changes):
        flags = {"checkpoint.every": 2, "sample.every": 0, "log_every": 1, "train.steps": steps} | changes
        given = [f"--config.{key}={value}" for key, value in flags.items()]
        assert main(["train", f"--config={ROOT / 'configs/tiny.py'}", f"--workdir={tmp_path / name}", *given]) == 0

    address = f"file://{tmp_path}/bucket/run"
    train("whole", 6)
    train("lost", 4, **{"checkpoint.mirror": address})
    shutil.rmtree(tmp_path / "lost")
    capsys.readouterr()
    train("new", 6, **{"checkpoint.mirror": address})
    said = capsys.readouterr().out
    assert f"step 4 of the mirror {address} is now in {tmp_path / 'new'}" in said
    assert "resuming from step 4" in said

    whole, new = (restore(tmp_path / name, step=None, average=True, overrides={}) for name in ("whole", "new"))
    assert whole.step == new.step == 6
    jax.tree.map(np.testing.assert_array_equal, whole.params, new.params)
    records = [read_metrics(tmp_path / name / "metrics.jsonl") for name in ("whole", "new")]
    losses = [[record["loss"] for record in each] for each in records]
    assert len(losses[0]) == 6
    assert losses[0] == losses[1]
    mirrored = Path(address.removeprefix("file://"))
    assert manifest.listing(mirrored / "checkpoints/6") == manifest.listing(tmp_path / "new/checkpoints/6")
    assert len((mirrored / "metrics.jsonl").read_text().splitlines()) == 6
