"""A sweep that learns from results: found, pruned as the paper says, and the same after any interruption."""

import math

import pytest

from diffusion_jax.errors import UserError
from diffusion_jax.sweeps import Objective, Sweep, choice, integers, log_uniform
from diffusion_jax.sweeps.study import Study

pytest.importorskip("optuna")

SPACE = {"optimizer.learning_rate": log_uniform(1e-6, 1.0), "seed": integers(0, 3), "mesh": choice((1, 2), (3,))}


def study(tmp_path, name="a", *, method="tpe(trials=30, startup=8)", pruner="none", steps=8, url="", last=1):
    sweep = Sweep(SPACE, Objective(last=last), method=method, pruner=pruner)
    return Study(sweep, steps=steps, journal=tmp_path / f"{name}.journal", url=url, name=name)


def loss(changes):
    return math.log10(changes["optimizer.learning_rate"] / 1e-3) ** 2


def test_tpe_comes_nearer_than_chance_and_tuples_come_back(tmp_path):
    """Chance's mean of (x - 3)^2, x uniform in [0, 6], is 3."""
    later = []
    for seed in range(2):
        studied, losses = study(tmp_path, str(seed), method=f"tpe(trials=30, startup=8, seed={seed})"), []
        while asked := studied.ask():
            number, changes = asked
            assert number == len(losses)
            assert changes["mesh"] in ((1, 2), (3,))
            assert changes["seed"] in (0, 1, 2, 3)
            losses.append(loss(changes))
            studied.tell(number, losses[-1])
        finished = studied.finished()
        assert [finished[n][2] for n in range(30)] == losses
        later += losses[15:]
    assert sum(later) / len(later) < 2.3


def test_a_study_that_is_opened_anew_for_every_trial_asks_the_same(tmp_path):
    whole, told = study(tmp_path, "whole", method="tpe(trials=12, startup=4)"), []
    while asked := whole.ask():
        told.append(asked)
        whole.tell(asked[0], loss(asked[1]))
    for expected in told:
        first = study(tmp_path, "parts", method="tpe(trials=12, startup=4)")
        assert first.ask() == expected
        again = study(tmp_path, "parts", method="tpe(trials=12, startup=4)")  # the first was killed
        assert again.unfinished() == {expected[0]: expected[1]}
        again.tell(expected[0], loss(expected[1]))
    assert study(tmp_path, "parts", method="tpe(trials=12, startup=4)").ask() is None


def test_listed_trials_keep_their_order_under_a_pruner(tmp_path):
    sweep = Sweep(SPACE, method="random(trials=4, seed=1)", pruner="median")
    studied = study(tmp_path, method="random(trials=4, seed=1)", pruner="median")
    assert [studied.ask()[1] for _ in range(4)] == sweep.listed()


def test_successive_halving_keeps_the_best_of_each_rung(tmp_path):
    """One bracket (min_steps 4 of 7, reduction 2): of trials that come one by one the worse half ends at step 4."""
    studied, values, pruned = study(tmp_path, pruner="hyperband(min_steps=4, reduction=2)", steps=7), [], []
    for value in (3.0, 1.0, 2.0, 0.5, 4.0, 0.7):
        number, _ = studied.ask()
        assert not any(studied.report(number, step, value + 1) for step in (1, 2, 3))
        pruned.append(studied.report(number, 4, value))
        values.append(value)
        if not pruned[-1]:
            assert studied.reported(number) == 4
            studied.tell(number, value)
    promoted = [value <= sorted(values[: i + 1])[max(i + 1, 2) // 2 - 1] for i, value in enumerate(values)]
    assert pruned == [not each for each in promoted]
    assert [state for state, _, _ in studied.finished().values()] == ["pruned" if p else "done" for p in pruned]


def test_at_its_end_a_trial_is_done_however_bad(tmp_path):
    """With the only rung at the last step, the others would all be pruned there."""
    studied = study(tmp_path, pruner="hyperband(min_steps=8)", steps=8)
    for value in (1.0, 2.0, 3.0, 4.0):
        assert not studied.report(studied.ask()[0], 8, value)


def test_a_result_is_kept_and_a_failure_too(tmp_path):
    studied = study(tmp_path)
    (first, _), (second, _) = studied.ask(), studied.ask()
    studied.tell(first, 1.5)
    studied.tell(first, None)
    studied.tell(second, None)
    assert {n: (state, value) for n, (state, _, value) in studied.finished().items()} == {
        first: ("done", 1.5),
        second: ("failed", None),
    }
    assert studied.unfinished() == {}


@pytest.mark.parametrize("drawn", [True, False])
def test_a_trial_that_another_process_finishes_meanwhile_is_not_unfinished(tmp_path, monkeypatch, drawn):
    """Whether or not the process that began it has drawn its changes."""
    mine, other = study(tmp_path), study(tmp_path)
    first = mine.ask()[0] if drawn else mine._study.ask().number
    second = mine.ask()[0]
    trial = mine._trial

    def once_the_other_has_told(number):
        found = trial(number)
        if number == first:
            other.tell(number, 1.0)
        return found

    monkeypatch.setattr(mine, "_trial", once_the_other_has_told)
    assert list(mine.unfinished()) == [second]


def test_another_error_of_the_storage_is_raised(tmp_path, monkeypatch):
    studied = study(tmp_path)
    studied.ask()

    def fail(number):
        raise RuntimeError("the disk is full")

    monkeypatch.setattr(studied, "_trial", fail)
    with pytest.raises(RuntimeError, match="the disk is full"):
        studied.unfinished()


def test_a_database_does_as_well(tmp_path):
    pytest.importorskip("sqlalchemy")
    url = f"sqlite:///{tmp_path / 'study.db'}"
    number, changes = study(tmp_path, url=url).ask()
    assert study(tmp_path, url=url).unfinished() == {number: changes}
    assert not (tmp_path / "a.journal").exists()


def test_bad_storages_are_one_sentence(tmp_path):
    with pytest.raises(UserError, match="cannot open the storage nosuch://x"):
        study(tmp_path, url="nosuch://x")
    with pytest.raises(UserError, match=r"min_steps=9 is more than train.steps=8"):
        study(tmp_path, "b", pruner="hyperband(min_steps=9)")
    study(tmp_path, "c")
    with pytest.raises(UserError, match="holds another sweep"):
        study(tmp_path, "c", last=2)
