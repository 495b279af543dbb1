"""Folders of images and zips of them."""

import json
import pickle
import shutil
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.data import files, transforms
from diffusion_jax.data.image_folder import image_folder
from diffusion_jax.data.sources import open_source
from diffusion_jax.errors import UserError

SHARED = Path(__file__).parents[2].parent / "shared/data"


def write(path, value=0):
    """A 3 x 2 PNG of one gray value."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((2, 3), value, np.uint8)).save(path, "PNG")


def zipped(folder):
    return shutil.make_archive(str(folder), "zip", folder)


def value(example):
    return int(transforms.decode(example["image"], channels=1, name=example["name"])[0, 0, 0])


def opened(folder, kind, split="train"):
    return image_folder(str(folder) if kind == "folder" else zipped(folder), split)


both = pytest.mark.parametrize("kind", ["folder", "zip"])


@pytest.fixture
def classes(tmp_path):
    """Two classes, c01 with 3 images and c00 with 2, under two folders and beside what must not count."""
    root = tmp_path / "set"
    for name, v in {"c01/b": 3, "c01/a": 2, "c01/deep/z": 4, "c00/y": 1, "c00/x": 0}.items():
        write(root / f"set/train/{name}.png", v)
    for hidden in ("set/train/.c/q.png", "set/train/__MACOSX/q.png", "__MACOSX/q.png", "set/train/c00/._x.png"):
        write(root / hidden)
    (root / "set/train/c00/notes.txt").write_text("not an image")
    return root


@both
def test_sub_folders_are_classes_in_the_order_of_names(classes, kind):
    source = opened(classes, kind)
    assert (source.class_names, source.num_classes, len(source)) == (("c00", "c01"), 2, 5)
    assert [(value(e), e["label"]) for e in source] == [(0, 0), (1, 0), (2, 1), (3, 1), (4, 1)]
    assert source[4]["name"].endswith("/set/train/c01/deep/z.png")
    assert "caption" not in source[0]


def test_a_zip_is_its_folder(classes):
    folder, archive = opened(classes, "folder"), opened(classes, "zip")
    assert folder.fingerprint == archive.fingerprint
    assert [(e["image"], e["label"]) for e in folder] == [(e["image"], e["label"]) for e in archive]


def test_the_fingerprint_tells_data_apart(classes, tmp_path):
    before = opened(classes, "folder").fingerprint
    moved = shutil.copytree(classes, tmp_path / "elsewhere")
    assert opened(moved, "folder").fingerprint == before
    (moved / "set/train/c00/x.png").rename(moved / "set/train/c01/x.png")
    assert opened(moved, "folder").fingerprint != before


def test_the_fingerprint_tells_labels_and_captions_apart(tmp_path):
    row = {"file_name": "0.png", "text": "a", "label": 0}
    sources = [opened(with_metadata(tmp_path, r), "folder") for r in (row, row | {"text": "b"}, row | {"label": 1})]
    assert len({source.fingerprint for source in sources}) == 3


@both
def test_splits_are_folders(tmp_path, kind):
    write(tmp_path / "set/train/a/0.png", 1)
    write(tmp_path / "set/test/a/0.png", 2)
    assert value(opened(tmp_path / "set", kind)[0]) == 1
    assert value(opened(tmp_path / "set", kind, "test")[0]) == 2
    with pytest.raises(UserError, match="no split 'val'; choose from test, train"):
        opened(tmp_path / "set", kind, "val")


@both
def test_loose_images_have_no_labels(tmp_path, kind):
    for i in (2, 0, 1):
        write(tmp_path / f"set/{i}.PNG", i)
    source = opened(tmp_path / "set", kind)
    assert [value(e) for e in source] == [0, 1, 2]
    assert source.num_classes is source.class_names is None
    assert "label" not in source[0]
    with pytest.raises(UserError, match="has no splits, so all of it is 'train', not 'test'"):
        opened(tmp_path / "set", kind, "test")


def with_metadata(folder, *rows):
    for i in range(3):
        write(folder / f"set/{i}.png", i)
    write(folder / "set/sub/9.png", 9)
    (folder / "set/metadata.jsonl").write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows))
    return folder / "set"


@both
def test_metadata_gives_images_captions_and_labels(tmp_path, kind):
    rows = [
        {"file_name": "2.png", "text": "zwei ½", "label": 4, "width": 3},
        {"file_name": "sub/9.png", "text": "nine", "label": 0},
        {"file_name": "2.png", "text": "two", "label": 1},
    ]
    source = opened(with_metadata(tmp_path, *rows), kind)
    expected = [(2, "zwei ½", 4), (9, "nine", 0), (2, "two", 1)]
    assert [(value(e), e["caption"], e["label"]) for e in source] == expected
    assert (source.num_classes, source.class_names) == (5, None)


def test_labels_by_name_are_numbered_in_order(tmp_path):
    rows = [{"file_name": f"{i}.png", "label": label} for i, label in enumerate(["tiger", "ant", "tiger"])]
    source = opened(with_metadata(tmp_path, *rows), "folder")
    assert ([e["label"] for e in source], source.class_names) == ([1, 0, 1], ("ant", "tiger"))
    assert "caption" not in source[0]


@both
@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (['{"file_name": "0.png"}', "", '{"file_name": "1.png"'], "metadata.jsonl, line 3: not JSON"),
        ([b"\xff\xfe".decode("latin1")], "metadata.jsonl, line 1: not JSON"),
        (["[1]"], r"line 1: expected an object with a file_name"),
        ([{"text": "no name"}], r"line 1: expected an object with a file_name"),
        ([{"file_name": "0.png"}, {"file_name": "7.png"}], "line 2: there is no file '7.png'"),
        ([{"file_name": "../outside.png"}], "line 1: there is no file '../outside.png'"),
        ([{"file_name": "/etc/hostname"}], "line 1: there is no file '/etc/hostname'"),
        ([{"file_name": "0.png", "text": 5}], "line 1: text must be a string; got 5"),
        ([{"file_name": "0.png", "label": -1}], "line 1: label must be .* got -1"),
        ([{"file_name": "0.png", "label": True}], "line 1: label must be .* got True"),
        ([{"file_name": "0.png", "label": 1.5}], "line 1: label must be .* got 1.5"),
        ([{"file_name": "0.png", "label": 1}, {"file_name": "1.png", "label": "a"}], "both numbers and names"),
        ([{"file_name": "0.png", "text": "a"}, {"file_name": "1.png"}], "line 2: it has file_name, but the first file"),
        ([""], "metadata.jsonl lists no images"),
    ],
)
def test_errors_in_metadata_name_the_line(tmp_path, kind, rows, message):
    write(tmp_path / "outside.png")
    with pytest.raises(UserError, match=message):
        opened(with_metadata(tmp_path, *rows), kind)


def test_a_missing_path():
    with pytest.raises(UserError, match="no folder or zip of images at /nowhere/at/all; check the path"):
        open_source("folder:/nowhere/at/all")


@both
def test_a_folder_without_images(tmp_path, kind):
    (tmp_path / "set/sub").mkdir(parents=True)
    (tmp_path / "set/sub/notes.txt").write_text("x")
    with pytest.raises(UserError, match=r"set(\.zip)?/sub holds no images, files that end in .png, "):
        opened(tmp_path / "set", kind)


@both
def test_an_empty_class(tmp_path, kind):
    write(tmp_path / "set/a/0.png")
    write(tmp_path / "set/b/0.png")
    (tmp_path / "set/c").mkdir()
    with pytest.raises(UserError, match=r"class folder .*set(\.zip)?/c holds no images"):
        opened(tmp_path / "set", kind)


@both
def test_loose_images_beside_classes(tmp_path, kind):
    write(tmp_path / "set/a/0.png")
    write(tmp_path / "set/1.png")
    with pytest.raises(UserError, match=r"holds both loose images, such as 1.png, and folders"):
        opened(tmp_path / "set", kind)


def test_a_file_that_is_no_zip(tmp_path):
    (tmp_path / "images.tar").write_bytes(b"x" * 1000)
    with pytest.raises(UserError, match=r"images.tar is neither a folder nor a whole zip"):
        image_folder(str(tmp_path / "images.tar"))


def test_a_truncated_zip(classes):
    data = Path(zipped(classes)).read_bytes()
    (classes / "cut.zip").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=r"cut.zip is neither a folder nor a whole zip"):
        image_folder(str(classes / "cut.zip"))


def test_a_damaged_entry_is_named(tmp_path):
    write(tmp_path / "set/0.png")
    archive = Path(zipped(tmp_path / "set"))
    data = bytearray(archive.read_bytes())
    data[60] ^= 255
    archive.write_bytes(data)
    with pytest.raises(UserError, match=r"set.zip/0.png can't be read \(.*\); make the zip anew"):
        image_folder(str(archive))[0]


def test_an_encrypted_entry_is_named(tmp_path):
    write(tmp_path / "set/0.png")
    archive = Path(zipped(tmp_path / "set"))
    data = bytearray(archive.read_bytes())
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = data.rindex(signature, 0, data.rindex(b"PK\x05\x06")) + flags
        data[at] |= 1
    archive.write_bytes(data)
    with pytest.raises(UserError, match=r"0.png can't be read \(.*encrypted.*\)"):
        image_folder(str(archive))[0]


def test_a_zip_bomb_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_FILE", 10_000)
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("0.png", bytes(10_001))
    with pytest.raises(UserError, match=r"bomb.zip/0.png unpacks to 10,001 bytes, more than 10,000"):
        image_folder(str(tmp_path / "bomb.zip"))[0]


def test_names_in_a_zip_cannot_lead_out(tmp_path):
    write(tmp_path / "a.png", 5)
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for name in ("in/a.png", "../out.png", "in/../../out.png", "/abs.png"):
            archive.writestr(name, (tmp_path / "a.png").read_bytes())
    source = image_folder(str(tmp_path / "set.zip"))
    assert [e["name"] for e in source] == [f"{tmp_path}/set.zip/in/a.png"]


def test_a_file_that_vanished_is_named(classes):
    source = opened(classes, "folder")
    (classes / "set/train/c00/x.png").unlink()
    with pytest.raises(UserError, match=r"set/train/c00/x.png can't be read \(.*No such file"):
        source[0]


def test_links_are_followed_but_not_round(tmp_path):
    write(tmp_path / "real/0.png", 6)
    for name in ("a", "b"):
        (tmp_path / "set" / name).mkdir(parents=True)
        (tmp_path / f"set/{name}/linked").symlink_to(tmp_path / "real")
        (tmp_path / f"set/{name}/up").symlink_to(tmp_path / "set")
    source = opened(tmp_path / "set", "folder")
    assert list(source.names) == ["a/linked/0.png", "b/linked/0.png"]
    assert [value(e) for e in source] == [6, 6]


@both
def test_pickled_sources_read_the_same(classes, kind):
    source = opened(classes, kind)
    first = source[3]  # the zip is open
    copy = pickle.loads(pickle.dumps(source))
    assert copy.fingerprint == source.fingerprint
    assert [copy[i] for i in range(5)] == [source[i] for i in range(5)]
    assert copy[3] == first


def test_a_zip_is_read_by_threads_at_once(tmp_path):
    for i in range(60):
        write(tmp_path / f"set/{i:02}.png", i)
    source = opened(tmp_path / "set", "zip")
    barrier = threading.Barrier(8)

    def read(start):
        barrier.wait()
        return [value(source[(start + k) % 60]) == (start + k) % 60 for k in range(120)]

    with ThreadPoolExecutor(8) as pool:
        assert all(all(result) for result in pool.map(read, range(8)))


needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"{SHARED} is not here")


@needs_shared
def test_cifar10_opens_fast():
    start = time.perf_counter()
    source = image_folder(str(SHARED / "cifar10_jpeg_train.zip"))
    seconds = time.perf_counter() - start
    assert (len(source), source.num_classes) == (50_000, 10)
    assert source.class_names[:3] == ("airplane", "automobile", "bird")
    np.testing.assert_array_equal(np.bincount(source.labels), np.full(10, 5000))
    example = source[5000]
    assert example["label"] == 1
    assert example["name"].endswith("cifar10_jpeg_train.zip/cifar10/train/automobile/0000.jpg")
    assert transforms.decode(example["image"], channels=3, name="").shape == (32, 32, 3)
    assert seconds < 2


@needs_shared
def test_emoji_have_captions():
    source = image_folder(str(SHARED / "emoji128.zip"))
    assert (len(source), source.num_classes) == (3543, None)
    assert source[0]["caption"] == "keycap #"
    assert source[0]["name"].endswith("emoji128.zip/emoji128/emoji_u0023_20e3.png")
    assert all(source.captions)
    assert transforms.decode(source[-1]["image"], channels=3, name="").shape == (128, 128, 3)
