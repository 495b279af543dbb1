"""`train --profile`: a trace of the steps that were asked for, and of no others."""

import gzip
import json
import re

import pytest

from configs import tiny
from diffusion_jax.cli.main import main
from diffusion_jax.errors import UserError
from diffusion_jax.runs.train import train
from diffusion_jax.runs.train.trace import TracedSteps, traced_steps

STEPS = TracedSteps(3, 5)


def config_of(steps, **others):
    config = tiny.get_config()
    config.train.update(steps=steps, batch_size=8, **others)
    config.model.update(attention=(1,))
    config.log_every, config.checkpoint.every, config.sample.every = steps, 0, 0
    return config


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    """The workdir of six steps, of which the third to the fifth were traced."""
    root = tmp_path_factory.mktemp("traced") / "run"
    train(config_of(6), root, STEPS)
    return root


def one(folder, pattern):
    (found,) = folder.glob(f"plugins/profile/*/{pattern}")
    return found


def test_the_traced_steps_are_those_asked_for(traced):
    """As Perfetto reads them."""
    events = json.loads(gzip.decompress(one(traced / "trace", "*.trace.json.gz").read_bytes()))["traceEvents"]
    numbers = [int(e["args"]["step_num"]) for e in events if e.get("name") == "train" and "args" in e]
    assert sorted(numbers) == [3, 4, 5]


def test_the_modules_of_the_network_name_what_they_compute(traced):
    """As XProf reads them, of the program that each event belongs to."""
    names = one(traced / "trace", "*.xplane.pb").read_bytes()
    for scope in (rb"down_0/block_0/conv1", rb"down_0/attention_0", rb"optimizer", rb"average"):
        assert re.search(scope, names), scope


def test_a_run_that_is_beyond_the_steps_goes_on_without_a_trace(traced, capsys):
    """So that the same command may start a run again."""
    before = list((traced / "trace").rglob("*"))
    train(config_of(8), traced, STEPS)
    assert "no trace of steps 3 to 5: this start began after step 6" in capsys.readouterr().out
    assert list((traced / "trace").rglob("*")) == before


@pytest.mark.parametrize("text", ["5", "5:", "5:3", "0:4", "a:b", "3:5:7", "-1:3"])
def test_what_is_no_range_of_steps_is_one_sentence(tmp_path, capsys, text):
    words = ["train", "--config=configs/tiny.py", f"--workdir={tmp_path / 'run'}", f"--profile={text}"]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert f"--profile={text} is FIRST:LAST" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "per_dispatch", "said"),
    [
        ("5:7", 1, "--profile=5:7 ends after the last step, train.steps=6"),
        ("1:4", 1, "--profile=1:4 has the first step, which compiles; begin at 2 or later"),
        ("3:5", 2, "does not begin and end where a dispatch of train.steps_per_dispatch=2 steps does, as 3:4 would"),
    ],
)
def test_steps_that_a_run_does_not_have_so_are_refused(tmp_path, text, per_dispatch, said):
    config = config_of(6, steps_per_dispatch=per_dispatch)
    with pytest.raises(UserError, match=said):
        train(config, tmp_path / "run", traced_steps(text))
    assert not (tmp_path / "run").exists()
