"""What holds for every sampler that the scan runs, over the whole table: randomness, trajectory, compilation, NFE."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from samplers_exact import CONTINUOUS, VP, Gaussian, jit, keys, noises, solve

from diffusion_jax.core.grids import leading, trailing, uniform
from diffusion_jax.core.predictions import Prediction
from diffusion_jax.core.samplers import (
    SAMPLERS,
    Sampler,
    ddim,
    ddim_inversion,
    ddpm,
    dpmpp_2s,
    evaluations,
    heun,
    integrate,
    plms,
    predictor_corrector,
    sample,
)
from diffusion_jax.core.samplers.loop import one_evaluation_a_step, standard_normal
from diffusion_jax.core.schedules import SCHEDULES, Level, learned
from diffusion_jax.errors import UserError

SHAPE = (4, 4, 3)
STEPS = 8
EVERY = pytest.mark.parametrize("name", sorted(SAMPLERS))


def mixing_denoiser(schedule):
    """Optimal for a Gaussian but for a term that mixes pixels, so that a wrong axis would show."""
    exact = Gaussian().denoiser(schedule)

    def denoise(x, t):
        prediction = exact(x, t)
        shift = 0.1 * jnp.tanh(jnp.roll(x, 1, axis=2))
        alpha, sigma = schedule.level(t).like(x)
        return Prediction(prediction.x0 + sigma * shift, prediction.eps - alpha * shift)

    return denoise


@functools.cache
def program(name: str, trajectory: bool = False):
    times = uniform()(VP(), STEPS)
    run = functools.partial(sample, mixing_denoiser(VP()), SAMPLERS[name](), VP(), times, trajectory=trajectory)
    return jit(lambda seeds: run(seeds, SHAPE))


@EVERY
def test_sample_depends_on_its_seed_alone_and_compiles_once(name):
    seeds, run = np.arange(64), program(name)
    compiled = run._cache_size()
    whole = np.asarray(run(seeds))
    assert np.isfinite(whole).all()
    assert whole[:, 0, 0, 0].std() > 0.01  # they differ
    shuffled = np.random.default_rng(0).permutation(64)
    np.testing.assert_allclose(run(shuffled), whole[shuffled], atol=2e-6, rtol=1e-5)
    assert run._cache_size() == compiled + 1
    np.testing.assert_allclose(run(seeds[20:27]), whole[20:27], atol=2e-6, rtol=1e-5)
    np.testing.assert_allclose(run(seeds[5:6]), whole[5:6], atol=2e-6, rtol=1e-5)


@EVERY
def test_trajectory_starts_at_the_start_and_ends_at_the_sample(name):
    seeds = np.arange(7)
    path = np.asarray(program(name, trajectory=True)(seeds))
    assert path.shape == (STEPS + 1, 7, *SHAPE)
    start = [jax.random.normal(jax.random.split(jax.random.key(seed))[0], SHAPE) for seed in seeds]
    np.testing.assert_allclose(path[0], jnp.stack(start), rtol=1e-6)
    np.testing.assert_allclose(path[-1], program(name)(seeds), atol=2e-6)
    assert all(np.abs(b - a).max() > 1e-4 for a, b in itertools.pairwise(path))


@EVERY
def test_nfe_is_the_number_of_denoiser_calls(name):
    calls = 0

    def count(_):
        nonlocal calls
        calls += 1

    def denoise(x, t):
        jax.debug.callback(count, t[0])
        return Gaussian().denoiser(VP())(x, t)

    times = uniform()(VP(), STEPS)
    jax.block_until_ready(
        jit(lambda x, k: integrate(denoise, SAMPLERS[name](), VP(), times, x, k))(jnp.ones((1, 2)), keys(1))
    )
    jax.effects_barrier()
    expected = evaluations(SAMPLERS[name](), VP(), times)
    assert calls == expected if expected else calls > STEPS


@EVERY
def test_the_network_stands_once_in_the_program(name):
    """One evaluation an iteration: the program does not grow with the stages of a method or the steps."""
    traced = 0

    def denoise(x, t):
        nonlocal traced
        traced += 1
        return Gaussian().denoiser(VP())(x, t)

    times = uniform()(VP(), STEPS)
    jax.eval_shape(lambda x, k: integrate(denoise, SAMPLERS[name](), VP(), times, x, k), jnp.ones((1, 2)), keys(1))
    assert traced == (2 if name == "ode" else 1)


@EVERY
@pytest.mark.parametrize("schedule", CONTINUOUS)
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_few_steps_are_finite_on_every_schedule(name, schedule, steps):
    """From no signal (alpha = 0) and to the data (sigma = 0): no step divides by either."""
    schedule = CONTINUOUS[schedule]
    x = schedule.prior_std * jnp.array([[-1.0, 0.5, 2.0]])
    plan_only = SAMPLERS[name]()
    if isinstance(plan_only, Sampler):
        plan = plan_only.plan(schedule, jnp.linspace(1.0, 0.0, steps + 1))
        assert len(plan.step) == len(plan.t) == evaluations(plan_only, schedule, np.linspace(1, 0, steps + 1))
        assert all(len(leaf) == len(plan.t) for leaf in jax.tree.leaves(plan.coefficients))
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((plan.t, plan.coefficients)))
        assert (np.asarray(plan.t) > 0).all()  # never evaluated at the data
    if steps == 2:
        denoise = Gaussian().denoiser(schedule)
        assert np.isfinite(solve(denoise, SAMPLERS[name](), schedule, np.linspace(1, 0, 3), x)).all()


@pytest.mark.parametrize(
    ("sampler", "nfe"),
    [(heun(), 9), (dpmpp_2s(), 9), (plms(), 6), (predictor_corrector(correctors=2), 15), (ddim(), 5)],
)
def test_nfe_of_multi_stage_samplers(sampler, nfe):
    assert evaluations(sampler, VP(), np.linspace(1, 0, 6)) == nfe
    to_noise = np.linspace(1, 0.1, 6)  # does not end at the data: the last step has all its stages
    assert evaluations(sampler, VP(), to_noise) == nfe + (nfe == 9)


def test_noise_is_standard_normal_and_differs_by_key_step_and_draw():
    z = np.stack([noises(keys(25), 40, (8, 8), draw) for draw in (0, 1)])
    assert abs(z.mean()) < 4 / np.sqrt(z.size)
    assert abs(z.var() - 1) < 4 * np.sqrt(2 / z.size)
    rows = z.reshape(-1, 64)
    correlation = rows @ rows.T / 64 - np.diag((rows**2).mean(1))
    assert np.abs(correlation).max() < 6.5 / 8


def test_noise_of_a_step_is_the_public_function():
    z = noises(keys(3), 5, (2,), draw=1)
    np.testing.assert_allclose(z[4], standard_normal(keys(3), 4, 1, jnp.zeros((3, 2))), rtol=1e-6)


def test_a_deterministic_sampler_ignores_the_keys():
    x = jax.random.normal(jax.random.key(1), (2, 3))
    out = [solve(Gaussian().denoiser(VP()), ddim(), VP(), uniform()(VP(), 5), x, keys(2, seed)) for seed in (0, 1)]
    np.testing.assert_array_equal(*out)


def test_prior_has_the_schedules_standard_deviation():
    class Wide(VP):
        prior_std = 7.0

    denoise = Gaussian().denoiser(Wide())
    path = sample(denoise, ddim(), Wide(), np.array([1.0, 0.0]), np.arange(4000), (4,), trajectory=True)
    assert abs(path[0].std() - 7) < 7 * 4 / np.sqrt(2 * 16000)


def test_carry_is_made_by_init_and_undone_by_finish():
    counting = Sampler(
        lambda schedule, times: one_evaluation_a_step(times, ()),
        lambda denoise, carry, t, c, noise: (carry[0], carry[1] + 1),
        init=lambda x: (x, 0),
        finish=lambda carry: carry[0] + carry[1],
    )
    path = solve(None, counting, VP(), np.linspace(1, 0, 5), jnp.zeros((2, 3)), trajectory=True)
    np.testing.assert_array_equal(path[:, 0, 0], np.arange(5))


@pytest.mark.parametrize("variance", ["small", "large"])
def test_full_chain_is_algorithm_2_of_ddpm(variance):
    """T = 1000 steps with the same noises, solve, against the paper's formulas in float64."""
    schedule, steps = SCHEDULES["linear"](), 1000
    times = trailing()(schedule, steps)
    x, data, k = jax.random.normal(jax.random.key(1), (2, 5)), Gaussian(), keys(2)
    ours = solve(data.denoiser(schedule), ddpm(variance), schedule, times, x, k)
    z = noises(k, steps, (5,)).astype(np.float64)
    beta = np.linspace(1e-4, 0.02, steps)
    alpha, alpha_bar = 1 - beta, np.cumprod(1 - beta)
    y = np.asarray(x, np.float64)
    for n, i in enumerate(reversed(range(steps))):
        eps = np.sqrt(1 - alpha_bar[i]) * (y - np.sqrt(alpha_bar[i]) * data.mean)
        eps = eps / (alpha_bar[i] * data.std**2 + 1 - alpha_bar[i])
        mean = (y - beta[i] / np.sqrt(1 - alpha_bar[i]) * eps) / np.sqrt(alpha[i])
        previous = alpha_bar[i - 1] if i else 1.0
        var = beta[i] if variance == "large" else (1 - previous) / (1 - alpha_bar[i]) * beta[i]
        y = mean + (np.sqrt(var) * z[n] if i else 0)
    np.testing.assert_allclose(ours, y, atol=2e-4)


@pytest.mark.parametrize("schedule", CONTINUOUS)
def test_four_names_of_one_method(schedule):
    """ddpm = ddim(eta=1) = euler_ancestral = dpmpp_2m_sde of order 1, and ddim = euler; to float64's rounding."""
    with jax.enable_x64(True):
        schedule = CONTINUOUS[schedule]
        times, x = np.linspace(1, 0, 12), schedule.prior_std * jax.random.normal(jax.random.key(1), (3, 5), jnp.float64)
        denoise = Gaussian().denoiser(schedule)
        run = lambda sampler: solve(denoise, sampler, schedule, times, x, trajectory=True)  # noqa: E731
        ancestral = run(ddpm("small"))
        np.testing.assert_allclose(ancestral, run(ddim(eta=1.0)), atol=1e-6)
        np.testing.assert_allclose(ancestral, run(SAMPLERS["euler_ancestral"]()), atol=1e-6)
        np.testing.assert_allclose(run(ddim()), run(SAMPLERS["euler"]()), atol=1e-12)


def test_learned_variance_lies_between_small_and_large():
    schedule = SCHEDULES["linear"](100)
    times, x = trailing()(schedule, 10), jax.random.normal(jax.random.key(1), (3, 5))
    exact = Gaussian().denoiser(schedule)

    def run(variance, fraction=None):
        denoise = lambda x, t: exact(x, t)._replace(fraction=None if fraction is None else jnp.full_like(x, fraction))  # noqa: E731
        return solve(denoise, ddpm(variance), schedule, times, x, trajectory=True)

    np.testing.assert_allclose(run("learned", 0.0), run("small"), atol=1e-5)
    np.testing.assert_allclose(run("learned", 1.0), run("large"), atol=1e-5)
    first_noise = noises(keys(3), 10, (5,))[0]
    small, half, large = (
        (run(*a)[1] - run("small", None)[1]) / first_noise for a in (("small",), ("learned", 0.5), ("large",))
    )
    std_small, std_large = np.sqrt(_posterior_and_beta(schedule, times))
    np.testing.assert_allclose(half - small, np.sqrt(std_small * std_large) - std_small, rtol=2e-3)
    np.testing.assert_allclose(large - small, std_large - std_small, rtol=2e-3)


def _posterior_and_beta(schedule, times):
    """(beta tilde, beta) of the first step of a respaced chain, in float64 from the betas: eq. 19 of improved DDPM."""
    alpha_bar = np.append(1.0, np.cumprod(1 - np.linspace(1e-4, 0.02, schedule.steps)))
    now, then = (alpha_bar[round(t * schedule.steps)] for t in times[:2])
    beta = 1 - now / then
    return np.array([(1 - then) / (1 - now) * beta, beta])


def test_inversion_leads_to_the_noise_and_back():
    """Rising times; the round trip's error falls with the step, as both ways are of first order."""
    schedule = SCHEDULES["linear"]()
    x0 = jnp.linspace(-0.9, 0.9, 8)[None]
    denoise = mixing_denoiser_1d(schedule)
    errors = []
    for steps in (50, 100, 200):
        times = trailing()(schedule, steps)
        noise = solve(denoise, ddim_inversion(), schedule, times[::-1], x0)
        errors.append(np.abs(solve(denoise, ddim(), schedule, times, noise) - x0).max())
    assert 1.7 < errors[0] / errors[1] < 2.4
    assert 1.7 < errors[1] / errors[2] < 2.4
    exact = Gaussian().flow(schedule, 0.0, 1.0, x0)
    noise = solve(Gaussian().denoiser(schedule), ddim_inversion(), schedule, trailing()(schedule, 500)[::-1], x0)
    np.testing.assert_allclose(noise, exact, atol=0.03)


def mixing_denoiser_1d(schedule):
    exact = Gaussian().denoiser(schedule)

    def denoise(x, t):
        prediction = exact(x, t)
        shift = 0.2 * jnp.sin(3 * x)
        alpha, sigma = schedule.level(t).like(x)
        return Prediction(prediction.x0 + sigma * shift, prediction.eps - alpha * shift)

    return denoise


@pytest.mark.parametrize("name", ["heun", "dpmpp_2s", "dpmpp_sde", "dpmpp_3m", "unipc"])
def test_a_learned_schedule_that_stops_short_of_the_data(name):
    """Its sigma(0) > 0 is known only when the program runs: the last step is then of first order, and still lands."""
    params = learned.init(jax.random.key(0), hidden=8, logsnr_max=2.0)
    times, data = uniform()(VP(), 40), Gaussian()

    def run(params, x):
        schedule = learned.Learned(params)
        return integrate(data.denoiser(schedule), SAMPLERS[name](), schedule, times, x, keys(1))

    x = jnp.linspace(-2.0, 2.0, 5)[None]
    exact = data.flow(learned.Learned(params), 1.0, 0.0, x)
    if name == "dpmpp_sde":
        assert np.isfinite(jit(run)(params, x)).all()
    else:
        np.testing.assert_allclose(jit(run)(params, x), exact, atol=5e-3)


def test_a_traced_grid_is_allowed():
    """Times and a schedule that are known only when the program runs."""

    class Tilted(VP):
        def __init__(self, b1):
            object.__setattr__(self, "b0", 0.1)
            object.__setattr__(self, "b1", b1)

    def run(b1, times):
        schedule = Tilted(b1)
        return integrate(Gaussian().denoiser(schedule), heun(), schedule, times, jnp.ones((1, 2)), keys(1))

    times = np.linspace(1, 0, 6)
    known = solve(Gaussian().denoiser(VP()), heun(), VP(), times, jnp.ones((1, 2)))
    np.testing.assert_allclose(jit(run)(20.0, times), known, rtol=1e-5)
    np.testing.assert_allclose(jit(lambda b1: run(b1, times))(20.0), known, rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ddim(eta=1.5), r"eta in \[0, 1\]; got 1.5"),
        (lambda: ddim(eta=-0.1), r"eta in \[0, 1\]"),
        (lambda: SAMPLERS["euler_ancestral"](eta=2.0), r"eta in \[0, 1\]"),
        (lambda: SAMPLERS["dpmpp_2m_sde"](eta=2.0), r"dpmpp_2m takes eta in \[0, 1\]"),
        (lambda: dpmpp_2s(eta=2.0), r"eta in \[0, 1\]"),
        (lambda: dpmpp_2s(r=1.0), r"r in \(0, 1\)"),
        (lambda: ddpm("medium"), "'small', 'large' or 'learned'; got 'medium'"),
        (lambda: SAMPLERS["dpmpp_2m"](solver="euler"), "'midpoint' or 'heun'"),
        (lambda: SAMPLERS["unipc"](order=4), "order 1, 2 or 3"),
        (lambda: SAMPLERS["unipc"](variant="bh3"), "'bh1' or 'bh2'"),
        (lambda: heun(s_churn=-1.0), "s_churn >= 0"),
        (lambda: SAMPLERS["euler"](s_min=2.0, s_max=1.0), "s_min <= s_max"),
        (lambda: predictor_corrector(snr=0.0), "snr > 0"),
        (lambda: predictor_corrector(correctors=-1), "correctors >= 0"),
        (lambda: SAMPLERS["ode"](rtol=0.0), "rtol, atol > 0"),
    ],
)
def test_wrong_arguments_are_one_sentence(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_learned_variance_needs_a_network_that_predicts_it():
    with pytest.raises(UserError, match="use variance='small' or 'large'"):
        integrate(Gaussian().denoiser(VP()), ddpm("learned"), VP(), np.linspace(1, 0, 4), jnp.ones((1, 2)), keys(1))


def test_inversion_refuses_falling_times():
    with pytest.raises(UserError, match="its times rise"):
        integrate(Gaussian().denoiser(VP()), ddim_inversion(), VP(), np.linspace(1, 0, 4), jnp.ones((1, 2)), keys(1))


@pytest.mark.parametrize("times", [np.array([1.0]), np.float64(1.0), np.ones((2, 2))])
def test_a_grid_has_two_times_at_least(times):
    with pytest.raises(UserError, match="at least 2 times"):
        integrate(Gaussian().denoiser(VP()), ddim(), VP(), times, jnp.ones((1, 2)), keys(1))


def test_a_grid_that_repeats_a_time_is_refused():
    with pytest.raises(UserError, match="no step of length 0; got t = 0.5 twice"):
        integrate(Gaussian().denoiser(VP()), ddim(), VP(), [1.0, 0.5, 0.5, 0.0], jnp.ones((1, 2)), keys(1))


def test_sampling_starts_from_noise():
    """One step of `leading` starts at t = 1 / T, where x is the image: pure noise came out as the sample."""
    schedule = SCHEDULES["linear"]()
    draw = lambda steps: sample(  # noqa: E731
        Gaussian().denoiser(schedule), ddim(), schedule, leading()(schedule, steps), np.arange(3), (2,)
    )
    with pytest.raises(UserError, match="starts at t = 0.001, .* take more steps, or time grid 'trailing'"):
        draw(1)
    assert np.isfinite(draw(2)).all()


def test_a_corrector_stays_where_the_score_is_zero():
    """A constant is all a denoiser says of an image without noise: no direction, and no step either."""
    still = lambda x, t: Prediction(jnp.full_like(x, 0.5), jnp.zeros_like(x))  # noqa: E731
    out = solve(still, predictor_corrector(), VP(), np.linspace(1, 0, 4), jnp.ones((2, 3)))
    assert np.isfinite(out).all()


def test_level_of_the_step_ends_is_exact():
    """ddim's last step at sigma = 0 returns x0 itself."""
    schedule = VP()
    fixed = lambda x, t: Prediction(jnp.full_like(x, 0.25), jnp.zeros_like(x))  # noqa: E731
    assert schedule.level(jnp.zeros(())) == Level(1.0, 0.0)
    for name in ("ddim", "ddpm", "dpmpp_3m", "unipc", "dpmpp_sde", "heun"):
        out = solve(fixed, SAMPLERS[name](), schedule, np.linspace(1, 0, 4), jnp.ones((1, 2)))
        np.testing.assert_allclose(out, 0.25, rtol=1e-6)
