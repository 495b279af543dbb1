"""The manifest of a folder: whatever is changed under it afterwards is found and named."""

import os

import numpy as np
import pytest

from diffusion_jax.train import manifest


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "20"
    rng = np.random.default_rng(0)
    for name, size in {"commit.txt": 0, "ema/d/0f": 40_000, "ema/manifest.json": 300, "meta/metadata": 17}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(rng.bytes(size))
    (root / "empty").mkdir()
    manifest.write(root)
    return root


def test_an_untouched_folder_verifies(folder):
    assert manifest.verify(folder) == (manifest.VERIFIED, "")
    assert sorted(path.name for path in folder.iterdir()) == ["commit.txt", "ema", "empty", "manifest.json", "meta"]


def test_every_random_flip_truncation_and_deletion_is_found_and_named(folder):
    rng = np.random.default_rng(1)
    files = [path for path in folder.rglob("*") if path.is_file()]
    for n in range(120):
        path = files[rng.integers(len(files))]
        before = path.read_bytes()
        if n % 3 == 0 and before:
            at = rng.integers(len(before))
            path.write_bytes(before[:at] + bytes([before[at] ^ (1 << rng.integers(8))]) + before[at + 1 :])
        elif n % 3 == 1 and before:
            path.write_bytes(before[: rng.integers(len(before))])
        else:
            path.unlink()
        status, reason = manifest.verify(folder)
        missing = path == folder / manifest.NAME and not path.exists()
        assert status == (manifest.UNVERIFIED if missing else manifest.DAMAGED)
        assert str(path.relative_to(folder)) in reason
        path.write_bytes(before)
    assert manifest.verify(folder).status == manifest.VERIFIED


@pytest.mark.parametrize("change", ["emptied", "added file", "added folder", "folder gone"])
def test_changed_folders_are_found(folder, change):
    if change == "emptied":
        for path in (folder / "ema" / "d").iterdir():
            path.unlink()
    elif change == "added file":
        (folder / "ema" / "extra").write_bytes(b"")
    elif change == "added folder":
        (folder / "ema" / "extra").mkdir()
    else:
        (folder / "empty").rmdir()
    assert manifest.verify(folder).status == manifest.DAMAGED


def test_a_manifest_that_could_not_be_written_is_none_at_all(folder, monkeypatch):
    (folder / manifest.NAME).unlink()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        manifest.write(folder)
    assert manifest.verify(folder).status == manifest.UNVERIFIED
    assert not list(folder.glob(".manifest*"))
