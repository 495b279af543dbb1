"""The variational bounds: pieces against scipy in float64, the whole against the closed form of Gaussian data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from diffusion_jax.core.bound import VARIANCES, discretized_log_likelihood, log_mass, normal_kl, variational_bound
from diffusion_jax.core.predictions import Prediction, eps_from_x0
from diffusion_jax.core.process import log_variances, posterior
from diffusion_jax.core.schedules import Learned, Level, continuous_cosine, cosine, edm, linear, rectified_flow, vp
from diffusion_jax.core.schedules.learned import init
from diffusion_jax.core.vdm_bound import continuous_bound, decoder_log_likelihood, diffusion_term
from diffusion_jax.errors import UserError

VALUES = 2 * np.arange(256) / 255 - 1
STD = 0.4  # of the Gaussian data
LEARNED = Learned(init(jax.random.key(3), hidden=16))


def exact(schedule, fraction=None):
    """The posterior mean of x0 ~ N(0, STD^2): x0 = alpha STD^2 x / (alpha^2 STD^2 + sigma^2)."""

    def denoise(x, t):
        level = schedule.level(t)
        alpha, sigma = level.like(x)
        x0 = alpha * STD**2 / (alpha**2 * STD**2 + sigma**2) * x
        return Prediction(x0, eps_from_x0(x0, x, level), None if fraction is None else jnp.full_like(x, fraction))

    return denoise


def pixels(rng, shape):
    """8-bit images of about that Gaussian."""
    return VALUES[np.clip(np.round((rng.normal(0, STD, shape) + 1) * 127.5), 0, 255).astype(int)].astype(np.float32)


def log_mass64(low, high):
    """log(Phi(high) - Phi(low)) in float64, from whichever tail both lie in."""
    low, high = np.where(low > 0, -high, low), np.where(low > 0, -low, high)
    log_low, log_high = scipy.stats.norm.logcdf(low), scipy.stats.norm.logcdf(high)
    return log_high + np.log(-np.expm1(log_low - log_high))


# ---- pieces


def test_normal_kl_is_the_integral():
    m1, s1, m2, s2 = 0.3, 0.7, -0.2, 1.3
    x = np.linspace(-12, 12, 200_001)
    p, q = scipy.stats.norm(m1, s1), scipy.stats.norm(m2, s2)
    integral = np.trapezoid(p.pdf(x) * (p.logpdf(x) - q.logpdf(x)), x)
    got = normal_kl(jnp.float32(m1), jnp.float32(2 * np.log(s1)), jnp.float32(m2), jnp.float32(2 * np.log(s2)))
    np.testing.assert_allclose(got, integral, rtol=1e-5)
    assert normal_kl(jnp.float32(m1), jnp.float32(-7.0), jnp.float32(m1), jnp.float32(-7.0)) == 0


LOG_MASS, LOG_MASS_GRAD = jax.jit(log_mass), jax.jit(jax.grad(log_mass, (0, 1)))


@pytest.mark.parametrize("low", [-300.0, -40.0, -12.0, -3.0, -0.5, 0.0, 0.5, 3.0, 12.0, 40.0, 300.0])
@pytest.mark.parametrize("width", [1e-2, 0.3, 5.0, 600.0])
def test_log_mass_is_accurate_in_both_tails(low, width):
    low, high = np.float32(low), np.float32(low + width)
    np.testing.assert_allclose(LOG_MASS(low, high), log_mass64(float(low), float(high)), rtol=2e-4)
    assert np.isfinite(LOG_MASS_GRAD(low, high)).all()


def test_log_mass_of_open_intervals():
    at = np.array([-30.0, -1.0, 0.0, 2.0, 30.0], np.float32)
    low, high = (
        jax.jit(jax.vmap(jax.value_and_grad(f)))
        for f in (lambda x: log_mass(-jnp.inf + 0 * x, x), lambda x: log_mass(x, jnp.inf + 0 * x))
    )
    for (got, slope), exact in ((low(at), scipy.stats.norm.logcdf(at)), (high(at), scipy.stats.norm.logsf(at))):
        np.testing.assert_allclose(got, exact, rtol=1e-5, atol=1e-30)
        assert np.isfinite(slope).all()


DECODER = jax.jit(discretized_log_likelihood)


@pytest.mark.parametrize("mean", [-1.7, -1.0, -0.3, 0.0, 0.6, 1.0, 2.0])
@pytest.mark.parametrize("log_std", [-7.0, -4.0, -1.0, 1.0])
def test_decoder_is_a_distribution_over_the_256_values(mean, log_std):
    log_p = np.asarray(DECODER(jnp.float32(VALUES), jnp.float32(mean), jnp.float32(log_std)), np.float64)
    assert np.isfinite(log_p).all()
    np.testing.assert_allclose(np.exp(log_p).sum(), 1, rtol=2e-5)
    edges = np.concatenate([[-np.inf], (VALUES[1:] + VALUES[:-1]) / 2, [np.inf]])
    p = np.diff(scipy.stats.norm(mean, np.exp(log_std)).cdf(edges))
    likely = p > 1e-9
    np.testing.assert_allclose(log_p[likely], np.log(p[likely]), rtol=1e-3, atol=1e-5)


def test_decoder_has_finite_gradients_wherever_the_mean_is():
    means = jnp.array([-1e8, -1e4, -50.0, -1.0, 0.0, 1.0, 50.0, 1e4, 1e8])
    values = jnp.array([-1.0, VALUES[100], 1.0])
    slopes = jax.vmap(jax.vmap(jax.grad(discretized_log_likelihood, (1, 2)), (0, None, None)), (None, 0, None))
    assert np.isfinite(jax.jit(slopes)(values, means, jnp.float32(-4.5))).all()


def test_vdms_decoder_is_a_distribution_over_the_256_values():
    level = Level(jnp.float32(0.999), jnp.float32(0.01))
    x = jnp.full(256, 0.123)
    log_p = np.asarray(decoder_log_likelihood(jnp.float32(VALUES), x, level), np.float64)
    np.testing.assert_allclose(np.exp(log_p).sum(), 1, rtol=1e-5)
    weights = np.exp(-0.5 * ((0.123 - 0.999 * VALUES) / 0.01) ** 2)
    np.testing.assert_allclose(np.exp(log_p), weights / weights.sum(), rtol=2e-3, atol=1e-12)


# ---- L_vlb of the exact denoiser


def closed_form(schedule, times, x0, variance, fraction=0.5):
    """E over the noise of each term, in bits per dimension, for the pixels x0 [...]; float64 throughout.

    With x0_hat = k (alpha x0 + sigma eps), E (x0 - x0_hat)^2 = (1 - k alpha)^2 x0^2 + (k sigma)^2; Gauss-Hermite
    quadrature integrates the decoder's term.
    """
    values, counts = np.unique(x0.astype(np.float64), return_counts=True)
    share, second_moment = counts / x0.size, np.mean(x0.astype(np.float64) ** 2)
    alpha, sigma = (np.asarray(a, np.float64) for a in schedule.level(jnp.float32(times)))
    ratio = alpha[:-1] / alpha[1:]
    beta = sigma[:-1] ** 2 - (ratio * sigma[1:]) ** 2
    tilde = beta * sigma[1:] ** 2 / sigma[:-1] ** 2
    tilde[-1] = tilde[-2]
    model = {
        "small": tilde,
        "large": np.append(beta[:-1], tilde[-1]),
        "learned": np.exp(fraction * np.log(beta) + (1 - fraction) * np.log(tilde)),
    }[variance]
    k = alpha * STD**2 / (alpha**2 * STD**2 + sigma**2)
    steps = []
    for n in range(len(times) - 2):
        b = alpha[n + 1] * beta[n] / sigma[n] ** 2
        error = (1 - k[n] * alpha[n]) ** 2 * second_moment + (k[n] * sigma[n]) ** 2
        steps.append(0.5 * (np.log(model[n] / tilde[n]) + tilde[n] / model[n] - 1 + b**2 * error / model[n]))
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    mean = k[-2] * (alpha[-2] * values[:, None] + sigma[-2] * nodes)
    high = np.where(values > 0.999, np.inf, values + 1 / 255)[:, None]
    low = np.where(values < -0.999, -np.inf, values - 1 / 255)[:, None]
    std = np.sqrt(model[-1])
    decoder = -share @ log_mass64((low - mean) / std, (high - mean) / std) @ (weights / weights.sum())
    std = sigma[0] / schedule.prior_std
    prior = 0.5 * (std**2 - 1 - 2 * np.log(std) + (alpha[0] / schedule.prior_std) ** 2 * second_moment)
    return prior / np.log(2), np.array(steps) / np.log(2), decoder / np.log(2)


def bound(schedule, x0, variance, times=None, fraction=0.5, first_seed=0):
    keys = jax.vmap(jax.random.key)(first_seed + jnp.arange(len(x0)))
    denoise = exact(schedule, fraction)
    run = lambda x0, keys: variational_bound(denoise, schedule, x0, keys, variance=variance, times=times)  # noqa: E731
    return jax.jit(run)(x0, keys)


@pytest.mark.parametrize(
    ("schedule", "times"),
    [
        (linear(steps=20, beta_start=1e-3, beta_end=0.4), None),
        (cosine(steps=20), None),
        (edm(sigma_min=0.02, sigma_max=20.0), np.append(np.linspace(1, 0.1, 15), 0)),
        (rectified_flow(), np.append(np.linspace(1, 0.02, 15), 0)),
    ],
    ids=["linear", "cosine", "edm", "rectified_flow"],
)
def test_bound_of_the_exact_denoiser_is_the_closed_form_term_by_term(schedule, times):
    x0 = pixels(np.random.default_rng(0), (8, 64, 64, 1))
    run = jax.jit(lambda x0: {variance: bound(schedule, x0, variance, times) for variance in VARIANCES})
    mean = lambda a: np.mean(np.asarray(a, np.float64), axis=-1)  # noqa: E731
    times = np.linspace(1, 0, 21) if times is None else times
    for variance, got in run(x0).items():
        prior, steps, decoder = closed_form(schedule, times, x0, variance)
        np.testing.assert_allclose(mean(got.prior), prior, rtol=1e-4, atol=1e-7)
        # 5 standard errors of 32,768 pixels
        np.testing.assert_allclose(mean(got.steps), steps, rtol=3.5e-2, err_msg=variance)
        np.testing.assert_allclose(mean(got.decoder), decoder, rtol=5e-3, err_msg=variance)
        np.testing.assert_allclose(got.total, got.prior + got.steps.sum(0) + got.decoder, rtol=1e-5)


def test_bound_lies_above_the_entropy_and_tends_to_it():
    """-log2 p of the 8-bit Gaussian itself; DDPM's chain comes closer with more steps."""
    x0 = pixels(np.random.default_rng(0), (4, 32, 32, 1))
    edges = np.concatenate([[-np.inf], (VALUES[1:] + VALUES[:-1]) / 2, [np.inf]])
    p = np.diff(scipy.stats.norm(0, STD).cdf(edges))
    entropy = -np.mean(np.log2(p[np.round((x0.astype(np.float64) + 1) * 127.5).astype(int)]))
    coarse, fine = (float(bound(linear(n, 1e-4, 20 / n), x0, "small").total.mean()) for n in (100, 500))
    assert entropy < fine < entropy + 1.5 < coarse


def test_an_examples_bound_depends_on_its_own_key_and_image_alone():
    x0 = pixels(np.random.default_rng(0), (4, 8, 8, 1))
    schedule = cosine(steps=5)
    whole, part = bound(schedule, x0, "small"), bound(schedule, x0[2:], "small", first_seed=2)
    np.testing.assert_allclose(whole.steps[:, 2:], part.steps, rtol=1e-5)
    np.testing.assert_allclose(whole.total[2:], part.total, rtol=1e-5)
    assert (np.abs(bound(schedule, x0[2:], "small").total - part.total) > 1e-4).all()


def test_a_bound_that_cannot_be_is_one_clear_sentence():
    x0, keys = jnp.zeros((1, 2, 2, 1)), jax.random.split(jax.random.key(0), 1)
    with pytest.raises(UserError, match="continuous-time bound"):
        variational_bound(exact(LEARNED), LEARNED, x0, keys, times=np.linspace(1, 0, 5))
    with pytest.raises(UserError, match="from t = 1 to t = 0"):
        variational_bound(exact(vp()), vp(), x0, keys, times=np.linspace(1, 0.1, 5))
    with pytest.raises(UserError, match="fall at every step, in float32 too"):
        variational_bound(exact(vp()), vp(), x0, keys, times=np.array([1.0, 1 - 1e-9, 0.5, 0.0]))
    with pytest.raises(UserError, match="at a time greater than 0; got 0"):
        continuous_bound(exact(vp()), vp(), x0, jnp.ones(1), x0, x0, start=0.0)
    with pytest.raises(UserError, match="needs times"):
        variational_bound(exact(vp()), vp(), x0, keys)
    with pytest.raises(UserError, match="'small', 'large', 'learned'"):
        variational_bound(exact(cosine()), cosine(), x0, keys, variance="medium")
    with pytest.raises(UserError, match="learned_variance=True"):
        variational_bound(exact(cosine()), cosine(), x0, keys, variance="learned")


# ---- continuous time


def integral(snr_first, snr_last, second_moment):
    """1/2 of the integral of E |eps - eps_hat|^2 over log-SNR for the exact denoiser, in bits.

    E = S (x0^2 + STD^4 S) / (1 + STD^2 S)^2 with S the SNR, whose antiderivative in log S is elementary.
    """
    f = lambda s: (1 - second_moment / STD**2) / (1 + STD**2 * s) + np.log1p(STD**2 * s)  # noqa: E731
    return 0.5 * (f(snr_first) - f(snr_last)) / np.log(2)


@pytest.mark.parametrize(
    ("schedule", "start"),
    [
        (vp(), 0.01),
        (continuous_cosine(), 0.01),
        (rectified_flow(), 0.02),
        (edm(), 0.3),
        (linear(), 0.02),
        (LEARNED, 0.0),
    ],
    ids=["vp", "continuous_cosine", "rectified_flow", "edm", "linear", "learned"],
)
def test_continuous_bound_of_the_exact_denoiser_is_the_closed_form(schedule, start):
    n = 8192
    x0 = pixels(np.random.default_rng(0), (n, 4))
    u = (jnp.arange(n) + 0.5) / n
    eps, eps_start = jax.random.normal(jax.random.key(0), (2, n, 4))
    run = jax.jit(lambda *a: continuous_bound(exact(schedule), schedule, *a, start=start))
    got = run(x0, u, eps, eps_start)
    first, last = (np.exp(np.asarray(schedule.logsnr(jnp.float32(t)), np.float64)) for t in (start, 1.0))
    second_moment = np.mean(x0.astype(np.float64) ** 2)
    np.testing.assert_allclose(
        np.asarray(got.diffusion, np.float64).mean(), integral(first, last, second_moment), rtol=2e-2
    )
    alpha, sigma = (float(a) for a in schedule.level(jnp.float32(start)))
    x = alpha * x0[:512].astype(np.float64) + sigma * np.asarray(eps_start[:512], np.float64)
    logits = -0.5 * ((x[..., None] - alpha * VALUES) / sigma) ** 2
    at = np.round((x0[:512] + 1) * 127.5).astype(int)[..., None]
    log_p = np.take_along_axis(logits - scipy.special.logsumexp(logits, axis=-1, keepdims=True), at, -1)
    np.testing.assert_allclose(got.reconstruction[:512], -log_p.mean((1, 2)) / np.log(2), rtol=1e-2, atol=2e-3)
    np.testing.assert_allclose(got.total, got.prior + got.diffusion + got.reconstruction, rtol=1e-5)
    alpha, sigma = (float(a) for a in schedule.level(jnp.float32(1.0)))
    std, mean = sigma / schedule.prior_std, alpha / schedule.prior_std * x0.astype(np.float64)
    prior = 0.5 * (std**2 - 1 - 2 * np.log(std) + np.mean(mean**2, axis=1)) / np.log(2)
    np.testing.assert_allclose(got.prior, prior, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("schedule", [vp(), rectified_flow(), edm(), LEARNED])
def test_the_diffusion_term_is_the_integral_over_log_snr(schedule):
    n = 4096
    x0 = pixels(np.random.default_rng(0), (n, 64))
    u, eps = (jnp.arange(n) + 0.5) / n, jax.random.normal(jax.random.key(0), (n, 64))
    got = jax.jit(lambda *a: diffusion_term(exact(schedule), schedule, *a, start=0.02))(x0, u, eps)
    first, last = (np.exp(np.asarray(schedule.logsnr(jnp.float32(t)), np.float64)) for t in (0.02, 1.0))
    expected = integral(first, last, np.mean(x0.astype(np.float64) ** 2))
    np.testing.assert_allclose(np.asarray(got, np.float64).mean(), expected, rtol=2e-2)


@pytest.mark.parametrize(("start", "uniform_in_time"), [(1e-3, 1.5), (1e-5, 15.0)])
def test_stratified_draws_deviate_little_in_log_snr_and_much_in_time(start, uniform_in_time):
    """The mean of 64 draws at 64 pixels, in bits per dimension; the pixels' own noise is nearly all that is left."""
    n, draws, schedule = 2048, 64, vp()
    x0 = jnp.asarray(pixels(np.random.default_rng(0), (1, 64)).repeat(n, 0))

    @jax.jit
    def run(key):
        def draw(totals, k):
            place, noise = jax.random.split(jax.random.fold_in(key, k))
            u, eps = (k + jax.random.uniform(place, (n,))) / draws, jax.random.normal(noise, x0.shape)
            now = diffusion_term(exact(schedule), schedule, x0, u, eps, start=start)
            before = continuous_bound(exact(schedule), schedule, x0, 1 - u, eps, eps, start=start).diffusion
            return (totals[0] + now / draws, totals[1] + before / draws), None

        return jax.lax.scan(draw, (jnp.zeros(n), jnp.zeros(n)), jnp.arange(draws))[0]

    now, before = (np.asarray(a, np.float64) for a in run(jax.random.key(0)))
    assert now.std() < 0.3
    assert before.std() > uniform_in_time
    assert abs(now.mean() - before.mean()) < 4 * before.std() / np.sqrt(n)


@pytest.mark.parametrize("steps", [1000, 1_000_000])
def test_the_small_variance_never_reaches_the_entropy(steps):
    """Float64 sums of KL(exact reverse step || model's) for DDPM's betas and data N(0, STD^2): gamma / (2 ln 2)."""
    betas = np.linspace(0.1 / steps, 20 / steps, steps)
    log_alpha2 = np.append(np.cumsum(np.log1p(-betas))[::-1], 0.0)
    with jax.enable_x64(True):
        levels = Level(jnp.asarray(np.exp(0.5 * log_alpha2)), jnp.asarray(np.sqrt(-np.expm1(log_alpha2))))
        small, large = (a[:-1] for a in log_variances(levels))
        t, s = Level(*(a[:-2] for a in levels)), Level(*(a[1:-1] for a in levels))
        b = posterior(s, t)[1]
        of_x0 = STD**2 * t.sigma**2 / (t.alpha**2 * STD**2 + t.sigma**2)
        exact_step = jnp.log(jnp.exp(small) + b**2 * of_x0)
        models = {"small": small, "large": large}
        gap = {name: float(normal_kl(0.0, exact_step, 0.0, v).sum()) / np.log(2) for name, v in models.items()}
    limit = np.euler_gamma / (2 * np.log(2))
    assert limit == pytest.approx(0.416, abs=5e-4)
    expected = {1000: (0.652, 0.0029), 1_000_000: (limit, 0.0)}[steps]
    assert gap["small"] == pytest.approx(expected[0], abs=1e-3)
    assert gap["large"] == pytest.approx(expected[1], abs=1e-4)
    assert gap["small"] > limit


def test_continuous_bound_starts_at_the_schedules_first_noise_level():
    x0 = jnp.zeros((2, 4))
    u, eps = jnp.array([0.3, 1.0]), jnp.ones((2, 4))
    run = lambda start: continuous_bound(exact(vp()), vp(), x0, u, eps, eps, start=start).total  # noqa: E731
    default, same, other = jax.jit(lambda: (run(None), run(1e-3), run(1e-2)))()
    np.testing.assert_array_equal(default, same)
    assert (default != other).all()


def test_continuous_bound_teaches_a_learned_schedule():
    """Its gradient is that of finite differences; what lies between the ends moves little but the variance."""
    params = init(jax.random.key(3), hidden=16)
    x0 = pixels(np.random.default_rng(0), (2048, 4))
    u = (jnp.arange(2048) + 0.5) / 2048
    eps, eps_start = jax.random.normal(jax.random.key(0), (2, 2048, 4))

    def loss(params):
        schedule = Learned(params)
        return jnp.mean(continuous_bound(exact(schedule), schedule, x0, u, eps, eps_start).total)

    value_and_grad = jax.jit(jax.value_and_grad(loss))
    value, grads = value_and_grad(params)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
    for i, h in ((0, 0.05), (1, 0.05)):
        up, down = (value_and_grad(params | {"ends": params["ends"].at[i].add(d)})[0] for d in (h, -h))
        np.testing.assert_allclose(grads["ends"][i], (up - down) / (2 * h), rtol=0.02, atol=5e-5)
    assert np.abs(grads["l1"]["b"]) < 0.05 < value
