"""Keys of earlier versions: configs that set them, flags and workdirs that hold them are read as they were meant."""

import json

import pytest

from diffusion_jax import config as configs
from diffusion_jax.cli.main import main
from diffusion_jax.errors import UserError
from diffusion_jax.runs.workdir.paths import Workdir, as_trained


def earlier(**sides):
    """A config.json as 0.1 wrote it."""
    values = configs.base().to_dict()
    del values["data"]["shape"], values["data"]["modality"]
    values["data"] |= {"height": 8, "width": 8, "channels": 1} | sides
    return json.dumps(values)


def test_a_config_of_an_earlier_version_is_completed():
    config = configs.from_json(earlier(height=24, width=40))
    assert config.data.shape == (24, 40, 1)
    assert config.data.modality == "image"
    assert configs.newer(earlier()) == ["data.modality"]
    assert configs.from_json(configs.to_json(config)) == config


def test_a_config_file_may_set_the_earlier_keys_one_by_one():
    config = configs.base()
    assert config.data.shape == ()
    config.data.height = 32
    assert config.data.shape == (32, 8, 1)  # the others were 8 and 1 by default
    config.data.update(width=16, channels=3)
    assert (config.data.shape, config.data.height, config.data["channels"]) == ((32, 16, 3), 32, 3)
    copied = config.copy_and_resolve_references()
    copied.data.width = 64
    assert (copied.data.shape, config.data.shape) == ((32, 64, 3), (32, 16, 3))
    assert set(config.data) == set(configs.base().data)
    with pytest.raises(TypeError, match=r"data.height, a part of data.shape, is of type int, as in 32; got '3'"):
        config.data.height = "3"
    with pytest.raises(AttributeError, match="heigth"):
        config.data.heigth = 3


def test_a_flag_may_name_an_earlier_key(tmp_path, capsys):
    flags = ["--config=configs/tiny.py", f"--workdir={tmp_path / 'run'}", "--config.data.height=9"]
    assert main(["train", *flags, "--config.model.multipliers=(1,2)"]) != 0
    assert "9" in capsys.readouterr().err


@pytest.mark.parametrize("by", ["workdir", "init_from"])
def test_what_a_run_leaves_open_is_that_of_its_parameters(tmp_path, by):
    """The units, wherever the parameters come from; the shape of the run that goes on."""
    old, new = Workdir(tmp_path / "old"), Workdir(tmp_path / "new")
    of_old = configs.base()
    of_old.data.update(shape=(16, 2), modality="array(mean=(1.0,), deviation=(2.0,))")
    old.write_config(of_old)
    (old.checkpoints / "10").mkdir(parents=True)
    config = configs.base()
    config.init_from = str(old.root) if by == "init_from" else ""
    found = as_trained(config, new if by == "init_from" else old).data
    assert found.modality == of_old.data.modality
    assert found.shape == ((16, 2) if by == "workdir" else ())
    config.data.update(shape=(4, 1), modality="array(mean=(0.0,), deviation=(1.0,))")
    assert as_trained(config, old).data.to_dict() == config.data.to_dict()  # what is said is not changed


def test_a_side_below_one_is_refused():
    config = configs.base()
    config.data.shape = (0, 8, 1)
    with pytest.raises(UserError, match=r"data.shape: .* at least 1; got 0 in \(0, 8, 1\)"):
        configs.check(config)
