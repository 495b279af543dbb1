"""`import diffusion_jax`: a workdir as a model that draws arrays, the same ones as the command; arguments by name."""

import json
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import logging
from random_workdir import write

import diffusion_jax as dj
from diffusion_jax.cli.main import main
from diffusion_jax.errors import in_python
from diffusion_jax.report import pictures

NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs") / "run"
    write(root, "diffusion")
    (root / "classes.json").write_text(json.dumps({"format": "diffusion_jax classes 1", "names": NAMES}))
    return root


@pytest.fixture(scope="module")
def loaded(root):
    return dj.load(root)


def test_the_same_arrays_as_the_command(root, loaded, tmp_path):
    """Of the same seeds, labels and batches: in bits, for the programs are the same."""
    flags = ["--num=6", "--seed=3", "--label=two", "--label=none", "--label=5", "--guidance=2", "--batch=4"]
    assert main(["sample", f"--workdir={root}", f"--out={tmp_path / 'out'}", *flags]) == 0
    drawn = loaded.sample(6, seed=3, labels=["two", None, 5], guidance=2.0, batch=4)
    assert drawn.dtype == np.float32
    assert drawn.shape == (6, 8, 8, 1)
    images = np.load(tmp_path / "out/samples.npz")["images"]
    np.testing.assert_array_equal(pictures.to_uint8(drawn), images)
    assert (drawn[0] != drawn[3]).any()


def test_a_label_may_be_a_name_or_a_number_and_a_program_is_compiled_once(loaded):
    by_name = loaded.sample(2, labels="two")
    programs = dict(loaded._programs)
    np.testing.assert_array_equal(by_name, loaded.sample(2, labels=2))
    np.testing.assert_array_equal(by_name, loaded.sample(2, labels=["two", 2], steps=None))
    assert loaded._programs == programs
    assert loaded.class_names == NAMES


def test_a_ddim_step_of_the_denoiser_is_the_sampler_s(loaded):
    """`sample` without a threshold is what `core` samples with the denoiser."""
    sample = loaded.sample(2, labels=[4, 7], steps=1, sampler="ddim", threshold="none", seed=5)
    denoise = loaded.denoiser({"label": jnp.array([4, 7])})
    schedule = loaded.model.schedule
    sampler = dj.core.SAMPLERS["ddim"]()
    times = dj.core.GRIDS["trailing"]()(schedule, 1)
    drawn = dj.core.sample(denoise, sampler, schedule, jnp.asarray(times), jnp.array([5, 6]), loaded.model.x_shape)
    np.testing.assert_allclose(sample, drawn, atol=1e-5)
    x0 = jax.jit(lambda x: denoise(x, jnp.ones(2)).x0)(jnp.zeros((2, 8, 8, 1)))
    assert x0.shape == (2, 8, 8, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": "tow"}, r"labels is one of .*; got tow"),
        ({"prompts": "x"}, "prompts needs a model that is told captions"),
        ({"negative_prompt": "x"}, "negative_prompt needs a model that is told captions"),
        ({"num": 0}, "num is at least 1; got 0"),
        ({"seed": -1}, "seed is "),
        ({"batch": 0}, "batch is at least 1; got 0"),
        ({"steps": 0}, "steps is at least 1; got 0"),
        ({"guidance_interval": (1, "x")}, "guidance_interval"),
        ({"low_res": "a.png"}, "low_res is of a model trained with it"),
        ({"sampler": "ddmi"}, "unknown sampler 'ddmi'"),
        ({"guidnce": 2.0}, "no argument 'guidnce'.*Did you mean 'guidance'"),
    ],
)
def test_a_mistake_says_the_argument(loaded, arguments, message):
    with pytest.raises(dj.UserError, match=message) as error:
        loaded.sample(**arguments)
    assert "--" not in str(error.value)


def test_orbax_does_not_explain_its_defaults(root, caplog):
    before = logging.get_verbosity()
    logging.set_verbosity(logging.WARNING)  # as where no command has changed it
    try:
        dj.load(root)
    finally:
        logging.set_verbosity(before)
    assert not caplog.records


def test_what_cannot_be_loaded_trained_or_measured_says_the_argument_too(root, tmp_path):
    for call, message in (
        (lambda: dj.load(tmp_path / "none"), "none is not a workdir: it has no config.json; check the path"),
        (lambda: dj.load(root, step=3), "no checkpoint of step 3 .*there are 7"),
        (lambda: dj.load(root, ema=0.1), "profiles"),
        (lambda: dj.evaluate(root, "fid"), "give metrics=fd features=inception"),
        (lambda: dj.evaluate(root, "bits_per_dim", num=0), "num is at least 1; got 0"),
        (lambda: dj.evaluate(root, "bits_per_dim", out="a.txt"), "out=a.txt is to be a new .json"),
        (lambda: dj.train({}, tmp_path / "run"), "missing key"),
        (lambda: dj.train(dj.config.base().to_dict() | {"seed": -1}, tmp_path / "run"), "seed is "),
    ):
        with pytest.raises(dj.UserError, match=message) as error:
            call()
        assert not re.search(r"--\w", str(error.value))


def test_a_config_is_trained_loaded_and_measured(tmp_path):
    config = dj.config.base()
    config.schedule = "cosine(steps=10)"
    config.model.update(channels=4, multipliers=(1,), blocks=1, attention=(), groups=2, num_classes=10)
    config.train.update(steps=1, batch_size=4)
    config.sample.update(every=0, sampler="ddim", steps=2)
    root = dj.train(config, tmp_path / "run")
    loaded = dj.load(root)
    config.data.update(shape=(8, 8, 1), modality="image")  # which were open
    assert loaded.config.to_dict() == config.to_dict()
    assert loaded.step == 1
    file = tmp_path / "result.json"
    result = dj.evaluate(root, "bits_per_dim", num=4, batch=4, likelihood_steps=2, out=file)
    assert result == json.loads(file.read_text())
    assert np.isfinite(result["metrics"]["bits_per_dim"]["value"])


def test_flags_become_arguments():
    for said, expected in (
        ("give --prompt=TEXT, or --prompt= for none", "give prompts=TEXT, or prompts='' for none"),
        ("--label=cat is no class; --noema", "labels=cat is no class; ema=False"),
        ("give --extension=mypkg, or install it", "call diffusion_jax.trust('mypkg'), or install it"),
        ("two - or -- are no flags", "two - or -- are no flags"),
    ):
        assert in_python(said) == expected


def test_importing_it_waits_for_no_jax():
    """A command's --help does not either, whose module this package holds."""
    code = "import sys, diffusion_jax as dj; dj.config; dj.train; print('jax' in sys.modules, 'core' in dir(dj))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, check=True)
    assert run.stdout.split() == ["False", "True"]
