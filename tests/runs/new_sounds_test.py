"""`diffusion-jax new` for sounds: the rate, length and noise of the config suit the files that it looked at."""

import dataclasses

import numpy as np
import pytest
import soundfile
from written_config import EIGHT_GPUS, TWO_CORES, read

from diffusion_jax import experiment, modalities
from diffusion_jax.cli.main import main
from diffusion_jax.data.sources import open_source
from diffusion_jax.errors import UserError
from diffusion_jax.runs.new.data_survey import survey
from diffusion_jax.runs.new.sound_survey import SoundFile
from diffusion_jax.runs.new.writing import config_text


def write(file, samples, rate):
    file.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(file, samples, rate, subtype="FLOAT")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Thirty sounds of two classes at 16 kHz, 0.25 to 0.3 s; one more that is short, and one that is broken."""
    root = tmp_path_factory.mktemp("sounds")
    rng = np.random.default_rng(0)
    for i in range(30):
        write(root / f"{('high', 'low')[i % 2]}/{i}.wav", 0.1 * rng.standard_normal(4000 + 25 * i), 16_000)
    write(root / "low/short.wav", 0.1 * rng.standard_normal(500), 16_000)
    (root / "low/broken.wav").write_bytes(b"RIFF")
    return root


@pytest.fixture(scope="module")
def found(folder):
    return survey(f"audio:{folder}")


def test_the_config_trains_on_all_sounds_but_those_it_names(folder, tmp_path, capsys):
    """As many files as its corrupt_limit says cannot be read at its rate and length, and the model exists."""
    out = tmp_path / "my.py"
    assert main(["new", f"--data=audio:{folder}", f"--out={out}"]) == 0
    said = capsys.readouterr().out
    assert "sounds      32\n" in said
    assert "lengths     0.0312 to 0.295 s" in said
    assert "classes     high (15), low (16)" in said
    assert "broken.wav is not a file of sound that can be read" in said
    config = read(out.read_text())
    data, kind = open_source(config.data.source), modalities.modality(config.data.modality)
    unfit = 0
    for i in range(len(data)):
        try:
            assert kind.decode(data[i], config.data.shape).shape == config.data.shape
        except UserError:
            unfit += 1
    assert config.data.corrupt_limit == unfit == 2
    assert config.model.num_classes == 2
    assert experiment.model(config).abstract
    assert out.with_suffix(".png").stat().st_size > 1000


@pytest.mark.parametrize("machine", [TWO_CORES, EIGHT_GPUS])
@pytest.mark.parametrize("rate", [4000, 16_000, 44_100, 47_999])
@pytest.mark.parametrize("seconds", [(0.02, 0.03), (0.4, 0.5), (1.0, 1.0), (0.5, 30.0), (200.0, 300.0)])
def test_clips_suit_the_machine_the_network_and_nine_sounds_of_ten(found, machine, rate, seconds):
    lengths = np.linspace(*seconds, 20)
    files = tuple(SoundFile(rate, int(rate * length), 1, 0.01, False) for length in lengths)
    chosen = dataclasses.replace(found, files=files, count=20, broken=(), looked_at=20).fit(machine)
    length, _ = chosen.shape
    taken = modalities.modality(chosen.modality).rate
    assert length % chosen.net.factor == 0
    assert length <= (4096 if machine is TWO_CORES else 65_536)
    assert rate % taken == 0
    assert taken >= min(rate, 8000)
    assert chosen.source.endswith(f"@{taken}")
    short = sum(int(rate * each) * taken < length * rate for each in lengths)
    assert short <= 2
    assert chosen.corrupt_limit == short
    assert chosen.batch_size % machine.devices == 0
    if rate * seconds[1] <= 4096:
        assert taken == rate  # nothing is lost of what is short enough
        assert length > 0.45 * rate * seconds[0]


def test_the_limit_of_short_sounds_holds_for_those_not_looked_at(found):
    """Of 10,000 sounds, 8% of them short, 500 are looked at: one set in a hundred, at most, passes the limit."""
    rng, passed = np.random.default_rng(0), 0
    for _ in range(300):
        lengths = np.where(rng.random(10_000) < 0.08, 1000, 4000)
        files = tuple(SoundFile(8000, int(length), 1, 0.01, False) for length in lengths[:500])
        chosen = dataclasses.replace(found, files=files, count=10_000, broken=(), looked_at=500).fit(TWO_CORES)
        passed += chosen.corrupt_limit < (lengths < chosen.shape[0]).sum()
    assert passed <= 3


def test_the_deviation_is_that_of_the_files_and_the_highest_noise_hides_a_tone(folder, found):
    """A tone of the deviation over the whole clip has a quarter of the noise's power at its own frequency."""
    files = [file for file in folder.rglob("*.wav") if file.name != "broken.wav"]
    powers = [np.mean(soundfile.read(file)[0] ** 2) for file in files]
    assert found.deviation == pytest.approx(np.sqrt(np.mean(powers)), rel=1e-4)
    chosen = found.fit(TWO_CORES)
    config = read(config_text(found, chosen, "my.py"))
    length, _ = chosen.shape
    highest = float(config.sample.grid.split("sigma_max=")[1].rstrip(")"))
    tone = np.sqrt(2) * found.deviation * np.cos(2 * np.pi * 40 * np.arange(length) / length)
    noise = highest * np.random.default_rng(0).standard_normal(length)
    of_tone, of_noise = (abs(np.fft.rfft(each)) ** 2 for each in (tone, noise))
    assert of_tone.max() / of_noise[1:-1].mean() == pytest.approx(1 / 4, rel=0.1)


def test_channels_are_kept_where_they_differ(tmp_path):
    rng = np.random.default_rng(0)
    left, right = rng.uniform(-0.5, 0.5, (2, 4000))
    alike, stereo, mono, three = [left, left], [left, right], [left], [left, right, left]
    sounds = {  # three do not become two, so that a set with one such file is mono
        "alike": (alike, alike, stereo),
        "stereo": (stereo, mono, stereo),
        "mono": (mono, mono, stereo),
        "three": (stereo, stereo, three),
    }
    for name, files in sounds.items():
        for i, channels in enumerate(files):
            write(tmp_path / f"{name}/{i}.wav", np.stack(channels, 1), 8000)
    shapes = {name: survey(f"audio:{tmp_path / name}").fit(TWO_CORES).shape[-1] for name in sounds}
    assert shapes == {"alike": 1, "stereo": 2, "mono": 1, "three": 1}


def test_sounds_of_several_rates_get_one_unless_the_source_names_it(tmp_path):
    """The commonest, an exact part of it where clips are long; a source without a rate would be refused in training."""
    for i in range(5):
        rate = 48_000 if i else 44_100
        write(tmp_path / f"{i}.wav", np.random.default_rng(i).uniform(-1, 1, 2 * rate), rate)
    chosen = survey(f"audio:{tmp_path}").fit(TWO_CORES)
    assert chosen.source == f"audio:{tmp_path}@8000"
    assert any("divided by 6" in reason and "above 4,000 Hz are lost" in reason for reason in chosen.reasons)
    named = survey(f"audio:{tmp_path}@22050").fit(TWO_CORES)
    assert named.source == f"audio:{tmp_path}@22050"
    assert named.modality.startswith("audio(rate=22050,")
    pictures = survey(f"audio:{tmp_path}").tiles(chosen)
    assert pictures.shape[0] == 5


def test_notes_are_clips_as_they_are_computed():
    found = survey("notes:4000,0.128,40")
    chosen = found.fit(TWO_CORES)
    assert (chosen.source, chosen.shape) == ("notes:4000,0.128,40", (512, 1))
    assert chosen.corrupt_limit == 0
    assert read(config_text(found, chosen, "my.py")).model.num_classes == 32


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.zeros(4000), "all sounds are silent"),
        (np.ones(1), "most sounds have 1 samples at 8,000 Hz, and a clip has at least 16"),
    ],
)
def test_sounds_that_no_model_can_learn_are_refused(tmp_path, samples, message):
    write(tmp_path / "0.wav", samples, 8000)
    with pytest.raises(UserError, match=message):
        survey(f"audio:{tmp_path}").fit(TWO_CORES)
