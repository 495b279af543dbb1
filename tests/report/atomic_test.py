import concurrent.futures
import os

import pytest

from diffusion_jax.report.atomic import replace_file


def test_creates_parents_and_replaces(tmp_path):
    path = tmp_path / "a" / "b" / "file"
    replace_file(path, b"first, the longer")
    replace_file(path, b"second")
    assert path.read_bytes() == b"second"
    assert os.listdir(path.parent) == ["file"]


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, failing):
    path = tmp_path / "file"
    replace_file(path, b"old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, failing, full)
    with pytest.raises(OSError, match="No space left"):
        replace_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_writers_at_once_and_a_reader_see_whole_files_only(tmp_path):
    path = tmp_path / "file"
    whole = [bytes([i]) * 100_000 for i in range(4)]
    replace_file(path, whole[0])
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        writes = [pool.submit(replace_file, path, data) for data in whole * 10]
        while not all(write.done() for write in writes):
            assert path.read_bytes() in whole
    assert [write.result() for write in writes] == [None] * 40
    assert os.listdir(tmp_path) == ["file"]


def test_mode_is_that_of_any_new_file(tmp_path):
    (tmp_path / "plain").write_bytes(b"")
    replace_file(tmp_path / "file", b"")
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "plain").stat().st_mode
