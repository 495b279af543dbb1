"""The sweep command with real training, and what it says to bad input."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from diffusion_jax.cli.main import main
from diffusion_jax.errors import UserError
from diffusion_jax.runs.sweep import local as sweep_local
from diffusion_jax.runs.sweep import slurm as sweep_slurm
from diffusion_jax.runs.sweep.run import load
from diffusion_jax.train.faults import Stop

ROOT = Path(__file__).parents[2]
TINY = f"--config={ROOT / 'configs/tiny.py'}"
SWEEP = """from diffusion_jax.sweeps import Objective, Sweep, choice, log_uniform, uniform
def get_sweep():
    return Sweep(%s)
"""
SHORT = "fixed={'train.steps': 4, 'log_every': 2, 'checkpoint.every': 2, 'sample.every': 4, 'sample.num': 10}"


def sweep(tmp_path, text, *flags, name="sweep"):
    file = tmp_path / "sweep.py"
    file.write_text(SWEEP % text)
    return main(["sweep", TINY, f"--sweep={file}", f"--workdir={tmp_path / name}", *flags])


@pytest.mark.slow  # three whole trainings
def test_real_trials_one_of_which_cannot_be(tmp_path, monkeypatch, capsys):
    """The failed trial is the second of three, the third was there already; the report shows the best one's samples."""
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")
    text = f"{{'model.groups': choice(4, 3)}}, Objective(last=1), {SHORT}"
    assert sweep(tmp_path, text) == 4
    out = capsys.readouterr().out
    assert "trial 001 failed: status 2: 8 channels cannot be normalized in 3 groups" in out
    root = tmp_path / "sweep"
    rows = json.loads((root / "results.json").read_text())["trials"]
    assert [(row["trial"], row["state"]) for row in rows] == [(0, "done"), (1, "failed")]
    assert "data:image/png" in (root / "report.html").read_text()
    assert (root / "report.png").stat().st_size > 10_000
    command = json.loads((root / "results.json").read_text())["command"].split()
    assert command[:2] == ["diffusion-jax", "train"]
    assert (
        main(["sample", f"--workdir={root / 'trials/000'}", f"--out={tmp_path / 'out'}", "--num=8", "--steps=2"]) == 0
    )
    # Another metric ranks the same trials, none of which is run again; one that was never logged is refused.
    before = (root / "trials/000/log.txt").read_bytes()
    assert sweep(tmp_path, text.replace("Objective(last=1)", "Objective('grad_norm', 'maximize')")) == 4
    assert json.loads((root / "results.json").read_text())["objective"]["metric"] == "grad_norm"
    assert sweep(tmp_path, text.replace("Objective(last=1)", "Objective('lss')")) == 2
    error = capsys.readouterr().err
    assert "the objective 'lss' was never logged by trial 000, which logged grad_norm" in error
    assert (root / "trials/000/log.txt").read_bytes() == before


@pytest.mark.parametrize(
    ("text", "flags", "message"),
    [
        ("{'optimizer.lr': choice(1.0)}", [], "unknown key config.optimizer.lr"),
        ("{'optimiser.learning_rate': choice(1.0)}", [], "unknown key config.optimiser in optimiser.learning_rate"),
        ("{'seed.x': choice(1.0)}", [], "unknown key config.seed in seed.x"),
        ("{'seed': choice(0.5)}", [], "config.seed is of type int"),
        ("{'optimizer': choice(0.5)}", [], "config.optimizer is a section"),
        ("{'seed': uniform(0.0, 1.0)}, method='random'", [], "config.seed is of type int"),
        ("{'seed': choice(1)}, fixed={'train.step': 3}", [], "unknown key config.train.step"),
        ("{}", [], "a sweep's space is empty"),
        ("{'seed': choice()}", [], "choice() is an empty space"),
        ("{'seed': choice(1)}", ["--config.seed=3"], "--config.seed is swept by"),
        ("{'seed': choice(1)}", ["--jobs=0"], "--jobs is at least 1; got 0"),
        ("{'seed': choice(1)}", ["--launcher=ssh"], "unknown launcher 'ssh'; choose from local, slurm, manifest"),
        ("{'seed': choice(1)}", ["--storage=sqlite:///x.db"], "--storage is of sweeps that learn from results"),
        ("{'seed': choice(1)}", ["--vectorised", "--jobs=2"], "--vectorised is one program on this machine"),
        ("{'seed': choice(1)}", ["--slurm=partition=gpu"], "--slurm says what --launcher=slurm asks for"),
        ("{'seed': choice(1)}", ["--launcher=slurm", "--slurm=gpu"], "--slurm is name=value"),
        (
            "{'seed': choice(1)}, method='tpe'",
            ["--launcher=manifest"],
            "--launcher=manifest takes a sweep whose trials",
        ),
        ("{'seed': choice(1)}, pruner='median'", ["--vectorised"], "--vectorised takes a sweep whose trials"),
        ("{'seed': choice(1)}, method='tpe'", ["--retry"], "--retry takes a sweep whose trials"),
        ("{'seed': choice(1)}, pruner='hyperband(min_steps=99)'", [], "min_steps=99 is more than train.steps=20"),
        ("{'seed': choice(1)}, method='tpe'", ["--storage=nosuch://x"], "cannot open the storage nosuch://x"),
        ("{'seed': choice(1)}", ["--config.checkpoint.mirror=memory://run"], "which no two trials can share"),
        ("1/0", [], "ZeroDivisionError"),
    ],
)
def test_bad_input_is_one_sentence_and_writes_nothing(tmp_path, capsys, text, flags, message):
    assert sweep(tmp_path, text, *flags) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "sweep").exists()


def test_files_that_are_no_sweep(tmp_path, capsys):
    for content in ("x = 1", "def get_sweep(): return 3", "def get_sweep(:"):
        (tmp_path / "sweep.py").write_text(content)
        arguments = [TINY, f"--sweep={tmp_path / 'sweep.py'}", f"--workdir={tmp_path / 'run'}"]
        assert main(["sweep", *arguments]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert main(["sweep", TINY, f"--sweep={tmp_path / 'none.py'}", f"--workdir={tmp_path / 'run'}"]) == 2
    assert "no sweep file" in capsys.readouterr().err
    assert main(["sweep", TINY]) == 2
    assert "sweep needs --config=FILE, --sweep=FILE and --workdir=FOLDER" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_sweep_file_is_read_as_it_is_now(tmp_path, monkeypatch):
    """Bytecode is told from its source by length and second, which a change may leave as they were."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    file = tmp_path / "sweep.py"
    for seed in (2, 3):
        file.write_text(SWEEP % f"{{'seed': choice(1, {seed})}}")
        os.utime(file, (1e9, 1e9))
        assert load(file).space["seed"].values == (1, seed)


def test_a_workdir_of_something_else_is_left_as_it_is(tmp_path, capsys):
    assert sweep(tmp_path, "{'seed': choice(1, 2)}", "--launcher=manifest") == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.name != "sweep.py"}
    capsys.readouterr()
    assert sweep(tmp_path, "{'seed': choice(1, 3)}") == 2
    assert "holds another sweep: sweep.space.seed is 'Choice(values=(1, 2))' there" in capsys.readouterr().err
    assert sweep(tmp_path, "{'seed': choice(1, 2)}", "--config.train.steps=7") == 2
    assert "holds another sweep: config.train.steps is 20 there and 7 here" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in before}
    shutil.rmtree(tmp_path / "sweep")
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "config.json").write_text("{}")
    assert sweep(tmp_path, "{'seed': choice(1, 2)}") == 2
    assert "has files and no sweep" in capsys.readouterr().err


def test_without_optuna_it_says_what_to_install(tmp_path, monkeypatch, capsys):
    find = sys.modules["importlib.util"].find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *a: None if name == "optuna" else find(name, *a))
    assert sweep(tmp_path, "{'seed': choice(1)}, method='tpe'") == 2
    assert "pip install 'diffusion-jax[sweep]'" in capsys.readouterr().err


def test_devices_are_split(monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,4,5,7")
    given = [share.environment["CUDA_VISIBLE_DEVICES"].split(",") for share in sweep_local.shares(2)]
    assert sorted(name for names in given for name in names) == ["0", "1", "4", "5", "7"]
    with pytest.raises(UserError, match="--jobs=6 is more than the 5 GPUs here"):
        sweep_local.shares(6)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert all(not share.environment for share in sweep_local.shares(6))


def test_an_array_of_jobs_runs_every_trial(tmp_path, capsys):
    """By submitit's own stand-in for SLURM: each job is the given command with its trial's number."""
    script = "import sys, pathlib; pathlib.Path(sys.argv[1], sys.argv[2][2:]).write_text('ran')"
    words = [sys.executable, "-c", script, str(tmp_path)]
    options = sweep_slurm.parameters("cluster=local,timeout_min=1")
    sweep_slurm.run(words, [0, 3], workers=1, folder=tmp_path / "jobs", options=options, stop=Stop())
    assert sorted(path.name for path in tmp_path.glob("worker=*")) == ["worker=0", "worker=3"]
    with pytest.raises(UserError, match="there is no SLURM here|cluster=slurm, or cluster=local"):
        sweep_slurm.parameters("cluster=pbs")


@pytest.mark.slow
def test_an_array_of_two_real_trials_ends_with_a_report(tmp_path):
    """Through the command, as on a cluster."""
    text = f"{{'optimizer.learning_rate': choice(1e-3, 3e-3)}}, Objective(last=1), {SHORT}"
    assert sweep(tmp_path, text, "--launcher=slurm", "--slurm=cluster=local,timeout_min=10") == 0
    rows = json.loads((tmp_path / "sweep" / "results.json").read_text())["trials"]
    assert [(row["trial"], row["state"]) for row in rows] == [(1, "done"), (0, "done")]
