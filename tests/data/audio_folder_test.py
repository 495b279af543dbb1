"""Folders of sounds and zips of them: labels, captions, rates, and what becomes of broken files."""

import json
import pickle
import shutil

import numpy as np
import pytest
import soundfile

from diffusion_jax.data.audio_folder import audio_folder
from diffusion_jax.data.corrupt import CorruptError, readable
from diffusion_jax.data.sources import open_source
from diffusion_jax.errors import UserError
from diffusion_jax.modalities.audio import Audio


def write(path, value, rate=8000, length=800, channels=1):
    """A sound of one value."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.full((length, channels), value), rate)


@pytest.fixture
def classes(tmp_path):
    """Classes 2 and 10, in natural order, of WAV, FLAC and OGG, in a folder of a folder."""
    root = tmp_path / "set"
    write(root / "sounds/10/a.wav", 0.1)
    write(root / "sounds/2/b.flac", 0.2)
    write(root / "sounds/2/c.ogg", 0.0)
    (root / "sounds/2/readme.txt").write_text("no sound")
    return root


def value(example):
    return round(float(Audio(8000).decode(example, (400, 1))[200, 0]), 3)


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_sub_folders_are_classes_in_natural_order(classes, kind):
    path = str(classes) if kind == "folder" else shutil.make_archive(str(classes), "zip", classes)
    source = open_source(f"audio:{path}")
    assert (source.class_names, source.modality, source.rate) == (("2", "10"), "audio(rate=8000)", 8000)
    assert [(value(source[i]), source[i]["label"]) for i in range(3)] == [(0.1, 1), (0.2, 0), (0.0, 0)]
    assert source[1]["name"].endswith("sounds/2/b.flac")
    assert source.fingerprint == audio_folder(str(classes)).fingerprint
    copy = pickle.loads(pickle.dumps(source))
    assert [copy[i] for i in range(3)] == [source[i] for i in range(3)]


def test_captions_and_splits(tmp_path):
    for split in ("train", "test"):
        for i in range(2):
            write(tmp_path / f"{split}/{i}.wav", i / 10)
        rows = [{"file_name": f"{i}.wav", "text": f"{split} {i}"} for i in range(2)]
        (tmp_path / f"{split}/metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = open_source(f"audio:{tmp_path}", split="test", needs=frozenset({"caption"}))
    assert [(value(source[i]), source[i]["caption"]) for i in range(2)] == [(0.0, "test 0"), (0.1, "test 1")]


def test_captions_in_text_files(tmp_path):
    write(tmp_path / "a.wav", 0.1)
    write(tmp_path / "b.wav", 0.2)
    (tmp_path / "a.txt").write_text("a hum\n")
    source = open_source(f"audio:{tmp_path}", needs=frozenset({"caption"}))
    assert (len(source), source[0]["caption"], source.left_out) == (1, "a hum", ["b.wav"])


def test_rates_that_differ_are_listed_and_a_rate_resamples(classes):
    write(classes / "sounds/10/d.wav", 0.3, rate=16000)
    with pytest.raises(UserError, match=r"2 rates: 8000 Hz \(3, such as 10/a.wav\), 16000 Hz \(1, such as 10/d.wav\)"):
        open_source(f"audio:{classes}")
    source = open_source(f"audio:{classes}@4000")
    assert source.modality == "audio(rate=4000)"
    clips = [Audio(4000).decode(source[i], (200, 1)) for i in range(4)]
    np.testing.assert_allclose([clip[100, 0] for clip in clips], [0.1, 0.3, 0.2, 0.0], atol=2e-3)
    with pytest.raises(UserError, match="at least 1 Hz"):
        open_source(f"audio:{classes}@0")


def test_a_path_with_an_at_is_a_path(tmp_path):
    write(tmp_path / "mine@home/a.wav", 0.1)
    assert len(audio_folder(str(tmp_path / "mine@home"))) == 1
    assert audio_folder(f"{tmp_path / 'mine@home'}@4000").rate == 4000
    write(tmp_path / "take@2/a.wav", 0.1)
    assert audio_folder(str(tmp_path / "take@2")).rate == 8000


def test_broken_files_are_corrupt_examples(tmp_path):
    for i in range(4):
        write(tmp_path / f"{i}.wav", i / 10)
    (tmp_path / "1.wav").write_bytes(b"no sound")
    write(tmp_path / "2.wav", 0.2, length=100)
    source, audio = open_source(f"audio:{tmp_path}"), Audio(8000)
    assert (len(source), source.rate) == (4, 8000)
    with pytest.raises(UserError, match="1.wav is not a file of sound"):
        audio.decode(source[1], (400, 1))
    with pytest.raises(UserError, match="2.wav is 0.0125 s long"):
        audio.decode(source[2], (400, 1))

    def read(index):
        try:
            return audio.decode(source[index], (400, 1))
        except UserError as error:  # as the pipeline takes it
            raise CorruptError(str(error)) from error

    found, clip = readable(1, 4, 2, read)
    assert found == 3
    np.testing.assert_allclose(clip, 0.3, atol=1e-4)
    with pytest.raises(CorruptError, match="2.wav"):
        readable(1, 4, 1, read)

    for name in ("0.wav", "2.wav", "3.wav"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(UserError, match="none of the 4 sounds under .* can be read: .*0.wav is not a file of sound"):
        open_source(f"audio:{tmp_path}")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda root: None, "no folder or zip of sounds"),
        (
            lambda root: (root.mkdir(), (root / "a.mp3").write_bytes(b"")),
            "holds no sounds, files that end in .wav, .flac",
        ),
        (lambda root: [write(root / name, 0.1) for name in ("a.wav", "c/b.wav")], "both loose sounds, such as a.wav"),
        (lambda root: (write(root / "a.wav", 0.0), (root / "metadata.jsonl").write_text("")), "lists no sounds"),
    ],
)
def test_folders_that_hold_no_sounds(tmp_path, make, says):
    make(tmp_path / "set")
    with pytest.raises(UserError, match=says):
        open_source(f"audio:{tmp_path / 'set'}")
