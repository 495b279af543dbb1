import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from diffusion_jax.core.schedules import edm, linear, rectified_flow, vp
from diffusion_jax.core.times import (
    ADAPTIVE_TIMES,
    TIMES,
    log_normal,
    logit_normal,
    loss_second_moment,
    low_discrepancy,
    uniform,
)
from diffusion_jax.errors import UserError

N = 20_000
SCHEDULES = {"linear": linear(), "linear of 7": linear(steps=7), "rectified_flow": rectified_flow(), "edm": edm()}
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)


@every_schedule
@pytest.mark.parametrize("name", TIMES)
def test_times_lie_in_the_open_closed_interval_and_on_the_chains_steps(schedule, name):
    t = np.asarray(TIMES[name]()(jax.random.key(0), N, schedule), np.float64)
    assert t.shape == (N,)
    assert t.min() > 0
    assert t.max() <= 1
    if schedule.steps:
        index = t * schedule.steps
        np.testing.assert_allclose(index, np.round(index), atol=2e-4)


@pytest.mark.parametrize("name", TIMES)
def test_times_depend_on_the_key_alone(name):
    draw = jax.jit(lambda key: TIMES[name]()(key, 64, vp()))
    a, b, c = (draw(jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(a, b)
    assert (a != c).any()
    np.testing.assert_allclose(TIMES[name]()(jax.random.key(0), 64, vp()), a, atol=1e-6)


@pytest.mark.parametrize("draw", [uniform(), low_discrepancy()])
def test_uniform_times_are_uniform(draw):
    t = np.concatenate([draw(jax.random.key(seed), 100, rectified_flow()) for seed in range(100)])
    assert scipy.stats.kstest(t, "uniform").pvalue > 1e-3
    steps = np.round(7 * np.concatenate([draw(jax.random.key(seed), 70, linear(steps=7)) for seed in range(100)]))
    counts = np.bincount(steps.astype(int), minlength=8)[1:]
    assert counts.sum() == 7000
    assert scipy.stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize("n", [1, 7, 128])
def test_low_discrepancy_has_one_time_in_each_stratum(n):
    for seed in range(5):
        t = np.asarray(low_discrepancy()(jax.random.key(seed), n, rectified_flow()), np.float64)
        # One shift for all: sorted, the times are 1 / n apart, so that each stratum [i / n, (i + 1) / n) has one.
        np.testing.assert_allclose(np.diff(np.sort(t)), 1 / n, atol=1e-6)
        counts = np.bincount(np.floor((t - 1e-6) * n).astype(int), minlength=n)
        assert counts.max() <= 2
        assert np.abs(counts - 1).sum() <= 2  # a time may lie on the border of two strata, to rounding


def test_low_discrepancy_visits_every_step_of_the_chain():
    t = low_discrepancy()(jax.random.key(0), 14, linear(steps=7))
    np.testing.assert_array_equal(np.bincount(np.round(7 * np.asarray(t)).astype(int), minlength=8)[1:], 2)


def test_low_discrepancy_varies_less():
    loss = lambda t: jnp.mean((t - 0.3) ** 2)  # noqa: E731
    std = lambda draw: np.std([loss(draw(jax.random.key(s), 64, rectified_flow())) for s in range(50)])  # noqa: E731
    assert std(low_discrepancy()) < 0.2 * std(uniform())


@pytest.mark.parametrize("schedule", [edm(), vp(), rectified_flow()])
def test_log_normal_is_normal_in_log_sigma(schedule):
    t = log_normal()(jax.random.key(0), N, schedule)
    log_sigma = -0.5 * np.asarray(schedule.logsnr(t), np.float64)
    assert scipy.stats.kstest(log_sigma, scipy.stats.norm(-1.2, 1.2).cdf).pvalue > 1e-3


def test_logit_normal_is_normal_in_the_logit():
    t = np.asarray(logit_normal(0.5, 0.8)(jax.random.key(0), N, rectified_flow()), np.float64)
    assert scipy.stats.kstest(np.log(t / (1 - t)), scipy.stats.norm(0.5, 0.8).cdf).pvalue > 1e-3


STEPS = linear(steps=7)


@pytest.mark.parametrize(
    ("draw", "inner"),
    [
        (log_normal(-1.0, 1.0), lambda t: -0.5 * np.asarray(STEPS.logsnr(jnp.float32(t)), np.float64) + 1.0),
        (logit_normal(0.0, 1.0), lambda t: np.log(t / (1 - t))),
    ],
    ids=["log_normal", "logit_normal"],
)
def test_a_step_of_the_chain_has_the_mass_of_the_times_that_it_ends(draw, inner):
    counts = np.bincount(np.round(7 * np.asarray(draw(jax.random.key(0), N, STEPS))).astype(int), minlength=8)[1:]
    cdf = np.concatenate([[0], scipy.stats.norm.cdf(inner(np.arange(1, 7) / 7)), [1]])
    expected = N * np.diff(cdf)
    assert scipy.stats.chisquare(counts, expected).pvalue > 1e-3


# ---- importance by the second moment of the losses


class Reference:
    """Improved DDPM's resampler, one loss at a time in float64."""

    def __init__(self, steps, history, share):
        self.losses, self.steps, self.history, self.share = [[] for _ in range(steps)], steps, history, share

    def update(self, i, losses):
        for k, loss in zip(i, losses, strict=True):
            self.losses[k] = [*self.losses[k], float(loss)][-self.history :]

    def probabilities(self):
        if any(len(kept) < self.history for kept in self.losses):
            return np.full(self.steps, 1 / self.steps)
        rms = np.array([np.sqrt(np.mean(np.square(kept))) for kept in self.losses])
        return rms / rms.sum() * (1 - self.share) + self.share / self.steps


def weights_of(times, state, schedule):
    """p of each bin, read off many draws' weights."""
    t, weights = jax.jit(lambda state: times.draw(jax.random.key(7), 4000, schedule, state))(state)
    size = state.counts.shape[0]
    p = np.full(size, np.nan)
    p[bins_of(t, size)] = 1 / (size * np.asarray(weights, np.float64))
    return p


def bins_of(t, size):
    return np.ceil(np.asarray(t, np.float64) * size - 1e-5).astype(int) - 1


@pytest.mark.parametrize("batch", [3, 16, 200])
def test_importance_weights_are_improved_ddpms(batch):
    """A batch of 200 gives a step more losses than its history holds: the last ones stay, as one at a time."""
    schedule = linear(steps=5)
    times, reference = loss_second_moment(history=4, uniform=0.01), Reference(5, 4, 0.01)
    state, update = times.init(schedule), jax.jit(times.update)
    rng = np.random.default_rng(0)
    for _ in range(25):
        i = rng.integers(0, 5, batch)
        losses = rng.gamma(1.0, i + 1.0).astype(np.float32)
        state = update(state, jnp.float32((i + 1) / 5), losses)
        reference.update(i, losses)
        for kept, exact in zip(state.losses, reference.losses, strict=True):  # a ring: the same losses in any order
            np.testing.assert_allclose(np.sort(kept)[4 - len(exact) :], np.sort(exact))
    assert min(map(len, reference.losses)) == 4
    p = weights_of(times, state, schedule)
    np.testing.assert_allclose(p, reference.probabilities(), rtol=1e-5)


def test_importance_is_uniform_until_every_step_has_its_history():
    times, schedule = loss_second_moment(history=2), linear(steps=3)
    update, draw = jax.jit(times.update), jax.jit(lambda key, state: times.draw(key, 1000, schedule, state))
    cold = update(times.init(schedule), jnp.array([1, 1, 2, 2, 3]) / 3, jnp.array([9.0, 9.0, 1.0, 1.0, 1.0]))
    np.testing.assert_allclose(draw(jax.random.key(0), cold)[1], 1)
    t, weights = draw(jax.random.key(0), update(cold, jnp.full(5, 1.0), jnp.ones(5)))
    assert np.mean(np.asarray(t) < 0.5) > 0.7  # 9 / 11
    assert weights.min() < 0.5


@pytest.mark.parametrize("schedule", [linear(steps=20), rectified_flow()])
def test_importance_weights_are_unbiased_and_lower_the_variance(schedule):
    times = loss_second_moment(bins=20)
    state = times.init(schedule)
    loss = lambda t: jnp.exp(-5 * t)  # noqa: E731
    t = uniform()(jax.random.key(0), 4000, schedule)
    state = jax.jit(times.update)(state, t, loss(t))
    t, weights = jax.jit(lambda state: times.draw(jax.random.key(1), 40_000, schedule, state))(state)
    exact = np.mean(loss((np.arange(20) + 1) / 20)) if schedule.steps else (1 - np.exp(-5)) / 5
    draws = np.asarray(weights * loss(t), np.float64)
    np.testing.assert_allclose(draws.mean(), exact, atol=5 * draws.std() / np.sqrt(len(draws)))
    np.testing.assert_allclose(np.asarray(weights, np.float64).mean(), 1, atol=0.05)
    plain = np.asarray(loss(uniform()(jax.random.key(2), 10_000, schedule)))
    assert draws.std() < 0.3 * plain.std()
    p = weights_of(times, state, schedule)
    np.testing.assert_allclose(p.sum(), 1, rtol=1e-5)
    assert scipy.stats.chisquare(np.bincount(bins_of(t, 20), minlength=20), p / p.sum() * len(draws)).pvalue > 1e-3


def test_history_does_not_depend_on_how_the_batch_is_sharded():
    times, schedule = loss_second_moment(history=3), linear(steps=8)
    t = uniform()(jax.random.key(0), 64, schedule)
    losses = jax.random.uniform(jax.random.key(1), (64,))
    mesh = jax.make_mesh((8,), ("data",))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    sharded = jax.jit(times.update, in_shardings=(everywhere, split, split), out_shardings=everywhere)
    plain = jax.jit(times.update)(times.init(schedule), t, losses)
    for a, b in zip(sharded(times.init(schedule), t, losses), plain, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "make",
    [
        lambda: log_normal(std=0.0),
        lambda: logit_normal(std=-1.0),
        lambda: ADAPTIVE_TIMES["loss_second_moment"](history=0),
        lambda: loss_second_moment(uniform=2.0),
    ],
)
def test_times_that_cannot_be_are_one_clear_sentence(make):
    with pytest.raises(UserError, match="time sampling"):
        make()


def test_a_loss_whose_square_overflows_leaves_the_weights_finite():
    times = loss_second_moment(history=1, uniform=0.1, bins=4)
    state = times.update(times.init(vp()), jnp.array([0.1, 0.3, 0.6, 0.9]), jnp.array([0.0, 1e30, 0.0, 1e30]))
    t, weights = times.draw(jax.random.key(0), 200, vp(), state)
    assert np.isfinite(weights).all()
    high = (np.ceil(np.asarray(t) * 4) % 2) == 0  # the second and the fourth bin: p = 0.45 + 0.025 each
    np.testing.assert_allclose(weights, np.where(high, 1 / (4 * 0.475), 1 / (4 * 0.025)), rtol=1e-5)
