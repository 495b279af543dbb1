"""Trials as one program: each equals its own single run, and ends as a workdir like any other."""

import contextlib
import itertools
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax import config as configs
from diffusion_jax import experiment
from diffusion_jax.cli.main import main
from diffusion_jax.experiment import vectorised
from diffusion_jax.report.metrics import read_metrics
from diffusion_jax.runs.sweep import vectorised as sweep_vectorised
from diffusion_jax.runs.sweep.trials import Trial, changed
from diffusion_jax.runs.workdir.paths import Workdir
from diffusion_jax.train import sharding
from diffusion_jax.train.checkpoint import Checkpoints
from diffusion_jax.train.state import TrainState

ROOT = Path(__file__).parents[2]

STEPS = 20

CHANGES = [
    {"seed": 0, "optimizer.learning_rate": 3e-3, "optimizer.weight_decay": 0.0, "ema.decay": 0.9},
    {"seed": 5, "optimizer.learning_rate": 4e-4, "optimizer.weight_decay": 0.3, "ema.decay": 0.5},
]
MORE = [{"vlb_weight": 0.001, "condition_dropout": 0.1}, {"vlb_weight": 0.1, "condition_dropout": 0.5}]


def base():
    config = configs.base()
    config.data.shape = (8, 8, 1)
    with config.unlocked():
        config.data.update(cache=True, threads=1)
        config.schedule, config.prediction = "cosine(steps=100)", "eps(learned_variance=True)"
        config.model.update(channels=8, multipliers=(1,), blocks=1, attention=(), groups=4, num_classes=10)
        config.optimizer.update(name="adamw", warmup=5, decay="cosine")
        config.train.update(steps=STEPS, batch_size=8)
    return config


@pytest.fixture(scope="module")
def trials():
    return [changed(base(), one | more) for one, more in zip(CHANGES, MORE, strict=True)]


def batches_of(config, model):
    """The first `STEPS`."""
    with contextlib.closing(experiment.batches(config, experiment.source(config), model)) as batches:
        return [{name: batch[name] for name in ("x", "label")} for batch in itertools.islice(endless(batches), STEPS)]


def endless(batches):
    while True:
        yield next(batches)


@pytest.fixture(scope="module")
def batches(trials):
    """Of each trial: its seed shuffles them."""
    model = experiment.model(trials[0])
    return [batches_of(config, model) for config in trials]


@pytest.fixture(scope="module")
def single(trials, batches):
    """(losses [STEPS], state) of the second trial by itself, as `train` steps it."""
    mesh, config = sharding.mesh(devices=jax.devices()[:1]), trials[1]
    model = experiment.model(config)
    state, step = (
        experiment.initial_state(config, experiment.trainee(config, model), mesh),
        experiment.compiled_step(config, experiment.trainee(config, model), mesh),
    )
    losses = []
    for batch in batches[1]:
        state, metrics = step(state, batch, jax.random.key(config.seed), {})
        losses.append(float(metrics["loss"]))
    return losses, jax.device_get(state)


@pytest.mark.parametrize(
    "at_once", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["vmap", "one after another"]
)
def test_a_trial_is_its_own_single_run(trials, batches, single, at_once):
    """Seeds, learning rates, decays, averages, loss weights and dropped labels all differ."""
    mesh = sharding.mesh(devices=jax.devices()[:1])
    model = experiment.model(trials[0])
    values = vectorised.values(trials, list(CHANGES[0] | MORE[0]))
    steps = vectorised.train_steps(trials[0], model, mesh, own_batches=True, at_once=at_once)
    step = jax.jit(steps, out_shardings=sharding.replicated(mesh))
    states = vectorised.initial_states(trials[0], model, mesh, values["seed"])
    seeds = jax.vmap(jax.random.key)(values["seed"])
    losses = []
    for batch in zip(*batches, strict=True):
        states, metrics = step(states, jax.tree.map(lambda *arrays: np.stack(arrays), *batch), seeds, values)
        losses.append(np.asarray(metrics["loss"]))
    assert int(states.step) == STEPS
    assert step._cache_size() == 1
    expected, state = single
    np.testing.assert_allclose(np.asarray(losses)[:, 1], expected, rtol=2e-5)
    mine = vectorised.one(jax.device_get(states), 1)
    for name in ("params", "ema"):
        for a, b in zip(jax.tree.leaves(getattr(mine, name)), jax.tree.leaves(getattr(state, name)), strict=True):
            np.testing.assert_allclose(a, b, atol=2e-5)
    assert np.abs(np.diff(np.asarray(losses), axis=1)).min() > 1e-4  # the other trial is another


SWEEP = """from diffusion_jax.sweeps import Objective, Sweep, choice
def get_sweep():
    return Sweep({'optimizer.learning_rate': choice(%s)}, Objective(last=1), fixed={'train.batch_size': 8})
"""


RATES = "3e-3, 1e38, 1e-3"
SHORT = [f"--config.{text}" for text in ("optimizer.warmup=0", "sample.every=20", "sample.num=10", "sample.steps=2")]


def flags(tmp_path, rates, name, *others):
    file = tmp_path / "sweep.py"
    file.write_text(SWEEP % rates)
    tiny = f"--config={ROOT / 'configs/tiny.py'}"
    return ["sweep", tiny, f"--sweep={file}", f"--workdir={tmp_path / name}", "--vectorised", *others]


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A finished sweep of three trials, of which one diverges at once."""
    root = tmp_path_factory.mktemp("vectorised")
    assert main(flags(root, RATES, "sweep", *SHORT)) == 4
    return root / "sweep"


def test_a_vectorised_sweep_ends_in_ordinary_workdirs(swept):
    rows = json.loads((swept / "results.json").read_text())["trials"]
    assert [(row["trial"], row["state"]) for row in rows] == [(0, "done"), (2, "done"), (1, "failed")]
    assert rows[2]["reason"].startswith("its loss was not finite since step ")
    trial = swept / "trials" / "000"
    assert [record["step"] for record in read_metrics(trial / "metrics.jsonl")] == [5, 10, 15, 20]
    assert configs.from_json((trial / "config.json").read_text()).optimizer.learning_rate == 3e-3
    assert [path.name for path in (trial / "samples").iterdir()] == ["00000020.png"]
    assert (trial / "loss.png").is_file()


@pytest.mark.slow
def test_a_trial_has_the_losses_of_a_single_run(swept, tmp_path, monkeypatch):
    devices = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda *_: devices)
    assert main(["train", f"--config={ROOT / 'configs/tiny.py'}", f"--workdir={tmp_path / 'run'}",
                 *SHORT, "--config.train.batch_size=8"]) == 0  # fmt: skip
    trial = swept / "trials" / "000"
    assert main(["sample", f"--workdir={trial}", f"--out={tmp_path / 'out'}", "--num=8", "--steps=2"]) == 0
    single, own = (read_metrics(root / "metrics.jsonl") for root in (tmp_path / "run", trial))
    assert set(single[0]) == set(own[0])
    for name in ("loss", "grad_norm", "loss_by_time/0.5"):
        np.testing.assert_allclose([r[name] for r in own], [r[name] for r in single], rtol=1e-4)


def test_a_kill_between_two_saves_goes_on_from_the_older(tmp_path):
    """One trial has its second checkpoint, the other a part of it: both go, and the first is what all have."""
    trials = []
    for number, steps in enumerate([(10, 20), (10, 20), ()]):
        trial = Trial(number, {}, base(), Workdir(tmp_path / str(number)))
        with contextlib.closing(Checkpoints(trial.workdir.checkpoints)) as checkpoints:
            for step in steps:
                state = TrainState(jnp.int32(step), {"a": jnp.ones(2)}, {"a": jnp.ones(2)}, {"a": jnp.ones(2)})
                checkpoints.save(state, position={}, config="{}")
        trials.append(trial)
    (trials[1].workdir.checkpoints / "20" / "manifest.json").unlink()
    assert sweep_vectorised._common_step(trials[:2]) == 10
    assert [[path.name for path in trial.workdir.checkpoints.iterdir()] for trial in trials[:2]] == [["10"], ["10"]]
    assert sweep_vectorised._common_step(trials) is None  # one was not saved at all
    assert not list(trials[0].workdir.checkpoints.iterdir())


@pytest.mark.slow
def test_a_killed_sweep_goes_on_from_the_step_that_all_have(swept, tmp_path):
    """A kill came while the first trial's last checkpoint was whole, the third's not; the one that diverged is over."""
    root = tmp_path / "sweep"
    shutil.copytree(swept, root)
    for name in ("000", "002"):
        (root / "trials" / name / "trial.json").unlink()
    for name in ("commit_success.txt", "manifest.json"):
        (root / "trials" / "002" / "checkpoints" / "20" / name).unlink()
    (root / "trials" / "000" / "checkpoints" / "20" / "manifest.json").unlink()
    assert main(flags(tmp_path, RATES, "sweep", *SHORT)) == 4
    for name in ("000", "002"):
        before, after = (read_metrics(each / "trials" / name / "metrics.jsonl") for each in (swept, root))
        assert [record["step"] for record in after] == [5, 10, 15, 20]
        np.testing.assert_allclose([r["loss"] for r in after], [r["loss"] for r in before], rtol=1e-5)
    first, second = (json.loads((each / "results.json").read_text())["trials"] for each in (swept, root))
    assert [row["trial"] for row in first] == [row["trial"] for row in second]


@pytest.mark.parametrize(
    ("key", "values", "message"),
    [
        ("model.channels", "8, 16", "--vectorised cannot sweep model.channels"),
        ("optimizer.b2", "0.9, 0.99", "it takes seed, optimizer.learning_rate, optimizer.weight_decay, ema.decay"),
        ("optimizer.weight_decay", "0.0, 0.1", "optimizer.weight_decay needs optimizer.name='adamw'"),
    ],
)
def test_what_cannot_be_one_program_is_refused(tmp_path, capsys, key, values, message):
    arguments = flags(tmp_path, values, "sweep")
    file = tmp_path / "sweep.py"
    file.write_text(file.read_text().replace("optimizer.learning_rate", key))
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "sweep").exists()
