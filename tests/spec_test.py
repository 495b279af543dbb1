"""The text that chooses a function, and a config's JSON."""

import json
import math

import pytest

from diffusion_jax import config as configs
from diffusion_jax.errors import UserError
from diffusion_jax.runs.workdir.paths import Workdir, as_trained
from diffusion_jax.spec import from_spec


def scale(by: float = 1.0, times: int = 1, name: str = "x", up: bool = True):
    return by, times, name, up


TABLE = {
    "scale": scale,
    "plain": lambda: "plain",
    "open_end": lambda up_to=math.inf: up_to,
    "needed": lambda size: size,
}


def test_infinity_is_an_argument_where_it_is_the_default():
    assert from_spec("open_end(up_to=1e999)", TABLE, "thing") == math.inf


def test_a_name_is_a_call_with_defaults():
    assert from_spec("plain", TABLE, "thing") == "plain"
    assert from_spec("scale", TABLE, "thing") == (1.0, 1, "x", True)
    assert from_spec("scale()", TABLE, "thing") == (1.0, 1, "x", True)


def test_arguments_are_literals():
    assert from_spec("scale(by=2, times=-3, name='a b', up=False)", TABLE, "thing") == (2, -3, "a b", False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("shrink", "unknown thing 'shrink'; choose from needed, open_end, plain, scale"),
        ("scale(size=2)", "thing 'scale' has no argument 'size'; it takes by, times, name, up"),
        ("plain(size=2)", "it takes no arguments"),
        ("scale(times=0.5)", "times is an integer, as in times=1; got times=0.5"),
        ("scale(by='much')", "by is a number"),
        ("scale(times=True)", "times is an integer"),
        ("scale(by=1e999)", "thing 'scale': by is finite; got by=inf"),
        ("scale(by=-1e999)", "by is finite; got by=-inf"),
        ("scale(by=nan)", "cannot read thing"),
        ("open_end(up_to=-1e999)", "up_to is finite"),
        ("needed()", r"thing 'needed' needs size; write needed\(size=...\)"),
        ("Plian", r"choose from .*\. Did you mean 'plain'\?"),
        ("scale(tims=2)", r"it takes by, times, name, up\. Did you mean 'times'\?"),
        ("scale(up=1)", "up is True or False"),
        ("scale(2)", "cannot read thing 'scale\\(2\\)'"),
        ("scale(by=__import__('os'))", "cannot read thing"),
        ("scale(**{})", "cannot read thing"),
        ("scale(", "cannot read thing"),
        ("", "cannot read thing ''"),
        ("1 + 1", "cannot read thing"),
    ],
)
def test_anything_else_is_an_error_that_says_what_would_do(text, message):
    with pytest.raises(UserError, match=message):
        from_spec(text, TABLE, "thing")


def test_json_round_trip_keeps_values_and_types():
    config = configs.base()
    config.model.multipliers = (1, 3)
    config.ema.decay = 0.5
    again = configs.from_json(configs.to_json(config))
    assert again.to_dict() == config.to_dict()
    assert isinstance(again.model.multipliers, tuple)


def test_the_config_of_an_earlier_version_is_completed_by_defaults():
    values = configs.base().to_dict()
    del values["model"]["patch"], values["mesh"]
    values["seed"] = 7
    assert set(configs.newer(json.dumps(values))) == {"model.patch", "mesh"}
    assert configs.from_json(json.dumps(values)).to_dict() == configs.base().to_dict() | {"seed": 7}
    values["model"]["chanels"] = 3
    with pytest.raises(UserError, match="unknown key config.model.chanels"):
        configs.from_json(json.dumps(values))


def test_a_key_whose_default_changes_what_is_drawn_is_as_it_was_in_an_earlier_version():
    """Levels of noise augmentation are scaled in new runs alone."""
    values = configs.base().to_dict()
    assert values["level_scale"] == 1000
    assert configs.from_json(json.dumps(values)).level_scale == 1000
    del values["level_scale"]
    assert configs.from_json(json.dumps(values)).level_scale == 1


@pytest.mark.parametrize("by", ["workdir", "init_from"])
def test_a_run_goes_on_with_what_its_parameters_were_trained_with(tmp_path, by):
    """Whatever its config file says now; a run without parameters of an earlier version takes its config."""
    old, new = Workdir(tmp_path / "old"), Workdir(tmp_path / "new")
    config = configs.base()
    config.init_from = str(old.root) if by == "init_from" else ""
    workdir = new if by == "init_from" else old
    values = configs.base().to_dict()
    del values["level_scale"]
    old.root.mkdir()
    old.config.write_text(json.dumps(values))
    assert as_trained(config, workdir).level_scale == 1000  # no checkpoint, so nothing to go on with
    (old.checkpoints / "10").mkdir(parents=True)
    assert as_trained(config, workdir).level_scale == 1
    old.write_config(configs.base())
    assert as_trained(config, workdir).level_scale == 1000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: c["model"].update(chanels=3),
            "unknown key config.model.chanels of the network unet; config.model has attention, attention_kernel",
        ),
        (lambda c: c["model"].pop("channels"), "missing key config.model.channels"),
        (lambda c: c.update(seed="0"), "config.seed is of type int, as in 0; got '0'"),
        (lambda c: c.update(seed=True), "config.seed is of type int"),
        (lambda c: c.update(model=None), "config.model is a section"),
        (lambda c: c["optimizer"].update(learning_rate=None), "config.optimizer.learning_rate is of type float"),
    ],
)
def test_a_config_with_other_keys_or_types_is_refused(change, message):
    values = configs.base().to_dict()
    change(values)
    with pytest.raises(UserError, match=message):
        configs.check(values)


def test_an_integer_does_for_a_float():
    values = configs.base().to_dict()
    values["optimizer"]["learning_rate"] = 1
    assert isinstance(configs.check(values).optimizer.learning_rate, float)


@pytest.mark.parametrize("network", ["unet", "dit"])
def test_rematerialization_of_earlier_versions_keeps_its_meaning(network):
    """It was a boolean."""
    for before, now in ((False, "none"), (True, "blocks")):
        values = configs.base(network).to_dict()
        values["model"]["remat"] = before
        assert configs.from_json(json.dumps(values)).model.remat == now
