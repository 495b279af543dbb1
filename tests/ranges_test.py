"""Every number that a user can give has a range; numbers out of it are refused, by their key or flag."""

import importlib
import json
import math
import re

import pytest
from absl import flags

from diffusion_jax import config as configs
from diffusion_jax import ranges
from diffusion_jax.cli.main import COMMANDS, MODULES
from diffusion_jax.errors import UserError
from diffusion_jax.nets.families import NETWORKS
from diffusion_jax.nets.unet import UNet

TABLE = ranges.CONFIG | {f"model.{name}": allowed for name, allowed in UNet.ranges.items()}
LISTS_OF_TEXTS = {"metrics"}
TEXTS_THAT_MAY_BE_NUMBERS = {"ema"}


def flags_of(command):
    values = flags.FlagValues()
    module = importlib.import_module(f"diffusion_jax.cli.{MODULES.get(command, command.partition(' ')[0])}")
    module.define(values, [])
    return {name: values[name] for name in values if name != "help"}


def takes_numbers(flag):
    return isinstance(flag.parser, flags.IntegerParser | flags.FloatParser | flags.ListParser)


@pytest.mark.parametrize("network", NETWORKS)
def test_the_table_has_every_number_of_a_config_and_nothing_else(network):
    """With the ranges of the network family, which stand in its own file."""
    values = configs.flat(configs.base(network).to_dict())
    numbers = {key: value for key, value in values.items() if type(value) in (int, float)}
    tuples = {key: value for key, value in values.items() if isinstance(value, tuple)}
    table = ranges.CONFIG | {f"model.{name}": allowed for name, allowed in NETWORKS[network].ranges.items()}
    assert set(table) | set(ranges.TEXTS) == set(numbers) | set(tuples)
    assert not set(table) & set(ranges.TEXTS)
    for key, allowed in table.items():
        assert allowed.each == (key in tuples), key
        if key in numbers:
            assert allowed.integer == isinstance(numbers[key], int), key


def test_the_defaults_are_in_their_ranges():
    configs.check(configs.base())


def test_the_table_has_every_flag_that_takes_numbers_and_nothing_else():
    found = {name for command in COMMANDS for name, flag in flags_of(command).items() if takes_numbers(flag)}
    known = {name for name in ranges.FLAGS if " " not in name}
    assert known == found - LISTS_OF_TEXTS | TEXTS_THAT_MAY_BE_NUMBERS
    for one in set(ranges.FLAGS) - known:
        command, _, flag = one.partition(" --")
        assert flag in flags_of(command)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_flag_has_a_default_in_its_range_and_the_type_of_it(command):
    for name, flag in flags_of(command).items():
        ranges.check_flag(command, name, flag.value)
        if takes_numbers(flag) and name not in LISTS_OF_TEXTS and not isinstance(flag.parser, flags.ListParser):
            allowed = ranges.FLAGS.get(f"{command} --{name}", ranges.FLAGS[name])
            assert allowed.integer == isinstance(flag.parser, flags.IntegerParser), name


@pytest.mark.parametrize("key", TABLE)
def test_no_key_takes_what_is_no_number(key):
    """NaN, and infinities where no number is too large, with the sentence naming the key."""
    allowed = TABLE[key]
    wrong = [math.nan, -math.inf] + [math.inf] * (not allowed.infinite)
    for value in [1.5, True] if allowed.integer else wrong:
        with pytest.raises(UserError, match=rf"^{re.escape(key)}(: every entry)? is .*; got {value!r}"):
            allowed.check(key, (value,) if allowed.each else value)


@pytest.mark.parametrize(
    ("allowed", "inside", "outside", "words"),
    [
        (ranges.Range(1, integer=True), (1, 10**9), (0, -1), "at least 1"),
        (ranges.Range(0, 1, open_high=True), (0, 0.999), (1, -1e-9), "in [0, 1)"),
        (ranges.Range(0, 1, open_low=True), (1, 1e-9), (0, 1.1), "in (0, 1]"),
        (ranges.Range(0, open_low=True), (1e-300, 1e300), (0, math.inf), "above 0 and finite"),
        (ranges.Range(1, 1024, integer=True), (1, 1024), (0, 1025), "from 1 to 1024"),
        (ranges.Range(2, integer=True, also={0: "all"}), (0, 2), (1, -1), "at least 2, or 0 for all"),
        (ranges.Range(), (-1e300, 0), (math.inf, -math.inf, math.nan), "a finite number"),
        (ranges.Range(0, infinite=True), (0, math.inf), (-1, math.nan), "at least 0"),
    ],
)
def test_the_ends_of_a_range_and_its_words(allowed, inside, outside, words):
    for value in inside:
        allowed.check("x", value)
    for value in outside:
        with pytest.raises(UserError, match=rf"^x is {re.escape(words)}; got {re.escape(repr(value))}$"):
            allowed.check("x", value)


@pytest.mark.parametrize(
    ("key", "value"),
    [("log_every", 0), ("model.dropout", 1.5), ("ema.decay", 2.0), ("train.batch_size", 0), ("spatial", (3,))],
)
def test_a_run_is_refused_but_a_workdir_that_has_it_is_read(key, value):
    """An earlier version took these, and what it trained can still be sampled."""
    values = configs.base().to_dict()
    *sections, name = key.split(".")
    section = values
    for part in sections:
        section = section[part]
    section[name] = value
    with pytest.raises(UserError, match=rf"^{re.escape(key)}(: every entry)? is "):
        configs.check(values)
    assert configs.from_json(json.dumps(values)).to_dict() == values


def test_a_command_may_have_a_range_of_its_own():
    ranges.check_flag("evaluate reference", "num", 0)
    with pytest.raises(UserError, match=r"^--num is at least 1; got 0$"):
        ranges.check_flag("sample", "num", 0)


def test_lists_and_lengths_are_read_from_their_texts():
    ranges.check_flag("sample", "expand", ["8", "0", "8", "0"])
    ranges.check_flag("sample", "ema", "true")
    ranges.check_flag("sample", "ema", "0.1")
    with pytest.raises(UserError, match=r"^--expand: every entry is at least 0; got -1"):
        ranges.check_flag("sample", "expand", ["8", "-1", "0", "0"])
    with pytest.raises(UserError, match=r"^--ema is above 0 and finite; got nan$"):
        ranges.check_flag("sample", "ema", "nan")
