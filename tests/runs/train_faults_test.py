"""Real signals to a real training process, and data that is not finite: nothing is lost and nothing is twice."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from diffusion_jax.data.order import example_indices
from diffusion_jax.report.metrics import read_metrics

ROOT = Path(__file__).parents[2]

# run: the line after which it gets a SIGTERM
SIGNALS = {
    "stopped compiling": r"^[\d,]+ parameters ",
    "stopped stepping": r"^train \d",
    "stopped drawing": r"^drawing$",
}


@pytest.fixture(scope="module")
def driven(tmp_path_factory, one_device):
    """{run: what it said, and how it ended} of faults_driver.py, and its folder."""
    root = tmp_path_factory.mktemp("driven")
    environment = one_device | {
        "JAX_COMPILATION_CACHE_DIR": str(root / "cache"),  # empty: the first run must compile
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, str(ROOT / "tests/runs/faults_driver.py"), str(root)]
    runs, name, sent = {}, "", set()
    with (
        (root / "stderr").open("w") as error,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=error, text=True, env=environment) as process,
    ):
        for line in process.stdout:
            kind, _, rest = line.strip().partition(" ")
            if kind == "RUN":
                name = rest
                runs[name] = {"said": ""}
            elif kind == "ENDED":
                runs[name] |= json.loads(rest)
            else:
                runs[name]["said"] += line
                if name in SIGNALS and name not in sent and re.search(SIGNALS[name], line):
                    time.sleep(0.3 if name == "stopped compiling" else 0)
                    process.send_signal(signal.SIGTERM)
                    sent.add(name)
                    runs[name]["sent"] = time.monotonic()
    return root, runs, (root / "stderr").read_text()


def test_sigterm_while_compiling_saves_after_the_step_or_before_it_and_is_status_0(driven):
    """Before it where the compiler takes longer than a signal waits: then no step is done and there is none to save."""
    _, runs, errors = driven
    ended = runs["stopped compiling"]
    assert (ended["status"], ended["steps"]) in [(0, [1]), (0, [])]
    done = len(ended["steps"])
    assert ended["said"].endswith(
        f"stopped by SIGTERM after {done} steps, all of them saved; the same command goes on\n"
    )
    assert ended["time"] - ended["sent"] < 5
    assert errors.startswith("diffusion-jax: SIGTERM: saving after the step under way\n")


def test_sigterm_while_stepping_saves_where_it_was(driven):
    _, runs, _ = driven
    ended = runs["stopped stepping"]
    last = ended["steps"][-1]
    assert ended["status"] == 0
    assert 1 < last < 200
    assert f"stopped by SIGTERM after {last} steps" in ended["said"]
    assert ended["state"][2] == 16 * last


def test_sigterm_while_a_grid_is_drawn_that_never_ends_saves_and_ends_within_5_s(driven):
    """The last save was never: all of the steps are saved after the signal."""
    _, runs, _ = driven
    ended = runs["stopped drawing"]
    assert (ended["status"], ended["steps"]) == (0, [3])
    assert ended["said"].endswith("stopped by SIGTERM after 3 steps, all of them saved; the same command goes on\n")
    assert ended["time"] - ended["sent"] < 5
    assert ended["state"][2] == 16 * 3


def test_a_run_stopped_twice_ends_with_the_bits_of_one_that_was_not(driven):
    root, runs, _ = driven
    assert runs["finished"]["status"] == runs["whole"]["status"] == 0
    assert "stopped by" not in runs["finished"]["said"]
    assert runs["whole"]["state"][0] > 100
    assert runs["finished"]["state"] == runs["whole"]["state"]
    parts, whole = (read_metrics(root / name / "metrics.jsonl") for name in ("parts", "whole"))
    losses = {record["step"]: record["loss"] for record in whole}
    assert [record["step"] for record in parts if record["step"] in losses] == sorted(losses)
    # Where a run was stopped its log has a mean over fewer steps than the other's.
    same = [record for record in parts if losses.get(record["step"]) == record["loss"]]
    assert len(same) >= len(losses) - 2


def test_what_a_save_costs_is_in_the_metrics(driven):
    root, _, _ = driven
    records = [r for r in read_metrics(root / "whole" / "metrics.jsonl") if "save_stall_seconds" in r]
    assert [r["step"] for r in records] == [55, 105, 155]
    assert all(0 < r["save_stall_seconds"] < 60 for r in records)


def test_three_steps_in_a_row_that_are_not_finite_roll_back_past_their_data(driven):
    root, runs, errors = driven
    ended = runs["rolled back"]
    assert (ended["status"], ended["steps"]) == (0, [5, 10, 15, 20])
    # Step 5 ended at 80; step 10, the third in the row, at 160, where 15 more steps went on.
    assert ended["state"][2] == 160 + 15 * 16
    assert "not finite at step 10 and the 2 before it; the last checkpoint is of step 5; roll-back 1 of 2" in errors
    events = [json.loads(line) for line in (root / "once" / "nonfinite.jsonl").read_text().splitlines()]
    assert [(event["step"], event["positions"]) for event in events] == [
        (8, [112, 128]),
        (9, [128, 144]),
        (10, [144, 160]),
    ]
    assert events[1]["examples"] == example_indices(0, 1797, 128, 16).tolist()
    assert [record["step"] for record in read_metrics(root / "once" / "metrics.jsonl")] == [5, 10, 15, 20]
    noted = [json.loads(line) for line in (root / "once" / "events.jsonl").read_text().splitlines()]
    assert [(event["event"], event["step"]) for event in noted] == [("start", 0), ("roll-back", 5), ("end", 20)]
    assert "not finite at step 10" in noted[1]["reason"]


def test_after_a_roll_back_the_data_position_resumes_exactly(driven):
    _, runs, _ = driven
    assert runs["rolled back and stopped"]["steps"] == [5, 10, 15]
    assert runs["resumed"]["state"] == runs["rolled back"]["state"]


def test_after_the_last_roll_back_the_status_is_3(driven):
    root, runs, errors = driven
    assert (runs["given up"]["status"], runs["given up"]["steps"]) == (3, [5])
    assert "roll-back 2 of 2" in errors
    last = json.loads((root / "never" / "events.jsonl").read_text().splitlines()[-1])
    assert (last["event"], last["stopped"]) == ("end", "a loss that diverged")
    said = [line for line in errors.splitlines() if "SIGTERM" not in line]  # of runs before and after
    assert said[-1].startswith("diffusion-jax: loss or gradient is not finite at step 8")
    events = [json.loads(line)["step"] for line in (root / "never" / "nonfinite.jsonl").read_text().splitlines()]
    assert events == [8, 9, 10, 6, 7, 8, 6, 7, 8]
