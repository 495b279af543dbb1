"""What a sweep file may say, what its trials are, and what is refused."""

import math

import numpy as np
import pytest
from scipy import stats

from diffusion_jax.errors import UserError
from diffusion_jax.sweeps import Objective, Sweep, choice, integers, log_grid, log_uniform, uniform


def test_a_grid_is_every_combination_once():
    sweep = Sweep({"seed": choice(0, 1, 2), "model.dropout": choice(0.0, 0.1)})
    listed = sweep.listed()
    assert sweep.trials == len(listed) == 6
    assert {(one["seed"], one["model.dropout"]) for one in listed} == {(s, d) for s in (0, 1, 2) for d in (0.0, 0.1)}
    assert list(listed[0]) == ["seed", "model.dropout"]


def test_random_trials_depend_on_seed_and_number_alone():
    space = {"optimizer.learning_rate": log_uniform(1e-5, 1e-1), "seed": integers(0, 9), "model.dropout": uniform(0, 1)}
    few, more = (Sweep(space, method=f"random(trials={n}, seed=3)").listed() for n in (5, 50))
    assert more[:5] == few
    assert Sweep(space, method="random(trials=5, seed=4)").listed() != few
    assert len({one["optimizer.learning_rate"] for one in more}) == 50


@pytest.mark.parametrize(
    ("space", "uniform_in"),
    [
        (uniform(-2.0, 3.0), lambda x: (x + 2) / 5),
        (log_uniform(1e-5, 1e-1), lambda x: (math.log10(x) + 5) / 4),
    ],
    ids=["uniform", "log_uniform"],
)
def test_intervals_are_drawn_uniformly(space, uniform_in):
    rng = np.random.default_rng(0)
    drawn = [uniform_in(space.draw(rng)) for _ in range(2000)]
    assert stats.kstest(drawn, "uniform").pvalue > 0.01


def test_integers_have_both_ends():
    rng = np.random.default_rng(0)
    counts = np.bincount([integers(2, 4).draw(rng) for _ in range(3000)])
    assert counts[:2].sum() == 0
    assert stats.chisquare(counts[2:]).pvalue > 0.01


def test_a_log_grid_has_equal_ratios_and_its_ends():
    values = log_grid(1e-4, 1e-2, 5).values
    assert values == (1e-4, 3.16e-4, 1e-3, 3.16e-3, 1e-2)


def test_the_objective_is_the_mean_of_the_last_logged_values():
    records = [{"step": 1, "loss": 4.0}, {"step": 2, "other": 1.0}, {"step": 3, "loss": 2.0}, {"step": 4, "loss": 1.0}]
    assert Objective("loss", last=2).course(records) == [(1, 4.0), (3, 3.0), (4, 1.5)]
    assert Objective("psnr").course(records) == []
    assert Objective("loss", "maximize").better(2.0) < Objective("loss", "maximize").better(1.0)


def test_the_objective_is_part_of_a_sweep_only_where_it_decides_what_is_run():
    space = {"seed": choice(0, 1)}
    assert Sweep(space, Objective("a")).identity() == Sweep(space, Objective("b")).identity()
    a, b = (Sweep(space, Objective(name), method="tpe(trials=3)").identity() for name in "ab")
    assert a != b
    assert Sweep(space).identity() != Sweep({"seed": choice(0, 2)}).identity()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: choice(), "choice() is an empty space"),
        (lambda: choice(1, 2, 1), "has 1 twice"),
        (lambda: uniform(2, 1), "uniform(2, 1) is an empty space"),
        (lambda: uniform(0, math.inf), "is an empty space"),
        (lambda: log_uniform(0, 1), "begins above 0"),
        (lambda: log_grid(1, 2, 1), "at least 2 values"),
        (lambda: integers(0, 1.5), "integer ends"),
        (lambda: Sweep({}), "space is empty"),
        (lambda: Sweep({"seed": [1, 2]}), "the space of seed is choice(...)"),
        (lambda: Sweep({"seed": choice(1)}, fixed={"seed": 1}), "seed is both swept and fixed"),
        (lambda: Sweep({"model.dropout": uniform(0, 1)}), "a grid takes choice(...)"),
        (lambda: Sweep({"seed": choice(1)}, method="bayes"), "unknown method of a sweep 'bayes'"),
        (lambda: Sweep({"seed": choice(1)}, method="random(trials=0)"), "at least 1 trial"),
        (lambda: Sweep({"seed": choice(1)}, pruner="asha"), "unknown pruner 'asha'"),
        (lambda: Sweep({"seed": choice(1)}, pruner="hyperband(reduction=1)"), "a reduction of at least 2"),
        (lambda: Objective("loss", "min"), "minimize or maximize; got 'min'"),
        (lambda: Objective(last=0), "at least 1 logged value"),
    ],
)
def test_what_cannot_be_swept_is_refused(make, message):
    with pytest.raises(UserError) as error:
        make()
    assert message in str(error.value)
