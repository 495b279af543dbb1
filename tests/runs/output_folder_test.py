"""A folder of outputs is complete or as it was, whatever kind of folder it is."""

import os
import signal
from pathlib import Path

import pytest

from diffusion_jax.errors import UserError
from diffusion_jax.runs.workdir.output_folder import OutputFolder, check_file, check_writable

OLD = {"manifest.json": "old", "000000.png": "old", "000001.png": "old"}
NEW = {"manifest.json": "new", "000000.png": "new"}


def contents(folder):
    return {path.name: path.read_text() for path in folder.iterdir()}


def fill(folder, files):
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)


def write(out, files=NEW, **options):
    with OutputFolder(out, marker="manifest.json", **options).written() as partial:
        fill(partial, files)


@pytest.fixture(params=["new", "new below new", "empty", "current", "link", "link to nothing", "mount-like"])
def out(request, tmp_path, monkeypatch):
    """(--out as it is given, where its files are to be)."""
    place = tmp_path / "place"
    if request.param == "new below new":
        place = tmp_path / "above" / "place"
    if request.param not in ("new", "new below new", "link to nothing"):
        place.mkdir()
    if request.param == "current":
        monkeypatch.chdir(place)
        return Path("."), place
    if "link" in request.param:
        (tmp_path / "link").symlink_to(place)
        return tmp_path / "link", place
    if request.param == "mount-like":  # a folder that can be neither renamed nor replaced, as a mount is
        rename = Path.rename
        monkeypatch.setattr(
            Path, "rename", lambda self, to: rename(self, to) if place not in (self, to) else os.rename("/proc", "/p")
        )
    return place, place


def test_every_kind_of_folder_is_filled_and_filled_anew(out, tmp_path):
    out, place = out
    OutputFolder(out).check()
    write(out, OLD)
    inode = place.stat().st_ino
    assert contents(place) == OLD
    write(out)
    assert contents(place) == NEW
    assert place.stat().st_ino == inode  # a shell that stands in it still stands in it
    assert not list(tmp_path.rglob(".unfinished*"))


def test_checking_leaves_nothing(out, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    OutputFolder(out[0]).check()
    assert sorted(tmp_path.rglob("*")) == before


def fail(out, error):
    with OutputFolder(out).written() as partial:
        fill(partial, NEW)
        raise error


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_failure_while_writing_leaves_all_as_it_was(tmp_path, error):
    fill(tmp_path / "out", OLD)
    for out in (tmp_path / "out", tmp_path / "above" / "none"):
        with pytest.raises(type(error)):
            fail(out, error)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert contents(tmp_path / "out") == OLD


@pytest.mark.parametrize("failing", range(5))
def test_a_failure_at_any_move_puts_the_old_back_and_keeps_the_new(tmp_path, monkeypatch, failing):
    out = tmp_path / "out"
    fill(out, OLD)
    rename, moves = Path.rename, []

    def fails(self, to):
        moves.append(to)
        if len(moves) == failing + 1:
            raise OSError(5, "Input/output error")
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(
        UserError, match=r"Input/output error; all that was made is in (.*/\.unfinished-\w+/new)"
    ) as said:
        write(out)
    kept = Path(str(said.value).rpartition(" is in ")[2])
    assert contents(kept) == NEW
    assert {path.name: path.read_text() for path in out.iterdir() if path.is_file()} == OLD
    assert OutputFolder(out).entries() == sorted(OLD)


def test_the_marker_is_there_only_while_all_else_is(tmp_path, monkeypatch):
    """Whoever waits for manifest.json never sees it beside a part of the files."""
    out = tmp_path / "out"
    fill(out, OLD)
    rename, seen = Path.rename, []

    def watched(self, to):
        rename(self, to)
        files = {path.name: path.read_text() for path in out.iterdir() if path.is_file()}
        seen.append(files if "manifest.json" in files else None)

    monkeypatch.setattr(Path, "rename", watched)
    write(out)
    assert seen[:-1] == [None] * (len(seen) - 1)
    assert seen[-1] == NEW


def test_an_interrupt_between_two_moves_waits_for_the_last(tmp_path, monkeypatch):
    out = tmp_path / "out"
    fill(out, OLD)
    rename = Path.rename

    def interrupted(self, to):
        rename(self, to)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(out)
    assert contents(out) == NEW


def test_entries_that_are_not_replaced_stay(tmp_path):
    out = tmp_path / "out"
    fill(out, OLD | {"notes.txt": "mine"})
    write(out, replaces=OLD.__contains__)
    assert contents(out) == NEW | {"notes.txt": "mine"}
    with pytest.raises(UserError, match="another file has come there"):
        write(out, NEW | {"notes.txt": "theirs"}, replaces=OLD.__contains__)
    assert {path.name: path.read_text() for path in out.iterdir() if path.is_file()} == NEW | {"notes.txt": "mine"}


def test_what_cannot_be_written_is_said_before(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        OutputFolder(tmp_path / "file").check()
    for check in (check_writable, OutputFolder.check, check_file):
        below = tmp_path / "file" / "below" / "out"
        with pytest.raises(UserError, match="cannot be written.*Not a directory"):
            check(OutputFolder(below) if check is OutputFolder.check else below)
    with pytest.raises(UserError, match="is a folder; give a file"):
        check_file(tmp_path)

    def read_only(*args, **options):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("tempfile.mkdtemp", read_only)
    with pytest.raises(UserError, match="cannot be written, in .*: Read-only file system; give another place"):
        OutputFolder(tmp_path / "out").check()


def test_more_pixels_than_the_disk_holds_are_refused(tmp_path):
    folder = OutputFolder(tmp_path / "out")
    folder.check_room(10**6)
    with pytest.raises(UserError, match="GiB of pixels do not fit on its disk"):
        folder.check_room(10**18)
