"""Real signals to commands that draw: one line, the right status, nothing half-written, within 5 s."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from random_workdir import write

from diffusion_jax.evals.gathering import Gathered
from diffusion_jax.modalities import Image
from diffusion_jax.runs.evaluate.feature_extractor import FeatureExtractor
from diffusion_jax.runs.evaluate.measured_samples import SampleBatch, SampleSource, gather_samples
from diffusion_jax.runs.evaluate.partial import PartialEvaluation
from diffusion_jax.runs.evaluate.real_images import Interrupted
from diffusion_jax.train import sharding
from diffusion_jax.train.faults import stop_on_signal

ROOT = Path(__file__).parents[2]

DRIVER = """
import time
import jax
import numpy as np
from diffusion_jax import experiment
from diffusion_jax.cli.entry import entry
from diffusion_jax.report import pictures

endless = jax.jit(lambda: jax.lax.while_loop(lambda x: x >= 0, lambda x: (x + 1.0) % 7.0, 0.0))

def draw(params, pretrained, seeds, told):
    print("drawing", flush=True)
    return endless() if {phase!r} == "drawing" else np.zeros((len(seeds), 8, 8, 1), np.float32)

def encode(image):
    print("writing", flush=True)
    time.sleep(0.1)
    return b""

experiment.sample_program = lambda *how: draw
pictures.encode_png = encode
entry()
"""


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    root = tmp_path_factory.mktemp("interrupts") / "model"
    write(root, "diffusion")
    return root


@pytest.mark.parametrize(("phase", "number"), [("drawing", signal.SIGINT), ("writing", signal.SIGTERM)])
def test_a_signal_ends_sample_with_one_line_and_the_old_samples(workdir, tmp_path, one_device, phase, number):
    out = tmp_path / "out"
    out.mkdir()
    (out / "manifest.json").write_text("old")
    (tmp_path / "driver.py").write_text(DRIVER.format(phase=phase))
    command = [sys.executable, str(tmp_path / "driver.py"), "sample", f"--workdir={workdir}", f"--out={out}"]
    with subprocess.Popen(
        [*command, "--num=500", "--batch=500", "--overwrite"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=one_device | {"PYTHONPATH": str(ROOT), "GLIBC_TUNABLES": ""},
    ) as process:
        while process.stdout.readline() != f"{phase}\n":
            assert process.poll() is None, process.stderr.read()
        time.sleep(0.3)
        process.send_signal(number)
        begun = time.monotonic()
        threading.Timer(15, process.kill).start()  # of a test that fails
        error = process.stderr.read()
        assert process.wait() == 128 + number
    assert time.monotonic() - begun < 5
    assert error == f"diffusion-jax: stopped by {number.name}\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["driver.py", "out"]
    assert {path.name: path.read_text() for path in out.iterdir()} == {"manifest.json": "old"}


def test_an_evaluation_that_is_stopped_in_a_batch_keeps_those_before(tmp_path):
    """A batch of 8 that is drawn at once, then one that never ends."""
    batches, ended = [], threading.Event()

    def draw(seeds, cond):
        batches.append(seeds)
        if len(batches) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
            ended.wait(60)
        return jnp.zeros((8, 2, 2, 1))

    batches_from = lambda first: (SampleBatch({}, np.zeros((8, 2, 2, 1), np.float32)) for _ in range(first, 3))  # noqa: E731
    sample_source = SampleSource(
        sharding.mesh(), Image(), (2, 2, 1), np.arange(24), 8, draw, batches_from, "", restores=True
    )
    partial = PartialEvaluation(tmp_path, {})
    begun = time.monotonic()
    with stop_on_signal(), pytest.raises(Interrupted, match="8 of 24 samples"):
        gather_samples(["psnr"], sample_source, FeatureExtractor(None, None), partial, show=False)
    ended.set()
    assert time.monotonic() - begun < 10  # two small programs are compiled in it
    found = PartialEvaluation(tmp_path, {}).of("samples")[0]
    assert isinstance(found, Gathered)
    assert found.count == 8
