"""What files beside images say of them, in every form that people have."""

import json
import unicodedata
import zipfile

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.data import transforms
from diffusion_jax.data.image_folder import image_folder
from diffusion_jax.errors import UserError

CAPTIONED = frozenset({"caption"})


def write(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((2, 3), value, np.uint8)).save(path, "PNG")


def value(example):
    return int(transforms.decode(example["image"], channels=1, name=example["name"])[0, 0, 0])


@pytest.fixture
def folder(tmp_path):
    for i in range(3):
        write(tmp_path / f"set/{i}.png", i)
    return tmp_path / "set"


def told(source):
    return [(value(e), e["caption"]) for e in source]


EXPECTED = [(0, "a \u2028 cat"), (1, "a dog, large")]
ROWS = [{"file_name": "./0.png", "text": "a \u2028 cat"}, {"file_name": "1.png", "text": "a dog, large"}]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("metadata.jsonl", "\ufeff" + "\r\n".join(json.dumps(row) for row in ROWS) + "\r\n"),
        ("metadata.jsonl", "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS)),
        ("metadata.csv", '\ufefffile_name,text\r\n./0.png,a \u2028 cat\r\n1.png,"a dog, large"\r\n'),
        ("metadata.csv", "id,text;file_name\n".replace("id,", "id;") + "7;a \u2028 cat;0.png\n8;a dog, large;1.png\n"),
        ("metadata.csv", "file_name\ttext\n0.png\ta \u2028 cat\n1.png\ta dog, large\n"),
    ],
)
def test_captions_are_read_in_every_form_of_a_table(folder, name, text):
    (folder / name).write_bytes(text.encode())
    source = image_folder(str(folder), needs=CAPTIONED)
    assert told(source) == EXPECTED
    assert source.left_out == ["2.png"]


def test_captions_in_a_text_file_beside_each_image(folder):
    (folder / "0.txt").write_bytes(b"\xef\xbb\xbfa cat\r\n")
    (folder / "2.txt").write_text("")
    (folder / "README.txt").write_text("about")
    source = image_folder(str(folder), needs=CAPTIONED)
    assert (told(source), source.left_out) == ([(0, "a cat"), (2, "")], ["1.png"])


def test_texts_beside_images_of_classes_keep_their_classes(tmp_path):
    for i, name in enumerate(("b/0", "b/1", "a/0")):
        write(tmp_path / f"set/{name}.png", i)
        (tmp_path / f"set/{name}.txt").write_text(f"caption {i}")
    source = image_folder(str(tmp_path / "set"), needs=CAPTIONED)
    assert [(value(e), e["label"], e["caption"]) for e in source] == [
        (2, 0, "caption 2"),
        (0, 1, "caption 0"),
        (1, 1, "caption 1"),
    ]


@pytest.mark.parametrize("name", ["0.txt", "metadata.csv"])
def test_what_a_model_is_not_told_changes_nothing(folder, name):
    """A run without captions on such a folder, of an earlier version, goes on."""
    before = image_folder(str(folder)).fingerprint
    (folder / name).write_text("file_name,text\n0.png,x\n")
    assert image_folder(str(folder)).fingerprint == before
    assert len(image_folder(str(folder))) == 3


def test_captions_of_a_column_that_is_chosen(folder):
    rows = [{"file_name": f"{i}.png", "prompt": f"p{i}", "text": f"t{i}"} for i in range(3)]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert [e["caption"] for e in image_folder(str(folder), caption="prompt", needs=CAPTIONED)] == ["p0", "p1", "p2"]
    assert [e["caption"] for e in image_folder(str(folder), needs=CAPTIONED)] == ["t0", "t1", "t2"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "metadata.jsonl",
            '{"file_name": "0.png", "prompt": "x"}',
            r"no column 'text' .* it has file_name, prompt: name one with data.caption",
        ),
        (
            "metadata.csv",
            "file_name,prompt\n0.png,x\n",
            r"metadata.csv has no column 'text' .*; it has file_name, prompt",
        ),
        ("captions.json", "{}", r"set has no captions: .* captions.json is not read"),
        (
            "metadata.csv",
            "name,text\n0.png,x\n",
            r"metadata.csv, line 1: expected .* file_name among them; got name, text",
        ),
        ("metadata.csv", "file_name,text\n0.png\n", r"metadata.csv, line 2: it has 1 cells, and the first line 2"),
        ("metadata.csv", 'file_name,text\n0.png,"x\n', r"metadata.csv, line 2: not CSV"),
        (
            "metadata.csv",
            "file_name,text\n9.png,x\n",
            r"metadata.csv, line 2: there is no file '9.png' in its folder; add it",
        ),
        (
            "metadata.csv",
            "file_name,text\n0.PNG,x\n",
            r"line 2: there is no file '0.PNG' in its folder; there is '0.png'",
        ),
        ("metadata.csv", "file_name,text\n", r"metadata.csv lists no images"),
    ],
)
def test_captions_that_are_not_found_are_named(folder, name, text, message):
    (folder / name).write_text(text)
    with pytest.raises(UserError, match=message):
        image_folder(str(folder), needs=CAPTIONED)


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv", "0.txt"])
def test_another_encoding_is_named(folder, name):
    (folder / name).write_bytes('{"file_name": "0.png", "text": "caf\u00e9"}'.encode("latin1"))
    with pytest.raises(UserError, match=rf"{name} is not UTF-8"):
        image_folder(str(folder), needs=CAPTIONED)


@pytest.mark.parametrize(("stored", "written"), [("NFD", "NFC"), ("NFC", "NFD")])
def test_names_are_found_in_either_unicode_form(tmp_path, stored, written):
    names = {form: unicodedata.normalize(form, "caf\u00e9.png") for form in (stored, written)}
    assert names["NFC"] != names["NFD"]
    write(tmp_path / "set" / names[stored], 7)
    (tmp_path / "set/metadata.jsonl").write_text(json.dumps({"file_name": names[written], "text": "x"}))
    assert told(image_folder(str(tmp_path / "set"), needs=CAPTIONED)) == [(7, "x")]


def test_names_with_backslashes_are_found(tmp_path):
    write(tmp_path / "set/in/0.png", 3)
    (tmp_path / "set/metadata.csv").write_text("file_name,text\nin\\0.png,x\n")
    assert told(image_folder(str(tmp_path / "set"), needs=CAPTIONED)) == [(3, "x")]


@pytest.mark.parametrize("before", ["", "./", ".\\"])
def test_a_zip_of_windows_has_folders(tmp_path, before):
    write(tmp_path / "0.png", 4)
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for name in ("dog\\0.png", "cat\\0.png", "__MACOSX\\cat\\._0.png", "..\\out\\0.png"):
            archive.writestr(before + name, (tmp_path / "0.png").read_bytes())
    source = image_folder(str(tmp_path / "set.zip"))
    assert (source.class_names, [(value(e), e["label"]) for e in source]) == (("cat", "dog"), [(4, 0), (4, 1)])


@pytest.mark.parametrize(
    "kept", ["@eaDir", "__MACOSX", ".thumbnails", "#recycle", "@Recycle", "$RECYCLE.BIN", "lost+found"]
)
def test_what_systems_keep_beside_files_is_no_class(tmp_path, kept):
    for name in ("cat/0.jpg", "dog/0.jpg", f"{kept}/x.jpg", f"dog/{kept}/0.jpg/SYNOFILE_THUMB_S.jpg"):
        write(tmp_path / "set" / name)
    (tmp_path / "set/Thumbs.db").write_bytes(b"x")
    source = image_folder(str(tmp_path / "set"))
    assert (source.class_names, list(source.names)) == (("cat", "dog"), ["cat/0.jpg", "dog/0.jpg"])


def test_labels_of_a_csv_where_there_are_no_class_folders(folder):
    (folder / "metadata.csv").write_text("file_name,label\n0.png,10\n1.png,9\n2.png,9\n")
    source = image_folder(str(folder), needs={"label"})
    assert ([e["label"] for e in source], source.num_classes, source.class_names) == ([10, 9, 9], 11, None)
    (folder / "metadata.csv").write_text("file_name,label\n0.png,n10\n1.png,n9\n2.png,n9\n")
    source = image_folder(str(folder), needs={"label"})
    assert ([e["label"] for e in source], source.class_names) == ([1, 0, 0], ("n9", "n10"))


def test_one_class_folder_is_a_class_where_classes_are_wanted(tmp_path):
    write(tmp_path / "set/cat/0.png", 5)
    source = image_folder(str(tmp_path / "set"), needs={"label"})
    assert (source.class_names, source[0]["label"], source.num_classes) == (("cat",), 0, 1)
    assert image_folder(str(tmp_path / "set")).num_classes is None
    write(tmp_path / "splits/train/0.png")
    assert image_folder(str(tmp_path / "splits"), needs={"label"}).num_classes is None
