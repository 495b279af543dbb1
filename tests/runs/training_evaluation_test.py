"""Evaluations in training: in the metrics, for the best checkpoints, going on after a stop; and averages after it."""

import json
import os
import signal
import time

import jax
import numpy as np
import pytest
from random_workdir import write

from diffusion_jax import experiment
from diffusion_jax.cli.main import main
from diffusion_jax.config import base
from diffusion_jax.errors import UserError
from diffusion_jax.report.metrics import read_metrics
from diffusion_jax.runs.train import train, training_evaluation
from diffusion_jax.runs.workdir import snapshots
from diffusion_jax.runs.workdir.paths import Workdir
from diffusion_jax.runs.workdir.restored import restore
from diffusion_jax.train import ema, sharding

STEPS, EVERY = 12, 3


def config_of(home, **changes):
    config = base()
    config.data.shape = (8, 8, 1)
    config.data.cache = True
    config.schedule, config.prediction = "cosine(steps=50)", "v"
    config.model.update(channels=4, multipliers=(1,), blocks=1, attention=(), groups=2, num_classes=10)
    config.optimizer.learning_rate = 0.03
    config.train.update(steps=STEPS, batch_size=16)
    config.log_every = 3
    config.ema.update(decay=0.9, profiles=(0.05, 0.1), every=1)
    config.checkpoint.update(every=3, keep=1, best=2)
    config.sample.update(every=0, sampler="ddim", steps=3, threshold="static")
    config.evaluate.update(
        every=EVERY, num=24, metrics=("fd", "precision_recall"), features=str(home / "classifier"), batch=8
    )
    config.update_from_flattened_dict({key.replace("__", "."): value for key, value in changes.items()})
    return config


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with whole, trained at one go; and the parameters after every step."""
    home = tmp_path_factory.mktemp("training")
    write(home / "classifier", "classifier")
    after = []
    compiled = experiment.compiled_step

    def recording(*args):
        compiled_step = compiled(*args)

        def step(*state):
            stepped = compiled_step(*state)
            after.append(jax.tree.map(lambda a: np.asarray(a, np.float64), stepped[0].params))
            return stepped

        return step

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "compiled_step", recording)
        train(config_of(home), home / "whole")
        assert len(after) == STEPS
    return home, after


@pytest.fixture(scope="module")
def home(trained):
    return trained[0]


@pytest.fixture(scope="module")
def stopped(home):
    """The folder, with parts: stopped by a SIGTERM within its second evaluation, and gone on with."""
    with pytest.MonkeyPatch.context() as patch:
        gather, calls = training_evaluation.measured_samples.gather_samples, []

        def interrupted(*args, **options):
            calls.append(1)
            if len(calls) == 2:
                os.kill(os.getpid(), signal.SIGTERM)
                sample_request = options["stopped"]
                options["stopped"] = lambda: _until(sample_request)
            return gather(*args, **options)

        patch.setattr(training_evaluation.measured_samples, "gather_samples", interrupted)
        parts = config_of(home, ema__every=3)
        train(parts, home / "parts")
        (home / "stopped.jsonl").write_text((home / "parts/metrics.jsonl").read_text())
        train(parts, home / "parts")
    return home


def _until(sample_request):
    """The signal takes a moment to be noted."""
    for _ in range(200):
        if sample_request():
            return True
        time.sleep(0.01)
    return False


def scores(path):
    return training_evaluation.scores(read_metrics(path))


def test_scores_are_in_the_metrics_and_files_at_their_intervals(home):
    found = scores(home / "whole/metrics.jsonl")
    assert list(found) == [3, 6, 9, 12]
    assert all(list(values) == ["fd", "precision", "recall"] for values in found.values())
    files = sorted((home / "whole/evaluations").iterdir())
    assert [int(file.name[:8]) for file in files] == [3, 6, 9, 12]
    result = json.loads(files[-1].read_text())
    assert result["metrics"]["fd"]["value"] == found[12]["fd"]
    assert result["subject"] | {"sampling": 0} == {
        "workdir": str(home / "whole"),
        "checkpoint_step": 12,
        "weights": "ema",
        "seed": 0,
        "seeds": [0, 23],
        "sampling": 0,
    }


def test_an_evaluation_in_training_is_what_evaluate_says_of_the_checkpoint(home, tmp_path):
    flags = ["--metrics=fd", "--num=24", "--batch=8", f"--features={home}/classifier", f"--out={tmp_path}/a.json"]
    assert main(["evaluate", f"--workdir={home}/whole", *flags]) == 0
    result = json.loads((tmp_path / "a.json").read_text())["metrics"]["fd"]
    assert result["value"] == pytest.approx(scores(home / "whole/metrics.jsonl")[12]["fd"], rel=1e-4)


def test_the_best_checkpoints_stay_beside_the_newest(home):
    found = scores(home / "whole/metrics.jsonl")
    best = sorted(found, key=lambda step: found[step]["fd"])[:2]
    steps = sorted(int(path.name) for path in (home / "whole/checkpoints").iterdir() if path.name.isdecimal())
    assert steps == sorted({*best, STEPS})


@pytest.mark.slow
def test_a_signal_in_an_evaluation_ends_it_and_the_next_run_makes_it_good(stopped):
    home = stopped
    assert list(scores(home / "stopped.jsonl")) == [3]
    assert read_metrics(home / "stopped.jsonl")[-1]["step"] == 6
    whole_run, parts = (scores(home / name / "metrics.jsonl") for name in ("whole", "parts"))
    assert list(parts) == list(whole_run)
    for step, values in whole_run.items():
        assert parts[step] == pytest.approx(values, rel=1e-4)


@pytest.mark.parametrize("sigma", [0.05, 0.07, 0.1, 0.15])
def test_an_average_from_snapshots_is_the_one_that_is_tracked(trained, sigma):
    """To 1e-3 of the parameters' size, against the recursion in float64 over the parameters after every step."""
    home, after = trained
    config = Workdir(home / "whole").read_config()
    average, gamma = after[0], ema.gamma_of(sigma)
    for n, params in enumerate(after, 1):
        beta = (1 - 1 / n) ** (gamma + 1)
        average = jax.tree.map(lambda a, p, b=beta: b * a + (1 - b) * p, average, params)
    abstract = experiment.abstract_state(config, experiment.trainee(config, experiment.model(config))).ema
    mesh = sharding.mesh(devices=jax.devices()[:1])
    found = snapshots.reconstruct(home / "whole", config, abstract, mesh, sigma, STEPS)
    size = np.sqrt(np.mean(np.concatenate([np.ravel(a) for a in jax.tree.leaves(average)]) ** 2))
    gaps = [jax.tree.map(lambda a, b: np.abs(np.asarray(a) - b).max(), tree, average) for tree in (found, after[-1])]
    near, last = (max(jax.tree.leaves(gap)) for gap in gaps)
    assert near < 1e-3 * size
    assert last > 10 * near


@pytest.mark.slow
def test_a_stopped_run_has_all_its_snapshots(stopped):
    """Also that of the step at which it was stopped, before its turn."""
    home = stopped
    folders = {name: (home / name / "snapshots").iterdir() for name in ("whole", "parts")}
    steps = {name: sorted(int(p.name) for p in paths if p.name.isdecimal()) for name, paths in folders.items()}
    assert steps == {"whole": list(range(1, STEPS + 1)), "parts": [3, 6, 9, 12]}


def test_a_model_is_restored_with_an_average_of_another_length(home):
    options = {"step": None, "overrides": {}}
    short, long = (restore(home / "whole", average=sigma, **options) for sigma in (0.05, 0.1))
    assert (short.weights, long.weights) == ("ema(sigma_rel=0.05)", "ema(sigma_rel=0.1)")
    gaps = [float(np.abs(a - b).max()) for a, b in zip(*map(jax.tree.leaves, (short.params, long.params)), strict=True)]
    assert max(gaps) > 1e-3


def test_a_length_that_the_snapshots_cannot_tell_is_refused(home, capsys):
    with pytest.raises(
        UserError, match=r"--ema=0.002 at step 12 is told by the snapshots of steps 1, 2 to 12 to within"
    ):
        restore(home / "whole", step=None, average=0.002, overrides={})
    with pytest.raises(UserError, match=r"sigma_rel, is above 0 and at most 0.2887; got 0.4"):
        restore(home / "whole", step=None, average=0.4, overrides={})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"evaluate__metrics": ("fdd",)}, "evaluate.metrics has 'fdd'"),
        ({"evaluate__metrics": ()}, "evaluate.metrics names one or more"),
        ({"evaluate__every": -1}, "evaluate.every is at least 0; got -1"),
        ({"evaluate__features": ""}, "fd needs features"),
        ({"evaluate__num": 2}, "takes 4 images, and --num is 2"),
        ({"checkpoint__best_metric": "kid"}, "checkpoint.best_metric='kid' is a score of evaluate.metrics: fd, prec"),
        ({"checkpoint__direction": "up"}, "checkpoint.direction='up' is min or max"),
        ({"checkpoint__every": 2}, "evaluate.every=3 is to be a multiple of checkpoint.every=2"),
        ({"ema__profiles": (0.5,)}, "sigma_rel, is above 0 and at most 0.2887; got 0.5"),
        ({"ema__profiles": (0.1, 0.1)}, "names a length twice"),
        ({"ema__every": 0}, "give both, or neither"),
        ({"task": "classifier"}, "is of tasks diffusion and autoencoder, not classifier"),
    ],
)
def test_what_cannot_be_evaluated_is_said_before_training(home, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        train(config_of(home, **changes), tmp_path / "run")
    assert not (tmp_path / "run/checkpoints").exists()
