"""Shards of images, Parquet, tar and array_record: the same examples as of a folder, on disks and in buckets."""

import pickle
import sys
from concurrent.futures import ThreadPoolExecutor

import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest
import shard_files as files
from shard_files import CLASSES, KINDS, WRITE

from diffusion_jax.data import description, storage, transforms
from diffusion_jax.data.classes import Renumbered
from diffusion_jax.data.example import captions_of
from diffusion_jax.data.sources import open_source
from diffusion_jax.errors import UserError

BOTH = frozenset({"label", "caption"})
COUNT = 18

each = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Indexes and copies of this test alone."""
    monkeypatch.setenv("DIFFUSION_JAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """The address of a folder in memory, for fsspec a bucket as any other."""
    monkeypatch.setattr(storage, "WAITS", (0.0,))
    yield f"memory://{tmp_path.name}"
    fsspec.filesystem("memory").rm(f"/{tmp_path.name}", recursive=True)


def opened(kind, address, **options):
    return open_source(f"{kind}:{address}", needs=BOTH, **options)


def contents(source):
    """(pixels, class, caption) of all examples."""
    names = source.class_names or CLASSES  # of array_record, numbers in the order of CLASSES
    return [
        (
            transforms.decode(example["image"], channels=1, name=example["name"]).tolist(),
            names[example["label"]],
            example["caption"],
        )
        for example in source
    ]


@each
def test_shards_hold_what_the_folder_holds(tmp_path, kind):
    files.write_folder(tmp_path / "folder", COUNT)
    WRITE[kind](tmp_path / "shards", COUNT)
    folder, source = opened("folder", tmp_path / "folder"), opened(kind, tmp_path / "shards")
    assert contents(source) == contents(folder)
    assert len(source) == COUNT
    assert source.num_classes == folder.num_classes == 3
    assert source.class_names == (None if kind == "array_record" else folder.class_names)
    told = [source[i]["name"] for i in (0, COUNT - 1)]
    ends = {
        "parquet": ("train-00000-of-00002.parquet, row 0", "train-00001-of-00002.parquet, row 8"),
        "webdataset": ("train-00000.tar/0000.png", "train-00001.tar/0017.png"),
        "array_record": (
            "data-train.array_record-00000-of-00002, record 0",
            "data-train.array_record-00001-of-00002, record 8",
        ),
    }[kind]
    assert told == [f"{tmp_path}/shards/{end}" for end in ends]


@each
def test_a_bucket_is_read_as_a_disk(tmp_path, kind, bucket):
    WRITE[kind](tmp_path / "here", COUNT)
    WRITE[kind](bucket, COUNT)
    here, there = opened(kind, tmp_path / "here"), opened(kind, bucket)
    assert contents(there) == contents(here)
    assert there.fingerprint == here.fingerprint
    assert opened(kind, f"file://{tmp_path}/here").fingerprint == here.fingerprint
    assert there[3]["name"].startswith(f"{bucket.replace('://', ':///')}/")


@each
def test_the_fingerprint_tells_data_apart(tmp_path, kind):
    for name, count in (("one", 6), ("other", 7)):
        WRITE[kind](tmp_path / name, count, shards=1)
    assert len({opened(kind, tmp_path / name).fingerprint for name in ("one", "other")}) == 2


@each
def test_splits_are_those_of_the_names(tmp_path, kind):
    for split, count in (("train", 9), ("validation", 6), ("test", 3)):
        WRITE[kind](tmp_path / "shards", count, shards=1, split=split)
    lengths = [len(opened(kind, tmp_path / "shards", split=split)) for split in ("train", "validation", "test")]
    assert lengths == [9, 6, 3]
    with pytest.raises(UserError, match=r"has no split 'val'; choose from test, train, validation"):
        opened(kind, tmp_path / "shards", split="val")


def test_shards_without_a_split_in_their_names_are_all_train(tmp_path):
    files.write_webdataset(tmp_path / "shards", 4, split="part")
    assert len(opened("webdataset", tmp_path / "shards")) == 4
    with pytest.raises(UserError, match=r"has no splits in the names of its tar shards, so all of it is 'train'"):
        opened("webdataset", tmp_path / "shards", split="test")
    files.write_webdataset(tmp_path / "shards", 4, split="test")
    with pytest.raises(UserError, match=r"with a split in their names \(test\) and others such as .*part-00000.tar"):
        opened("webdataset", tmp_path / "shards")


def test_a_folder_above_may_be_the_split(tmp_path):
    for split in ("train", "test"):
        files.write_parquet(tmp_path / "shards" / split, 4, split="000")
    assert len(opened("parquet", tmp_path / "shards", split="test")) == 4


def test_names_with_braces_and_stars(tmp_path):
    files.write_webdataset(tmp_path / "shards", 12, shards=12, split="part")
    at = tmp_path / "shards"
    for pattern, count in {
        f"{at}/part-{{00000..00003}}.tar": 4,
        f"{at}/part-0000{{1,2}}.tar": 2,
        f"{at}/part-*1.tar": 2,
        f"{at}/part-0000[0-4].tar": 5,
        f"{at}/part-00011.tar": 1,
        f"{tmp_path}/{{shards,}}/part-00000.tar": None,
        f"{at}/part-{{00010..00014}}.tar": None,
        f"{at}/part-{{00000..99999999}}.tar": None,
        f"{at}/*.jpg": None,
        f"{at}-none": None,
    }.items():
        if count is None:
            with pytest.raises(
                UserError, match=r"there is no .*; check|no range of 1 to 1,000,000|holds no tar shards"
            ):
                opened("webdataset", pattern)
        else:
            assert len(opened("webdataset", pattern)) == count


@each
def test_pickled_sources_read_the_same(tmp_path, kind):
    WRITE[kind](tmp_path, 6)
    source = opened(kind, tmp_path)
    first = source[0]
    again = pickle.loads(pickle.dumps(source))
    assert again[0] == first
    assert (again.fingerprint, again.num_classes, len(again)) == (source.fingerprint, source.num_classes, 6)


def test_an_index_is_made_once(tmp_path, cache, monkeypatch, capfd):
    files.write_webdataset(tmp_path / "shards", 6)
    before = contents(opened("webdataset", tmp_path / "shards"))
    assert len(list(cache.rglob("*.json"))) == 2
    with monkeypatch.context() as patch:
        patch.setattr(storage.Shards, "open", lambda *_: pytest.fail("read again"))
        assert contents(opened("webdataset", tmp_path / "shards")) == before
    for file in cache.rglob("*.json"):
        file.write_text("damaged")
    assert contents(opened("webdataset", tmp_path / "shards")) == before
    files.write_webdataset(tmp_path / "shards", 9)  # other content, so another version of the file
    assert len(opened("webdataset", tmp_path / "shards")) == 9
    monkeypatch.setenv("DIFFUSION_JAX_CACHE", "/proc/none")
    assert len(opened("webdataset", tmp_path / "shards")) == 9
    assert capfd.readouterr().err.count("/proc/none/tar cannot be written") == 1


def test_members_of_a_tar_are_examples_by_the_name_up_to_the_first_dot(tmp_path):
    png = files.picture(0)
    with open(tmp_path / "a.tar", "wb") as file, files.tarfile.open(fileobj=file, mode="w") as archive:
        for name, data in {
            "./deep/1.json": b'{"label": 2, "caption": "one", "title": "first"}',
            "./deep/1.PNG": png,
            "2.webp": png,
            "2.cls": b"10\n",
            "2.txt": " two é ".encode(),
            "2.json": b'{"label": 7, "text": "not this", "title": "second"}',
            "._2.jpg": b"of a Mac",
            "readme.md": b"of a person",
        }.items():
            files.add(archive, name, data)
    source = opened("webdataset", tmp_path)
    assert [(e["name"], e["label"], e["caption"]) for e in source] == [
        (f"{tmp_path}/a.tar/./deep/1.PNG", 2, "one"),
        (f"{tmp_path}/a.tar/2.webp", 10, "two é"),
    ]
    assert (source.num_classes, source.class_names) == (11, None)
    assert [e["caption"] for e in opened("webdataset", tmp_path, caption="title")] == ["first", "second"]


def tar(path, members):
    with files.tarfile.open(path, "w") as archive:
        for name, data in members.items():
            files.add(archive, name, data)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"1.png": b"", "1.jpg": b""}, r"has two images of one example, 1.png and 1.jpg; keep one"),
        ({"1.png": b"", "1.cls": b"cat", "2.png": b""}, r"a.tar/2.png has no label, and others have"),
        ({"1.png": b"", "1.cls": b"cat", "2.png": b"", "2.cls": b"1"}, r"both numbers and names as labels"),
        ({"1.png": b"", "1.json": b"["}, r"the .json beside .*1.png is not JSON"),
        ({"1.png": b"", "1.json": b"[]"}, r"the .json beside .*1.png is no object"),
        ({"1.png": b"", "1.json": b'{"caption": 3}'}, r"1.png has the caption 3 in its .json; expected a text"),
        ({"1.npy": b""}, r"holds no images, members that end in .png"),
        ({"1.png": b"", "1.cls": b"1"}, r"has no captions: no .txt, and no .json with 'text'"),
    ],
)
def test_wrong_tars_are_one_sentence(tmp_path, members, message):
    tar(tmp_path / "a.tar", members)
    with pytest.raises(UserError, match=message) as error:
        opened("webdataset", tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("length", [100, 0, 2000])
@each
def test_files_that_are_cut_off_are_one_sentence(tmp_path, kind, length):
    WRITE[kind](tmp_path, 6, shards=1)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(
        UserError, match=r"is no whole(, uncompressed)? (tar|Parquet file|array_record) \(.*fetch it again"
    ):
        opened(kind, tmp_path)


@each
def test_a_folder_without_such_files_is_one_sentence(tmp_path, kind):
    files.write_folder(tmp_path, 3)
    with pytest.raises(UserError, match=r"holds no .*, files that end in .*; check the path"):
        opened(kind, tmp_path)
    with pytest.raises(UserError, match=r"there is no .*nowhere; check the path"):
        opened(kind, tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"hop://x/y is not at hand: Protocol not known"):
        opened(kind, "hop://x/y")


def test_the_package_of_a_bucket_that_is_missing_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(UserError, match=r"s3://bucket/set is not at hand: .*s3fs"):
        opened("webdataset", "s3://bucket/set")


def test_parquet_without_its_package_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(UserError, match=r"needs the package pyarrow; install diffusion-jax\[parquet\]"):
        opened("parquet", tmp_path)


def write_table(path, columns, metadata=None):
    found = files.pa.table(columns)
    pq.write_table(found if metadata is None else found.replace_schema_metadata(metadata), path)


def test_columns_by_other_names(tmp_path):
    png = files.picture(0)
    kinds = files.features(img={"_type": "Image"}, fine={"_type": "ClassLabel", "names": ["x", "y"]})
    write_table(tmp_path / "a.parquet", {"img": [{"bytes": png}] * 2, "fine": [1, -1], "prompt": ["a", None]}, kinds)
    source = opened("parquet", tmp_path, caption="prompt")
    assert (source.class_names, source[0]["label"], source[0]["caption"], source[1]["caption"]) == (
        ("x", "y"),
        1,
        "a",
        "",
    )
    assert "label" not in source[1]  # Hugging Face's sign for a label that is not told
    write_table(tmp_path / "a.parquet", {"jpg": [png] * 2, "label": ["dog", "cat"], "caption": ["a", "b"]})
    source = opened("parquet", tmp_path)
    assert (source.class_names, source[0]["label"], source[1]["caption"]) == (("cat", "dog"), 1, "b")
    write_table(tmp_path / "a.parquet", {"png": [png] * 2, "label": [0, 4], "text": ["a", "b"]})
    assert (opened("parquet", tmp_path).num_classes, opened("parquet", tmp_path).class_names) == (5, None)


PNG = {"image": [{"bytes": files.picture(0)}]}


@pytest.mark.parametrize(
    ("columns", "metadata", "message"),
    [
        ({"x": [1.0]}, None, r"has no column of images, .*; it has x; plain arrays are read by arrays:FILE"),
        ({"a": PNG["image"], "b": PNG["image"]}, None, r"several columns of images, a, b, and none is called image"),
        (PNG, None, r"has no column 'text' of captions; its texts are none: name one with data.caption"),
        (PNG | {"prompt": ["a"]}, None, r"no column 'text' of captions; its texts are prompt"),
        (
            PNG | {"text": ["a"], "fine": [0], "coarse": [0]},
            files.features(
                fine={"_type": "ClassLabel", "names": ["x"]}, coarse={"_type": "ClassLabel", "names": ["y"]}
            ),
            r"several columns of classes, fine, coarse, and none is called label",
        ),
        ({"audio": PNG["image"]}, files.features(audio={"_type": "Audio"}), r"no column of images"),
    ],
)
def test_wrong_columns_are_one_sentence(tmp_path, columns, metadata, message):
    write_table(tmp_path / "a.parquet", columns, metadata)
    with pytest.raises(UserError, match=message):
        opened("parquet", tmp_path)


def test_two_data_sets_of_parquet_in_one_folder_are_one_sentence(tmp_path):
    write_table(tmp_path / "a.parquet", PNG | {"text": ["a"]})
    write_table(tmp_path / "b.parquet", PNG | {"caption": ["a"]})
    with pytest.raises(UserError, match=r"b.parquet has other columns than .*a.parquet"):
        opened("parquet", tmp_path)


def test_a_row_without_bytes_is_named(tmp_path):
    write_table(tmp_path / "a.parquet", {"image": [PNG["image"][0], None], "text": ["a", "b"]})
    with pytest.raises(UserError, match=r"a.parquet, row 1 has no bytes of an image"):
        opened("parquet", tmp_path)[1]


def test_records_that_are_images(tmp_path):
    files.write_records(tmp_path / "a.array_record", [files.picture(i) for i in range(3)])
    source = open_source(f"array_record:{tmp_path}")
    assert [e["image"] for e in source] == [files.picture(i) for i in range(3)]
    assert (source.num_classes, "label" in source[0]) == (None, False)
    with pytest.raises(UserError, match=r"record 0 is an image without a caption"):
        opened("array_record", tmp_path)


def test_a_folder_of_tfds_has_its_names(tmp_path):
    drawn = open_source("shapes:8,5", data_dir=str(tmp_path))
    (folder,) = (path.parent for path in tmp_path.rglob("features.json"))
    source = opened("array_record", folder)
    assert source.class_names == drawn.class_names
    assert [e["image"] for e in source] == [e["image"] for e in drawn]
    assert len(opened("array_record", folder, split="test")) == 1000


def test_a_folder_of_tfds_in_a_bucket_is_copied_without_other_splits(tmp_path, bucket, cache):
    drawn = open_source("shapes:8,5", data_dir=str(tmp_path / "tfds"))
    (folder,) = (path.parent for path in tmp_path.rglob("features.json"))
    fsspec.filesystem("memory").put(f"{folder}/", f"/{tmp_path.name}/set/", recursive=True)
    source = opened("array_record", f"{bucket}/set")
    assert [e["image"] for e in source] == [e["image"] for e in drawn]
    assert not list(cache.rglob("*test*"))


def test_records_of_another_kind_are_one_sentence(tmp_path):
    for record, message in {
        b"\x00\x01": r"neither an encoded image nor a tf.train.Example",
        files.tf_example_pb2.Example().SerializeToString(): r"neither an encoded image nor a tf.train.Example",
        files.example(b"no picture", "cat", ""): r"record 0 has no image; its features are image, label, text",
    }.items():
        files.write_records(tmp_path / "a.array_record", [record])
        with pytest.raises(UserError, match=message):
            opened("array_record", tmp_path)


def test_a_bucket_that_fails_is_asked_again_and_no_example_is_skipped(bucket, monkeypatch):
    files.write_webdataset(bucket, 6)
    source = opened("webdataset", bucket)
    whole, failures = type(source.shards.files).cat_file, [OSError("reset"), None]

    def cat_file(self, *arguments, **options):
        if (error := failures.pop(0) if failures else OSError("gone")) is not None:
            raise error
        return whole(self, *arguments, **options)

    monkeypatch.setattr(type(source.shards.files), "cat_file", cat_file)
    assert source[0]["image"] == files.picture(0)
    with pytest.raises(storage.StorageError, match=r"train-00000.tar can't be read \(gone\)"):
        source[1]


def test_captions_and_a_survey_read_no_more_than_they_need(tmp_path):
    """Of a large set, captions without images, and a few row groups."""
    files.write_parquet(tmp_path / "parquet", 200, shards=2, group=4)
    files.write_webdataset(tmp_path / "webdataset", 200)
    for kind in ("parquet", "webdataset"):
        source = opened(kind, tmp_path / kind)
        assert list(captions_of(source, 150)) == [caption for *_, caption in files.rows(200)][:150]
        assert list(captions_of(Renumbered(source, CLASSES, (0, 1, 2)), 2)) == [
            "picture 0 of a cat",
            "picture 1 of a cat",
        ]
        assert source.bytes_read.take() == 0
    source = opened("parquet", tmp_path / "parquet")
    found = description.examples_of(source)
    assert len(found) == len({example["name"] for example in found}) == 64
    assert found[0]["name"].endswith("train-00000-of-00002.parquet, row 0")
    assert found[-1]["name"].endswith("train-00001-of-00002.parquet, row 99")
    assert source.bytes_read.take() == sum(source.groups[i].stored for i in description.spread(50, 16))


def test_row_groups_are_read_once_for_all_threads_and_a_window_is_held(tmp_path):
    files.write_parquet(tmp_path, 64, shards=2, group=8)
    source = opened("parquet", tmp_path, shuffle_bytes=10**9)
    read = []
    whole = type(source)._group
    source._cache._load = lambda number: read.append(number) or whole(source, number)
    order = np.random.default_rng(0).permutation(64)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda i: source[int(i)]["image"], order)) == [files.picture(int(i)) for i in order]
    assert sorted(read) == list(range(8))
