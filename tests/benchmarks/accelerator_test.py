"""The ruler for accelerators, run at toy size: the day that one is there, it works."""

import json
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def accelerator(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    import accelerator

    return accelerator


def test_every_case_is_measured_by_every_kernel(accelerator, tmp_path, capsys):
    out = tmp_path / "out.json"
    accelerator.main(["--toy", "--torch=never", f"--out={out}"])
    made = json.loads(out.read_text())
    assert made["measured"]["matmul_flops"] > 0
    assert made["measured"]["copy_bytes"] > 0
    told = [(each["case"], each["batch"], each["side"]) for each in made["cases"]]
    assert told == [(case.name, case.batch, side) for side in accelerator.KERNELS for case in accelerator.TOY]
    for each in made["cases"]:
        assert "error" not in each, each
        assert each["images_per_second"] == pytest.approx(each["batch"] / each["median"])
        assert each["flops"] > 0
        assert each["mfu_measured"] == pytest.approx(each["flops"] / each["median"] / made["measured"]["matmul_flops"])
        assert each["mfu_nominal"] is None  # of a CPU
        assert each["memory"] > 0
    assert len(capsys.readouterr().out.splitlines()) == 2 * len(told) + 3


def test_what_fails_or_has_no_time_left_says_so_and_the_others_go_on(accelerator, monkeypatch):
    def of_jax(case, kernel, budget, quick):
        if case.batch == 1:
            raise RuntimeError("out of\nmemory")
        return {"median": 0.5, "least": 0.5, "most": 0.5, "flops": 4, "compile_seconds": 0.0, "memory": None}

    monkeypatch.setattr(accelerator, "of_jax", of_jax)
    peak = {"nominal": 16.0, "measured": 8.0}
    by, cases = accelerator.sides("never", True), (accelerator.TOY[3], accelerator.TOY[0])
    first, second = list(accelerator.results(cases, by, 60.0, 0.0, peak))[:2]
    assert first["error"] == "RuntimeError: out of memory"
    assert (second["images_per_second"], second["mfu_nominal"], second["mfu_measured"]) == (4, 0.5, 1)
    late = list(accelerator.results(cases, by, 0.0, 0.0, peak))
    assert all("left_out" in each for each in late)
    lines = list(accelerator.table([first, second, *late]))
    assert "out of memory" in lines[1]
    assert "50.0%" in lines[2]
    assert "left out" in lines[3]


@pytest.mark.parity
def test_torch_runs_every_case_too(accelerator):
    by = {name: side for name, side in accelerator.sides("always", True).items() if name != "xla"}
    made = list(accelerator.results(accelerator.TOY, by, 600.0, 0.0, {"nominal": None, "measured": 1e9}))
    made = [each for each in made if each["side"] == "torch"]
    assert len(made) == len(accelerator.TOY)
    for each in made:
        assert "error" not in each, each
        assert each["images_per_second"] > 0
        assert each["flops"] > 0
