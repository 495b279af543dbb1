"""`diffusion-jax new` for plain arrays: a network that divides their shape, and the numbers of the file."""

import dataclasses
import math

import numpy as np
import pytest
from written_config import EIGHT_GPUS, TWO_CORES, read

from diffusion_jax import experiment
from diffusion_jax.cli.main import main
from diffusion_jax.errors import UserError
from diffusion_jax.runs.new.data_survey import survey
from diffusion_jax.runs.new.writing import config_text


@pytest.fixture(scope="module")
def fields():
    """Forty fields of 16 x 16 with three channels of very different units."""
    noise = np.random.default_rng(0).standard_normal((40, 16, 16, 3))
    return (noise * (1e-3, 1.0, 50.0) + (0.0, -3.0, 1e4)).astype(np.float32)


@pytest.fixture
def found(fields, tmp_path):
    np.save(tmp_path / "fields.npy", fields)
    return survey(f"arrays:{tmp_path / 'fields.npy'}")


def test_a_file_with_classes_gives_a_config_of_its_shape(fields, tmp_path, capsys):
    np.savez(tmp_path / "fields.npz", x=fields, labels=np.arange(40) % 4)
    out = tmp_path / "my.py"
    assert main(["new", f"--data=arrays:{tmp_path / 'fields.npz'}", f"--out={out}"]) == 0
    said = capsys.readouterr().out
    assert "arrays      40\n" in said
    assert "shape       16 x 16 and 3 channels, float32\n" in said
    assert "classes     0 (10), 1 (10), 2 (10), 3 (10)\n" in said
    config = read(out.read_text())
    assert (config.data.shape, config.model.num_classes) == ((16, 16, 3), 4)
    assert (config.data.modality, config.data.corrupt_limit) == ("", 0)
    assert config.sample.threshold == "none"  # which would clip the arrays to [-1, 1]
    assert experiment.model(config).abstract
    assert out.with_suffix(".png").stat().st_size > 1000


def test_numbers_are_those_of_the_channels(fields, found):
    channels = fields.reshape(-1, 3).astype(np.float64)
    np.testing.assert_allclose(found.mean, channels.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(found.deviation, channels.std(axis=0), rtol=1e-6)
    np.testing.assert_allclose(found.least, channels.min(axis=0), rtol=1e-6)
    np.testing.assert_allclose(found.largest, channels.max(axis=0), rtol=1e-6)


def test_the_picture_shows_every_channel_whatever_its_unit(found):
    """Of each of the three maps beside each other, pixels differ by more than a tenth of the colours' range."""
    tiles = found.tiles(found.fit(TWO_CORES))
    assert len(tiles) == 9
    for part in np.array_split(tiles.astype(int), 3, axis=2):
        assert np.ptp(part[:, 4:-4, 4:-4].mean(axis=-1)) > 25


def test_arrays_that_are_not_finite_are_left_out_of_numbers_and_training(fields, tmp_path):
    """The config as written resolves, where measuring the data in training would end at the first of them."""
    bad = fields.copy()
    bad[3, 0, 0, 0], bad[7, 1, 1, 2] = np.nan, np.inf
    np.save(tmp_path / "bad.npy", bad)
    found = survey(f"arrays:{tmp_path / 'bad.npy'}")
    assert [reason.split(" has ")[0][-3:] for reason in found.broken] == ["[3]", "[7]"]
    config = read(config_text(found, found.fit(TWO_CORES), "my.py"))
    assert config.data.corrupt_limit == 2
    kind = experiment.modality(experiment.resolved(config))
    good = np.delete(fields, (3, 7), axis=0).reshape(-1, 3).astype(np.float64)
    np.testing.assert_allclose(kind.mean, good.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(kind.deviation, good.std(axis=0), rtol=1e-6)


@pytest.mark.parametrize("machine", [TWO_CORES, EIGHT_GPUS])
@pytest.mark.parametrize(
    "sides", [(1,), (64,), (1000,), (97,), (4096,), (16, 16), (61, 37), (256, 256), (12, 1000), (24, 24, 24), (5, 7, 9)]
)
def test_the_network_divides_every_side_and_few_places_attend(found, machine, sides):
    survey_of_sides = dataclasses.replace(found, shape=(*sides, 3))
    chosen = survey_of_sides.fit(machine)
    assert chosen.shape == (*sides, 3)
    assert all(side % chosen.net.factor == 0 for side in sides)
    attending = math.prod(side // chosen.net.factor for side in sides)
    assert attending <= 4096
    assert chosen.batch_size % machine.devices == 0
    advised = any("arrays padded to" in reason for reason in chosen.reasons)
    assert advised == (chosen.net.levels == 1 or attending > (256 if machine is TWO_CORES else 1024))
    config = read(config_text(survey_of_sides, chosen, "my.py"))
    assert config.model.attention == (2 ** (len(config.model.multipliers) - 1),)


@pytest.mark.parametrize("sides", [(97,), (24, 24, 24)])
def test_the_model_of_a_prime_side_and_of_a_volume_exists(found, sides):
    survey_of_sides = dataclasses.replace(found, shape=(*sides, 3))
    config = read(config_text(survey_of_sides, survey_of_sides.fit(TWO_CORES), "my.py"))
    assert experiment.model(config).abstract


def test_the_last_side_counts_channels_where_shape_says_so(tmp_path):
    np.save(tmp_path / "a.npy", np.random.default_rng(0).standard_normal((8, 32, 12)))
    spec = f"arrays:{tmp_path / 'a.npy'}"
    as_places = survey(spec).fit(TWO_CORES)
    assert as_places.shape == (32, 12, 1)
    assert any("look again with --shape=32,12" in reason for reason in as_places.reasons)
    out = tmp_path / "my.py"
    assert main(["new", f"--data={spec}", "--shape=32,12", f"--out={out}"]) == 0
    assert read(out.read_text()).data.shape == (32, 12)
    assert "--shape" not in out.read_text()


def test_arrays_that_no_network_suits_are_refused(found, fields, tmp_path):
    with pytest.raises(UserError, match=r"arrays of 501 x 333 are too large .* pad them to 504 x 336"):
        dataclasses.replace(found, shape=(501, 333, 1)).fit(TWO_CORES)
    fields = fields.copy()
    fields[..., 1] = 7
    np.save(tmp_path / "flat.npy", fields)
    with pytest.raises(UserError, match="channel 1 is 7 wherever it was looked at"):
        survey(f"arrays:{tmp_path / 'flat.npy'}")
