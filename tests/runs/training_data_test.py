"""What a run says of its data before it starts, and what it refuses."""

import json

import numpy as np
import pytest
from PIL import Image as Picture

from diffusion_jax import experiment
from diffusion_jax.config import base
from diffusion_jax.data import description
from diffusion_jax.data.pipeline import Order, train_batches
from diffusion_jax.data.readers import Maps
from diffusion_jax.data.sources import open_source
from diffusion_jax.errors import UserError
from diffusion_jax.modalities import Image
from diffusion_jax.runs.train import training_data
from diffusion_jax.runs.workdir.paths import Workdir


def write(folder, *sizes, mode="L"):
    folder.mkdir(parents=True, exist_ok=True)
    for i, (height, width) in enumerate(sizes):
        Picture.new(mode, (width, height)).save(folder / f"{i:03d}.png")
    return folder


def said(folder, capsys, size=(), **changes):
    config = base()
    config.data.source, config.data.shape = f"folder:{folder}", size
    config.update_from_flattened_dict(changes)
    training_data.opened(experiment.resolved(config), Workdir(folder.parent / "run"))
    return capsys.readouterr().out.splitlines()


def test_own_pictures_keep_their_size_where_none_is_asked_for(tmp_path, capsys):
    (line,) = said(write(tmp_path / "own", *[(24, 40)] * 3), capsys)
    assert line == "data: 3 images of 24 x 40 gray: as they are"


def test_own_pictures_of_several_sizes_need_one_to_be_asked_for(tmp_path, capsys):
    folder = write(tmp_path / "own", (24, 40), (24, 40), (30, 30))
    with pytest.raises(UserError, match=r"have 2 sizes: 24 x 40 \(2\), 30 x 30 \(1\); set data.shape="):
        said(folder, capsys)
    (line,) = said(folder, capsys, size=(8, 8, 1))
    assert line.startswith("data: 3 images of 24-30 x 30-40 gray: shorter side to 8, centre crop to 8 x 8")


@pytest.mark.parametrize(
    ("resize", "sizes", "done"),
    [
        ("crop", [(24, 40)], "shorter side to 16, centre crop to 16 x 16, 60% of the picture"),
        ("pad", [(24, 40)], "scaled to fit 16 x 16, white around 60% of the area"),
        (
            "pad",
            [(8, 8), (16, 8)],
            "scaled to fit 16 x 16 (up to 2 times larger), white around at least 50% of the area",
        ),
        ("pad", [(16, 16)], "as they are"),
        ("stretch", [(24, 40)], "stretched to 16 x 16, sides up to 1.67 times out of proportion"),
        ("stretch", [(32, 32)], "stretched to 16 x 16"),
    ],
)
def test_what_is_done_to_images_is_said(tmp_path, capsys, resize, sizes, done):
    folder = write(tmp_path / "own", *sizes)
    (line,) = said(folder, capsys, size=(16, 16, 1), **{"data.modality": f"image(resize='{resize}')"})
    assert line.endswith(f" gray: {done}")


def test_an_unknown_resize_and_a_map_of_a_stretched_image_are_refused(tmp_path, capsys):
    with pytest.raises(UserError, match=r"resize='squeeze' of images is none of crop, pad, stretch"):
        said(write(tmp_path / "own", (8, 8)), capsys, size=(16, 16, 1), **{"data.modality": "image(resize='squeeze')"})
    source = open_source("shapes:8,3", data_dir=str(tmp_path))
    with pytest.raises(UserError, match=r"semantic maps are scaled as images are cropped"):
        train_batches(source, Image(resize="stretch"), (16, 16, 3), Order(0, 1), readers=(Maps(4),))
    train_batches(source, Image(), (16, 16, 3), Order(0, 1), readers=(Maps(4),)).close()


@pytest.mark.parametrize(
    ("sizes", "mode", "size", "line"),
    [
        ([(8, 8)] * 2, "L", (8, 8, 1), "2 images of 8 x 8 gray: as they are"),
        ([(16, 16)], "RGB", (16, 16, 3), "1 images of 16 x 16 RGB: as they are"),
        ([(16, 16)], "RGB", (16, 16, 1), "1 images of 16 x 16 RGB: colours to gray"),
        ([(16, 16)], "L", (16, 16, 3), "1 images of 16 x 16 gray: gray to RGB"),
        ([(16, 16)], "RGBA", (16, 16, 3), "1 images of 16 x 16 RGB with transparency: transparency to white"),
        ([(16, 16)], "RGBA", (16, 16, 4), "1 images of 16 x 16 RGB with transparency: as they are"),
        ([(16, 32)], "L", (32, 64, 1), "1 images of 16 x 32 gray: scaled to cover 32 x 64 (up to 2 times larger)"),
        (
            [(24, 40), (80, 40)],
            "L",
            (16, 16, 1),
            "2 images of 24-80 x 40 gray: shorter side to 16, centre crop to 16 x 16, at least 50% of the picture",
        ),
    ],
)
def test_what_is_done_to_images(tmp_path, capsys, sizes, mode, size, line):
    assert said(write(tmp_path / "own", *sizes, mode=mode), capsys, size)[0] == f"data: {line}"


def test_only_some_of_many_are_read(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(description, "LOOKED_AT", 4)
    monkeypatch.setattr(description.examples_of, "__defaults__", (4,))
    folder = write(tmp_path / "own", *[(16, 16)] * 9, (99, 16))
    assert said(folder, capsys, (16, 16, 1))[0] == (
        "data: 10 images of 16-99 x 16 gray (by the headers of 4): shorter side to 16, centre crop to 16 x 16, "
        "at least 16% of the picture"
    )


def test_a_photograph_is_described_upright(tmp_path):
    exif = Picture.Exif()
    exif[0x0112] = 8
    Picture.new("RGB", (40, 24)).save(tmp_path / "a.jpg", exif=exif)
    assert description.header((tmp_path / "a.jpg").read_bytes())[:2] == (40, 24)


@pytest.fixture
def captioned(tmp_path):
    folder = write(tmp_path / "set", *[(8, 8)] * 5)
    rows = [{"file_name": f"{i:03d}.png", "text": text} for i, text in enumerate(["a", "", " "])]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def test_captions_that_are_missing_or_empty_are_counted_and_named(captioned, capsys):
    lines = said(captioned, capsys, text="transformer(width=8)")
    assert lines[1:] == [
        "data: 2 images left out, of which no caption or row is given: 003.png, 004.png",
        "data: 2 of 3 captions empty, as of no caption: 001.png, 002.png",
    ]


def test_captions_that_are_missing_are_refused_where_the_config_says_so(captioned, capsys):
    with pytest.raises(UserError, match=r"2 images left out.* 003.png, 004.png; 2 of 3 captions empty.*; complete it"):
        said(captioned, capsys, **{"data.missing_captions": "refuse"})
    with pytest.raises(UserError, match="data.missing_captions='drop' is tell or refuse"):
        said(captioned, capsys, **{"data.missing_captions": "drop"})


def test_many_names_are_not_all_said():
    found = description.Missing([f"{i}.png" for i in range(100)], [], 0)
    assert description.missing_sentences(found)[0].endswith("10.png, 11.png and 88 more")


def test_empty_captions_of_other_sources_are_seen_in_examples():
    class Source:
        num_classes = class_names = None
        fingerprint = ""

        def __len__(self):
            return 200

        def __getitem__(self, index):
            return {"image": b"", "name": f"record {index}", "caption": "" if index < 4 else "x"}

    examples = description.examples_of(Source())
    assert (len(examples), examples[0]["name"], examples[-1]["name"]) == (64, "record 0", "record 199")
    assert np.diff([int(e["name"].split()[1]) for e in examples]).max() <= 4
    found = description.missing(Source(), examples)
    assert (found.empty, found.looked_at) == (["record 0", "record 3"], 64)
