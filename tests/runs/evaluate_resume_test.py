"""An evaluation that is killed, or asked to stop, goes on: the result is that of one that was not."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from random_workdir import write

from diffusion_jax.cli.main import main
from diffusion_jax.evals.gathering import NOTHING, Gathered
from diffusion_jax.runs.evaluate.partial import PartialEvaluation

ROOT = Path(__file__).parents[2]
NUM, BATCH = 320, 8


def count(folder):
    """Samples in what an evaluation has saved in folder; 0 where there are none yet."""
    for file in folder.glob("unfinished-*.npz"):
        try:
            with np.load(file) as saved:
                return int(saved["samples/count"])
        except (KeyError, OSError):
            pass
    return 0


def when(condition, act):
    """Does act as soon as condition holds."""

    def watch():
        while not condition():
            time.sleep(0.005)
        act()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A process killed by SIGKILL, then one stopped by SIGTERM, then one that ends; and one that was not disturbed."""
    home = tmp_path_factory.mktemp("resume")
    write(home / "model", "diffusion")
    write(home / "classifier", "classifier")

    def flags(out):
        return [
            "evaluate",
            f"--workdir={home}/model",
            "--metrics=fd,kid,precision_recall,inception_score,memorisation",
            f"--features={home}/classifier",
            "--kid_size=50",
            f"--num={NUM}",
            f"--batch={BATCH}",
            "--save_seconds=0",
            f"--out={out}",
        ]

    parts, whole = home / "parts", home / "whole"
    parts.mkdir()
    killed = flags(parts / "a.json")
    xla = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=2")  # as many as in this process
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": xla}
    with subprocess.Popen(
        [sys.executable, "-m", "diffusion_jax", *killed], stdout=subprocess.DEVNULL, env=environment
    ) as process:
        when(lambda: process.poll() is not None or count(parts) >= 3 * BATCH, process.kill)
    ends = {"killed": (process.returncode, count(parts))}
    first = ends["killed"][1]
    watcher = when(lambda: count(parts) >= first + 2 * BATCH, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit) as stopped:
        main(killed)
    watcher.join()
    ends["stopped"] = stopped.value.code, count(parts)
    leftovers = sorted(file.name for file in parts.iterdir())
    assert main(killed) == 0
    assert main(flags(whole / "a.json")) == 0
    return parts, whole, ends, leftovers


def test_a_killed_and_a_stopped_process_leave_what_they_had(runs):
    parts, _, ends, leftovers = runs
    (status, killed), (code, stopped) = ends["killed"], ends["stopped"]
    assert status == -signal.SIGKILL
    assert 3 * BATCH <= killed < stopped < NUM
    assert code == 75
    assert [name.partition("-")[0] for name in leftovers if not name.startswith(".")] == ["unfinished"]
    assert sorted(file.name for file in parts.iterdir() if not file.name.startswith(".")) == [
        "a.json",
        "a.memorisation.png",
    ]


def test_the_result_is_that_of_an_evaluation_that_was_not_disturbed(runs):
    parts, whole, _, _ = runs
    found, expected = (json.loads((folder / "a.json").read_text()) for folder in (parts, whole))
    values, others = ({k: m.pop("value") for k, m in r["metrics"].items()} for r in (found, expected))
    assert values.keys() == others.keys()
    for name, value in values.items():
        np.testing.assert_allclose(value, others[name], rtol=1e-9, atol=1e-12, err_msg=name)
    for metrics in (found["metrics"], expected["metrics"]):
        for entry in metrics.values():
            entry["std"] = None if entry["std"] is None else round(entry["std"], 9)
    assert found == expected
    pictures = [(folder / "a.memorisation.png").read_bytes() for folder in (parts, whole)]
    assert pictures[0] == pictures[1]


def test_another_evaluation_does_not_go_on_from_it(runs, tmp_path):
    """Seed, number and checkpoint are of the name."""

    one = PartialEvaluation(tmp_path, {"seed": 0})
    one.write("samples", NOTHING, {"a": 1})
    assert PartialEvaluation(tmp_path, {"seed": 0}).of("samples") == (NOTHING, {"a": 1})
    assert PartialEvaluation(tmp_path, {"seed": 1}).of("samples") == (None, None)


def test_a_damaged_file_is_said_and_begun_anew(tmp_path, capsys):
    one = PartialEvaluation(tmp_path, {})
    one.write("samples", Gathered(3, {}, {"pooled": np.arange(300.0).reshape(3, 100)}))
    data = bytearray(one.path.read_bytes())
    data[len(data) // 2] ^= 1
    one.path.write_bytes(data)
    assert PartialEvaluation(tmp_path, {}).of("samples") == (None, None)
    assert "is damaged" in capsys.readouterr().err
