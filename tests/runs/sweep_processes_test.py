"""Sweeps of real processes that get real signals: nothing is lost, nothing is run twice, the table stays the same."""

import functools
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from sweep_driver import STUB

from diffusion_jax.cli.main import main
from diffusion_jax.runs.sweep import local as sweep_local
from diffusion_jax.runs.sweep import trials as sweep_trials
from diffusion_jax.train.faults import Stop

ROOT = Path(__file__).parents[2]
TINY = f"--config={ROOT / 'configs/tiny.py'}"

HEADER = "from diffusion_jax.sweeps import Objective, Sweep, choice, log_uniform\n"
FIXED = "fixed={'train.steps': 12, 'log_every': 1, 'checkpoint.every': 4, 'sample.every': 0}"
GRID = f"""{HEADER}
def get_sweep():
    return Sweep({{'optimizer.learning_rate': choice(1e-4, 1e-3, 4e-3, 1e-2)}}, Objective(last=2), {FIXED})
"""
HYPERBAND = f"""{HEADER}
def get_sweep():
    return Sweep(
        {{'optimizer.learning_rate': log_uniform(1e-5, 1e-1), 'seed': choice(0, 1)}},
        Objective(last=1),
        method='tpe(trials=8, startup=3)',
        pruner='hyperband(min_steps=3, reduction=2)',
        {FIXED},
    )
"""


@pytest.fixture(autouse=True)
def stubbed(monkeypatch):
    """Trials are those of sweep_stub.py."""
    monkeypatch.setattr(sweep_local, "command", functools.partial(sweep_trials.command, program=STUB))
    monkeypatch.setattr(sweep_local, "_POLL", 0.02)


def flags(tmp_path, text, name, *others):
    file = tmp_path / "sweep.py"
    file.write_text(text)
    return [TINY, f"--sweep={file}", f"--workdir={tmp_path / name}", *others]


def table(root):
    return json.loads((root / "results.json").read_text())["trials"]


def runs(root):
    """Of each trial: its starts and ends in order."""
    return {
        path.parent.name: [json.loads(line) for line in path.read_text().splitlines()]
        for path in sorted((root / "trials").glob("*/runs"))
    }


def test_a_grid_is_ranked_and_its_best_is_right(tmp_path):
    assert main(["sweep", *flags(tmp_path, GRID, "sweep", "--jobs=2")]) == 0
    rows = table(tmp_path / "sweep")
    assert [row["trial"] for row in rows] == [1, 2, 0, 3]
    assert [row["changes"]["optimizer.learning_rate"] for row in rows] == [1e-3, 4e-3, 1e-4, 1e-2]
    ends = [(1 - e) * 0 + e for e in (2.718281828459045 ** -(11 / 5), 2.718281828459045 ** -(12 / 5))]
    assert rows[0]["value"] == pytest.approx(sum(ends) / 2)
    times = runs(tmp_path / "sweep")
    assert all(len(each) == 2 for each in times.values())
    if len(os.sched_getaffinity(0)) > 1:
        first, second = (set(times[name][0]["cores"]) for name in ("000", "001"))
        assert not first & second


@pytest.mark.parametrize("text", [GRID, HYPERBAND], ids=["grid", "hyperband"])
def test_a_killed_sweep_goes_on_to_the_same_table(tmp_path, text):
    assert main(["sweep", *flags(tmp_path, text, "whole")]) == 0
    command = [sys.executable, str(ROOT / "tests/runs/sweep_driver.py"), *flags(tmp_path, text, "killed")]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "STUB_SECONDS": "0.1"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:
        metrics = tmp_path / "killed" / "trials" / "001" / "metrics.jsonl"
        wait(lambda: metrics.is_file() and metrics.read_text().count("\n") >= 2)
        process.kill()
    if text is GRID:  # here the killed one's child is killed too, there it goes on alone
        os.kill(runs(tmp_path / "killed")["001"][0]["pid"], signal.SIGKILL)
    assert not (tmp_path / "killed" / "report.html").exists()
    assert main(["sweep", *flags(tmp_path, text, "killed")]) == 0
    assert table(tmp_path / "killed") == table(tmp_path / "whole")
    assert all_one_after_another(runs(tmp_path / "killed"))
    if text is HYPERBAND:
        states = [row["state"] for row in table(tmp_path / "whole")]
        assert {"done", "pruned"} == set(states)
        assert len(states) == 8


def all_one_after_another(times):
    """Whether no trial had two processes at once, and none that had ended began again."""
    for lines in times.values():
        for line, following in itertools.pairwise(lines):
            if line.get("step") == 12 or line["at"] > following["at"]:
                return False
    return True


def test_crashes_are_recorded_and_the_rest_goes_on_and_retry_runs_them_again(tmp_path, capsys):
    text = GRID.replace("1e-4, 1e-3, 4e-3, 1e-2", "0.5, 1e-3, 0.25")
    assert main(["sweep", *flags(tmp_path, text, "sweep")]) == 4
    said = capsys.readouterr()
    assert "2 of 3 trials failed and have no rank: 000, 002" in said.err
    assert [line.split()[0] for line in said.out.splitlines() if line.endswith("  failed")] == ["000", "002"]
    rows = table(tmp_path / "sweep")
    assert [(row["trial"], row["state"]) for row in rows] == [(1, "done"), (0, "failed"), (2, "failed")]
    assert rows[1]["reason"] == "status 1: it crashed, as it was told"
    assert rows[2]["reason"] == "its loss was not finite at the end"
    assert main(["sweep", *flags(tmp_path, text, "sweep")]) == 4
    assert {name: len(each) for name, each in runs(tmp_path / "sweep").items()} == {"000": 1, "001": 2, "002": 2}
    assert main(["sweep", *flags(tmp_path, text, "sweep", "--retry")]) == 4
    assert {name: len(each) for name, each in runs(tmp_path / "sweep").items()} == {"000": 2, "001": 2, "002": 2}
    assert main(["sweep", *flags(tmp_path, GRID.replace("1e-4, 1e-3, 4e-3, 1e-2", "0.5"), "bad")]) == 2
    assert "all 1 trials failed; of trial 000" in capsys.readouterr().err
    assert (tmp_path / "bad" / "report.html").exists()


def test_the_trials_that_are_done_are_read_anew(tmp_path):
    """One of an earlier version's record keeps its outcome; one that a new objective finds not finite has failed."""
    text = GRID.replace("1e-4, 1e-3, 4e-3, 1e-2", "1e-4, 1e-3")
    assert main(["sweep", *flags(tmp_path, text, "sweep", "--jobs=2")]) == 0
    before = table(tmp_path / "sweep")
    path = tmp_path / "sweep" / "trials" / "000" / "trial.json"
    record = json.loads(path.read_text())
    del record["step"], record["seconds"]
    path.write_text(json.dumps(record))
    assert main(["sweep", *flags(tmp_path, text, "sweep")]) == 0
    assert table(tmp_path / "sweep") == before
    for number, other in (("000", "1.0"), ("001", "null")):
        metrics = tmp_path / "sweep" / "trials" / number / "metrics.jsonl"
        metrics.write_text(metrics.read_text().replace('"loss"', f'"other": {other}, "loss"'))
    assert main(["sweep", *flags(tmp_path, text.replace("Objective(", "Objective('other', ", 1), "sweep")]) == 4
    rows = table(tmp_path / "sweep")
    assert [(row["trial"], row["state"], row["value"]) for row in rows] == [(0, "done", 1.0), (1, "failed", None)]


def test_a_sweep_of_an_earlier_version_goes_on(tmp_path, capsys):
    """The defaults of keys that it lacks complete its record, as those of a workdir; other values are another sweep."""
    assert main(["sweep", *flags(tmp_path, GRID, "sweep", "--launcher=manifest")]) == 0
    path = tmp_path / "sweep" / "sweep.json"
    now = path.read_bytes()
    record = json.loads(now)
    del record["config"]["model"]["places"], record["config"]["evaluate"]
    path.write_text(json.dumps(record))
    assert main(["sweep", *flags(tmp_path, GRID, "sweep", "--launcher=manifest")]) == 0
    said = capsys.readouterr().err
    assert "an earlier version wrote" in said
    assert "sweep.json: the defaults of evaluate, model.places complete it" in said
    assert path.read_bytes() == now
    path.write_text(json.dumps(record))
    other = flags(tmp_path, GRID, "sweep", "--launcher=manifest", "--config.model.places=True")
    assert main(["sweep", *other]) == 2
    assert "config.model.places is False there and True here" in capsys.readouterr().err
    for content in ("{", "[]", "{}", json.dumps(record | {"config": {"nonsense": 1}})):
        path.write_text(content)
        assert main(["sweep", *flags(tmp_path, GRID, "sweep")]) == 2
        said = capsys.readouterr().err
        assert "sweep.json is damaged" in said or "sweep.json is not what this version of sweep wrote" in said
        assert said.count("\n") == 1


def test_a_signal_stops_the_trials_saved_and_the_same_command_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("STUB_SECONDS", "0.1")
    first = tmp_path / "sweep" / "trials" / "000"
    stops = []
    monkeypatch.setattr(Stop, "__init__", lambda self: stops.append(self) or setattr(self, "signal", None))

    def stop():
        wait(lambda: (first / "metrics.jsonl").is_file())
        stops[-1].signal = "SIGTERM"

    thread = threading.Thread(target=stop)
    thread.start()
    assert main(["sweep", *flags(tmp_path, GRID, "sweep")]) == 0
    thread.join()
    assert "4 of 4 trials to go" in capsys.readouterr().out
    begun = runs(tmp_path / "sweep")
    assert list(begun) == ["000"]
    step = begun["000"][-1]["step"]
    assert 0 < step < 12
    monkeypatch.setenv("STUB_SECONDS", "0.01")
    assert main(["sweep", *flags(tmp_path, GRID, "sweep")]) == 0
    assert [row["trial"] for row in table(tmp_path / "sweep")] == [1, 2, 0, 3]


def test_two_processes_share_a_study_and_run_no_trial_twice(tmp_path):
    arguments = ["sweep", *flags(tmp_path, HYPERBAND, "sweep")]
    command = [sys.executable, str(ROOT / "tests/runs/sweep_driver.py"), *arguments[1:]]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "STUB_SECONDS": "0.05"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:
        wait(lambda: (tmp_path / "sweep" / "trials" / "000" / "runs").is_file())
        assert main(arguments) == 0
        assert process.wait(120) == 0
    times = runs(tmp_path / "sweep")
    assert len(times) == len(table(tmp_path / "sweep")) == 8
    assert all(len(each) == 2 for each in times.values())


def test_a_manifest_is_run_anywhere_and_then_reported(tmp_path):
    assert main(["sweep", *flags(tmp_path, GRID, "sweep", "--launcher=manifest")]) == 0
    lines = (tmp_path / "sweep" / "manifest.sh").read_text().splitlines()
    assert len(lines) == 4
    assert all(line.startswith("diffusion-jax train --config=") for line in lines)
    for number in range(4):
        (tmp_path / "sweep" / "trials" / f"{number:03d}").mkdir(parents=True)
    stub = " ".join(STUB)
    subprocess.run(["bash", "-ec", "\n".join(line.replace("diffusion-jax", stub, 1) for line in lines)], check=True)
    assert main(["sweep", *flags(tmp_path, GRID, "sweep")]) == 0
    assert [row["trial"] for row in table(tmp_path / "sweep")] == [1, 2, 0, 3]
    assert all(len(each) == 2 for each in runs(tmp_path / "sweep").values())


def wait(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
