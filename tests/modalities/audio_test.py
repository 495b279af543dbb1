"""The modality of sound: clips of examples, the shape of a data set, and the files and page of samples."""

import base64
import html.parser
import io
import pickle
import re

import numpy as np
import pytest
import soundfile
from PIL import Image

from diffusion_jax.data import sound
from diffusion_jax.data.sources import open_source
from diffusion_jax.errors import UserError
from diffusion_jax.modalities.audio import Audio
from diffusion_jax.report import players, spectrogram
from diffusion_jax.spec import from_spec

AUDIO = Audio(rate=8000)


def clips(num=3, length=800, channels=1):
    return np.random.default_rng(0).uniform(-1, 1, (num, length, channels)).astype(np.float32)


def write(path, length, rate=8000, channels=1):
    soundfile.write(path, np.zeros((length, channels)), rate)


def test_specs_and_shapes():
    assert from_spec("audio(rate=8000)", {"audio": Audio}, "modality") == AUDIO
    assert from_spec(Audio(9, "random").measured(None, ()), {"audio": Audio}, "modality") == Audio(9, "random")
    assert pickle.loads(pickle.dumps(AUDIO)) == AUDIO
    for wrong in ({"rate": 0}, {"rate": 8000, "crop": "middle"}):
        with pytest.raises(UserError, match="modality audio"):
            Audio(**wrong)
    AUDIO.check_shape((800, 2))
    for shape in ((800,), (800, 3), (8, 8, 1)):
        with pytest.raises(UserError, match=r"of sound is \(samples, channels\)"):
            AUDIO.check_shape(shape)


def test_arrays_are_cropped_and_checked():
    clip = clips(1)[0]
    np.testing.assert_array_equal(AUDIO.decode({"name": "a", "array": clip}, (500, 1)), clip[:500])
    assert AUDIO.decode({"name": "a", "array": clip}, (500, 2)).shape == (500, 2)
    for wrong, says in (
        ({"array": clip}, "a has the shape"),
        ({"array": 2 * np.ones((900, 1))}, "a has values outside"),
        ({"array": np.full((900, 1), np.nan)}, "a has values outside"),
        ({"image": b""}, "a has no sound; set data.modality"),
    ):
        with pytest.raises(UserError, match=says):
            AUDIO.decode({"name": "a", **wrong}, (900, 1))


def test_what_the_model_gives_is_clipped_and_counted(capsys):
    x = clips(4)
    np.testing.assert_array_equal(AUDIO.from_model(AUDIO.to_model(x)), x)
    assert capsys.readouterr().err == ""
    x[1, :3], x[2, 0] = 1.5, -7
    np.testing.assert_array_equal(AUDIO.from_model(x), np.clip(x, -1, 1))
    assert "4 samples (0.12%) of 2 clips lay outside of [-1, 1] and were clipped" in capsys.readouterr().err
    x[0, 0] = np.nan
    with pytest.raises(UserError, match="NaN or infinite"):
        AUDIO.from_model(x)


def test_the_shape_of_notes():
    notes = open_source("notes:4000,0.256,20")
    assert Audio(4000).shape_of(notes) == (1024, 1)
    found = Audio(4000).description(notes, [notes[i] for i in range(5)], (1024, 1))
    assert found == "20 clips of 0.256 s, 4000 Hz, mono (by 5 of them): as they are"
    assert "the first 0.128 s of each" in Audio(4000).description(notes, [notes[0]], (512, 1))


def test_the_shape_of_files(tmp_path):
    write(tmp_path / "a.wav", 800)
    write(tmp_path / "b.wav", 1600, 16000, 2)
    (tmp_path / "c.wav").write_bytes(b"broken")
    source = open_source(f"audio:{tmp_path}@8000")
    assert AUDIO.shape_of(source) == (800, 2)
    said = AUDIO.description(source, [source[i] for i in range(3)], (800, 1))
    assert said == (
        "3 clips of 0.1 s, 8000 to 16000 Hz, mono and stereo (by 2 of them): resampled to 8000 Hz, channels "
        "averaged to mono"
    )
    write(tmp_path / "d.wav", 1200)
    source = open_source(f"audio:{tmp_path}@8000")
    lengths = r"2 lengths: 0.1 s \(2\), 0.15 s \(1\); set data.shape=\(SAMPLES, CHANNELS\) to crop them: \(800, 2\)"
    with pytest.raises(UserError, match=lengths):
        AUDIO.shape_of(source)
    said = AUDIO.description(source, [source[i] for i in range(4)], (1000, 2))
    assert said.endswith("mono doubled to stereo, the first 0.125 s of each, 2 of 3 too short for 0.125 s")


class _Page(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found = {"audio": [], "img": []}
        self.tags, self.addresses, self.text = [], [], text
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href")]
        if tag in self.found:
            self.found[tag].append(base64.b64decode(dict(attrs)["src"].partition(",")[2]))


@pytest.mark.parametrize("channels", [1, 2])
def test_the_page_holds_what_the_files_hold(channels):
    arrays = clips(3, channels=channels)
    pages = AUDIO.pages(arrays, ["A4 saw", "<b>", ""])
    assert list(pages) == ["index.html"]
    page = _Page(pages["index.html"].decode())
    assert page.found["audio"] == [AUDIO.encode(clip) for clip in arrays]
    for data, tile in zip(page.found["img"], AUDIO.tiles(arrays), strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data))), tile)
    titles = re.findall("<figcaption>(.*)</figcaption>", page.text)
    assert titles == ["000000.wav · A4 saw", "000001.wav · &lt;b&gt;", "000002.wav"]
    assert not {"script", "link", "iframe", "b"} & set(page.tags)
    assert all(address.startswith("data:") for address in page.addresses)
    assert not re.search(r"https?:|@import|url\(", page.text)
    assert f"3 clips of 0.1 s at 8000 Hz, {'mono' if channels == 1 else 'stereo'}." in page.text


def test_a_page_that_would_be_too_large_says_what_it_leaves_out(monkeypatch):
    monkeypatch.setattr(players, "MOST_BYTES", 2 * (2 * 800 + 44))
    page = _Page(AUDIO.pages(clips(5), [""] * 5)["index.html"].decode())
    assert len(page.found["audio"]) == 2
    assert "The first 2 are here; the others lie beside this page." in page.text
    monkeypatch.setattr(players, "MOST_BYTES", 1)
    assert players.shown_count([10, 10]) == 1


def test_files_of_samples_are_read_by_the_source_of_sounds(tmp_path):
    arrays = clips(2)
    for i, clip in enumerate(arrays):
        (tmp_path / f"{i}{AUDIO.suffix}").write_bytes(AUDIO.encode(clip))
    source = open_source(f"audio:{tmp_path}")
    read = np.stack([AUDIO.decode(source[i], (800, 1)) for i in range(2)])
    np.testing.assert_allclose(read, arrays, atol=0.5001 / 2**15)
    assert sound.read_header(source[0]["audio"], "").rate == 8000


def test_a_file_to_edit_is_read_as_far_as_it_goes(tmp_path):
    clip = clips(1, 600, 2)[0]
    soundfile.write(tmp_path / "a.wav", clip, 8000, "FLOAT")
    np.testing.assert_array_equal(AUDIO.read(tmp_path / "a.wav", (500, 2)), clip[:500])
    np.testing.assert_array_equal(AUDIO.read(tmp_path / "a.wav", (800, 2)), clip)
    assert Audio(4000).read(tmp_path / "a.wav", (800, 1)).shape == (300, 1)
    assert AUDIO.places_a_unit == 8000
    write(tmp_path / "empty.wav", 0)
    with pytest.raises(UserError, match="empty.wav is empty"):
        AUDIO.read(tmp_path / "empty.wav", (500, 1))


def test_tiles_are_pictures_one_each():
    tiles = AUDIO.tiles(clips(3, channels=2))
    assert (tiles.dtype, tiles.shape) == (np.uint8, (3, spectrogram.HEIGHT, spectrogram.WIDTH, 3))
