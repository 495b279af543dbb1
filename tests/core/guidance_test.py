"""Guidance and thresholds: identities, calls of the network, closed forms, parity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from samplers_exact import VE, VP, Gaussian, jit, solve

from diffusion_jax.core.denoisers import (
    autoguidance,
    classifier_free,
    classifier_guidance,
    condition,
    dynamic_threshold,
    from_network,
    interval,
    static_threshold,
    std_rescale,
)
from diffusion_jax.core.grids import logsnr
from diffusion_jax.core.predictions import PREDICTIONS, Prediction, eps_from_x0
from diffusion_jax.core.samplers import SAMPLERS, ddim
from diffusion_jax.core.schedules import SCHEDULES, linear
from diffusion_jax.errors import UserError

SCHEDULE = linear()
V = PREDICTIONS["v"]()
B = 4
X = jax.random.normal(jax.random.key(0), (B, 3, 2))
TIME = jnp.array([0.1, 0.4, 0.7, 1.0])
COND = {"label": jnp.array([0, 1, 2, 1]), "text": {"tokens": jnp.arange(B * 2.0).reshape(B, 2)}}
NULL = {"label": jnp.full(B, 3), "text": {"tokens": jnp.zeros((B, 2))}}


def network(x, i, cond):
    shift = cond["label"].astype(jnp.float32) + cond["text"]["tokens"].sum(-1)
    return jnp.tanh(x + 0.1 * shift[:, None, None]) + 0.001 * i[:, None, None]


def conditional(prediction="eps"):
    return from_network(network, SCHEDULE, PREDICTIONS[prediction]())


def assert_same(a, b, **tolerance):
    jax.tree.map(lambda p, q: np.testing.assert_allclose(p, q, **({"rtol": 1e-6, "atol": 1e-6} | tolerance)), a, b)


def assert_consistent(prediction, x=X, t=TIME, schedule=SCHEDULE):
    """x = alpha x0 + sigma eps."""
    alpha, sigma = schedule.level(t).like(x)
    np.testing.assert_allclose(alpha * prediction.x0 + sigma * prediction.eps, x, atol=2e-5)


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
@pytest.mark.parametrize("scale", [0.0, 1.0, 2.0, 7.5, -1.0])
def test_classifier_free_is_the_extrapolation_of_two_calls(prediction, scale):
    denoise = conditional(prediction)
    with_condition, without = denoise(X, TIME, COND), denoise(X, TIME, NULL)
    guided = classifier_free(denoise, COND, NULL, scale)(X, TIME)
    expected = [n + scale * (p - n) for p, n in zip(with_condition[:2], without[:2], strict=True)]
    assert_same(list(guided[:2]), expected, rtol=1e-5, atol=1e-4)
    assert_consistent(guided)
    if scale in (0, 1):
        assert_same(guided, with_condition if scale else without, rtol=1e-6)


@pytest.mark.parametrize(("scale", "calls"), [(1.0, [B]), (3.0, [2 * B]), (0.0, [2 * B])])
def test_classifier_free_calls_the_network_once(scale, calls):
    sizes = []

    def apply(x, i, cond):
        assert len(x) == len(i) == len(cond["label"]) == len(cond["text"]["tokens"])
        sizes.append(len(x))
        return network(x, i, cond)

    denoise = from_network(apply, SCHEDULE, PREDICTIONS["eps"]())
    jax.eval_shape(classifier_free(denoise, COND, NULL, scale), X, TIME)
    assert sizes == calls


def test_classifier_free_keeps_neighbours_together():
    """The pair of example i stands at 2 i and 2 i + 1: a batch split over devices stays where it is."""
    seen = []

    def apply(x, i, cond):
        seen.append((np.asarray(x), np.asarray(cond["label"])))
        return network(x, i, cond)

    classifier_free(from_network(apply, SCHEDULE, PREDICTIONS["eps"]()), COND, NULL, 2.0)(X, TIME)
    x, label = seen[0]
    np.testing.assert_array_equal(x, np.repeat(X, 2, axis=0))
    np.testing.assert_array_equal(label, [0, 3, 1, 3, 2, 3, 1, 3])


def test_classifier_free_keeps_the_conditional_variance():
    def denoise(x, t, cond):
        return Prediction(x, x, jnp.broadcast_to(cond["label"][:, None, None] / 10.0, x.shape))

    guided = classifier_free(denoise, COND, NULL, 3.0)(X, TIME)
    np.testing.assert_allclose(guided.fraction[:, 0, 0], COND["label"] / 10.0, rtol=1e-6)


@pytest.mark.parametrize("null", [{}, {"label": NULL["label"]}])
def test_guidance_needs_a_null_condition(null):
    with pytest.raises(UserError, match="needs a null condition for each of"):
        classifier_free(conditional(), COND, null, 2.0)


def test_interval_guides_only_inside_and_skips_the_other_call_outside():
    low, high = 0.5, 5.0
    noise = np.exp(-0.5 * np.asarray(SCHEDULE.logsnr(TIME)))
    inside = (noise > low) & (noise <= high)
    np.testing.assert_array_equal(inside, [False, True, False, False])
    denoise = conditional()
    guided = classifier_free(denoise, COND, NULL, interval(4.0, SCHEDULE, low, high))(X, TIME)
    full, plain = classifier_free(denoise, COND, NULL, 4.0)(X, TIME), denoise(X, TIME, COND)
    choose = lambda a, b: jnp.where(inside[:, None, None], a, b)  # noqa: E731
    assert_same(list(guided[:2]), [choose(a, b) for a, b in zip(full[:2], plain[:2], strict=True)])

    sizes = []

    def apply(x, i, cond):
        jax.debug.callback(lambda: sizes.append(x.shape[0]))
        return network(x, i, cond)

    denoise = from_network(apply, SCHEDULE, PREDICTIONS["eps"]())
    run = jit(classifier_free(denoise, COND, NULL, interval(4.0, SCHEDULE, low, high)))
    for t in (TIME[0], TIME[1], TIME[3]):  # below, inside, above
        jax.block_until_ready(run(X, jnp.full(B, t)))
        jax.effects_barrier()
    assert sizes == [B, 2 * B, B]


def test_interval_ends_are_open_below_and_closed_above():
    schedule = VE(top=1.0)
    scale = interval(3.0, schedule, 0.125, 1.0)  # sigma = t^3
    np.testing.assert_array_equal(scale(jnp.array([0.5, 0.51, 1.0])), [1.0, 3.0, 3.0])


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5])
def test_autoguidance_extrapolates_from_the_weak_model(scale):
    strong, weak = Gaussian(0.3, 0.5), Gaussian(0.1, 0.9)
    a, b = strong.denoiser(VP())(X, TIME), weak.denoiser(VP())(X, TIME)
    guided = autoguidance(strong.denoiser(VP()), weak.denoiser(VP()), scale)(X, TIME)
    assert_same(list(guided[:2]), [q + scale * (p - q) for p, q in zip(a[:2], b[:2], strict=True)], atol=1e-5)
    assert_consistent(guided, schedule=VP())


def test_guided_gaussians_give_the_gaussian_of_the_tilted_score():
    """Between Gaussians of equal width guidance moves the mean: (1 - w) m_0 + w m_1, exactly, at every time."""
    w, narrow = 3.0, dict(std=0.5)
    guided = autoguidance(Gaussian(0.4, **narrow).denoiser(VP()), Gaussian(0.1, **narrow).denoiser(VP()), w)
    x = jnp.linspace(-2, 2, 5)[:, None]
    out = solve(guided, SAMPLERS["dpmpp_3m"](), VP(), logsnr()(VP(), 60), x)
    np.testing.assert_allclose(out, Gaussian(1.0, **narrow).flow(VP(), 1.0, 0.0, x), atol=2e-3)


@pytest.mark.parametrize("name", ["v", "eps", "x0"])
def test_rescale_restores_the_conditional_deviation(name):
    denoise, output = conditional(), PREDICTIONS[name]()
    plain = denoise(X, TIME, COND)
    level = SCHEDULE.level(TIME)
    std = lambda p: np.std(output.target(p.x0, p.eps, level), axis=(1, 2))  # noqa: E731
    unscaled = classifier_free(denoise, COND, NULL, 6.0)(X, TIME)
    for phi in (0.0, 0.7, 1.0):
        guided = classifier_free(denoise, COND, NULL, 6.0, std_rescale(phi, SCHEDULE, output))(X, TIME)
        np.testing.assert_allclose(std(guided), phi * std(plain) + (1 - phi) * std(unscaled), rtol=2e-4)
        assert_consistent(guided)


def rescale_noise_cfg(guided, plain, phi):
    """Section 3.4 of arXiv:2305.08891 on outputs of a network, one example at a time, in float64."""
    rescaled = []
    for out, pos in zip(np.asarray(guided, np.float64), np.asarray(plain, np.float64), strict=True):
        rescaled.append(phi * out * (pos.std() / out.std()) + (1 - phi) * out)
    return np.stack(rescaled)


@pytest.mark.parametrize("name", ["eps", "x0", "v", "flow", "edm"])
def test_rescale_acts_on_what_the_network_predicts(name):
    """The network's outputs mixed and rescaled, then converted: the same as our guidance of predictions."""
    output, scale, phi = PREDICTIONS[name](), 6.0, 0.7
    level = SCHEDULE.level(TIME)
    seen = output.network_input(X, level)
    plain, null = (network(seen, SCHEDULE.conditioning(TIME), c) for c in (COND, NULL))
    wanted = output.to_prediction(jnp.asarray(rescale_noise_cfg(null + scale * (plain - null), plain, phi)), X, level)
    denoise = from_network(network, SCHEDULE, output)
    ours = classifier_free(denoise, COND, NULL, scale, std_rescale(phi, SCHEDULE, output))(X, TIME)
    assert_same(ours[:2], wanted[:2], rtol=1e-3, atol=1e-3 if name == "eps" else 1e-4)  # x0 at t = 1: eps over 0.006


def test_rescale_of_a_learned_variance_leaves_it_as_it_is():
    output = PREDICTIONS["eps"](learned_variance=True)
    double = lambda x, i, cond: jnp.concatenate([network(x, i, cond), jnp.tanh(x)], -1)  # noqa: E731
    denoise = from_network(double, SCHEDULE, output)
    ours = classifier_free(denoise, COND, NULL, 6.0, std_rescale(0.7, SCHEDULE, output))(X, TIME)
    plain = classifier_free(conditional(), COND, NULL, 6.0, std_rescale(0.7, SCHEDULE, PREDICTIONS["eps"]()))(X, TIME)
    assert_same(ours[:2], plain[:2])
    np.testing.assert_array_equal(ours.fraction, denoise(X, TIME, COND).fraction)


@pytest.mark.parametrize("constant", [0.0, 0.1, 1e-30])
def test_rescale_of_an_output_without_deviation_changes_nothing(constant):
    """0 / 0 and 1 / 0 of eq. 15: no factor gives a constant a deviation, so guidance stays as it is; one pixel too."""
    flat = lambda x, i, cond: jnp.full_like(x, constant)  # noqa: E731
    half = lambda x, i, cond: jnp.where(cond["label"][:, None, None] == 3, 0.5 * x, 0.1 + 0.4 * x)  # noqa: E731
    for apply, scale in ((flat, 3.0), (half, 5.0)):  # 0.5 x + 5 (0.1 - 0.1 x) = 0.5 though the plain one deviates
        for x in (X, X[:, :1, :1]):
            denoise = from_network(apply, SCHEDULE, V)
            ours = classifier_free(denoise, COND, NULL, scale, std_rescale(0.7, SCHEDULE, V))(x, TIME)
            assert_same(ours[:2], classifier_free(denoise, COND, NULL, scale)(x, TIME)[:2], rtol=1e-5, atol=1e-5)


def test_a_chains_network_is_told_no_time_before_its_first():
    """What it was trained on ends at 1 / T, index 0; x keeps the noise level of its own time."""
    told = []
    denoise = from_network(lambda x, i, cond: told.append(i) or 0 * x, SCHEDULE, PREDICTIONS["eps"]())
    t = jnp.float32([0.0003, 0.001, 0.0015, 1.0])
    x0 = denoise(X, t, {}).x0
    np.testing.assert_allclose(told[0], [0.0, 0.0, 0.5, 999.0], atol=1e-3)
    np.testing.assert_allclose(x0, X / SCHEDULE.alpha(t)[:, None, None], rtol=1e-6)


@pytest.mark.parity
def test_rescale_is_diffusers_on_the_same_output():
    import torch
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

    denoise, scale, phi = conditional(), 6.0, 0.7
    plain, guided = denoise(X, TIME, COND), classifier_free(denoise, COND, NULL, scale)(X, TIME)
    ours = classifier_free(denoise, COND, NULL, scale, std_rescale(phi, SCHEDULE, PREDICTIONS["eps"]()))(X, TIME)
    theirs = rescale_noise_cfg(*(torch.from_numpy(np.array(p.eps)) for p in (guided, plain)), guidance_rescale=phi)
    # Their deviation divides by n - 1, which cancels in the ratio.
    np.testing.assert_allclose(ours.eps, theirs.numpy(), rtol=1e-4, atol=1e-5)


def test_classifier_guidance_is_bayes_rule():
    """A Gaussian prior and the exact classifier of a linear Gaussian observation give the Gaussian posterior.

    y = x_0 + tau n: p(y | x_t) is Gaussian about E[x_0 | x_t] with variance Var[x_0 | x_t] + tau^2.
    """
    data, tau, y = Gaussian(0.3, 0.5), 0.4, 0.9
    schedule = VP()

    def log_prob(x, t):
        alpha, sigma = schedule.level(t).like(x)
        total = alpha**2 * data.variance + sigma**2
        mean = data.mean + alpha * data.variance / total * (x - alpha * data.mean)
        variance = data.variance * sigma**2 / total + tau**2
        return jnp.sum(-0.5 * (y - mean) ** 2 / variance - 0.5 * jnp.log(variance), axis=(1, 2))

    precision = 1 / data.variance + 1 / tau**2
    posterior = Gaussian((data.mean / data.variance + y / tau**2) / precision, precision**-0.5)
    guided = classifier_guidance(data.denoiser(schedule), log_prob, schedule, 1.0)(X, TIME)
    assert_same(list(guided[:2]), list(posterior.denoiser(schedule)(X, TIME)[:2]), atol=2e-4, rtol=2e-4)
    assert_consistent(guided, schedule=schedule)
    assert_same(
        classifier_guidance(data.denoiser(schedule), log_prob, schedule, 0.0)(X, TIME), data.denoiser(schedule)(X, TIME)
    )


def test_classifier_guidance_is_finite_without_signal():
    schedule = SCHEDULES["rectified_flow"]()
    log_prob = lambda x, t: jnp.sum(x, axis=(1, 2))  # noqa: E731
    guided = classifier_guidance(Gaussian().denoiser(schedule), log_prob, schedule, 2.0)(X, jnp.ones(B))
    assert np.isfinite(guided.x0).all()


def test_static_threshold_clips_and_stays_consistent():
    wild = lambda x, t: Prediction(3 * x, eps_from_x0(3 * x, x, SCHEDULE.level(t)), x)  # noqa: E731
    out = static_threshold(wild, SCHEDULE, -0.8, 0.9)(X, TIME)
    np.testing.assert_allclose(out.x0, jnp.clip(3 * X, -0.8, 0.9), rtol=1e-6)
    assert_consistent(out)
    np.testing.assert_array_equal(out.fraction, X)
    tame = lambda x, t: Prediction(0.1 * x, eps_from_x0(0.1 * x, x, SCHEDULE.level(t)))  # noqa: E731
    assert_same(static_threshold(tame, SCHEDULE)(X, TIME), tame(X, TIME), rtol=1e-5)


@pytest.mark.parametrize("percentile", [0.5, 0.9, 1.0])
def test_dynamic_threshold_of_imagen(percentile):
    wild = lambda x, t: Prediction(3 * x, eps_from_x0(3 * x, x, SCHEDULE.level(t)))  # noqa: E731
    out = dynamic_threshold(wild, SCHEDULE, percentile)(X, TIME)
    x0 = 3 * np.asarray(X)
    s = np.maximum(np.quantile(np.abs(x0).reshape(B, -1), percentile, axis=1), 1)[:, None, None]
    np.testing.assert_allclose(out.x0, np.clip(x0, -s, s) / s, rtol=1e-5)
    assert np.abs(out.x0).max() <= 1 + 1e-6
    assert_consistent(out)
    tame = lambda x, t: Prediction(0.1 * x, eps_from_x0(0.1 * x, x, SCHEDULE.level(t)))  # noqa: E731
    assert_same(dynamic_threshold(tame, SCHEDULE, percentile)(X, TIME), tame(X, TIME), rtol=1e-5)


@pytest.mark.parity
def test_dynamic_threshold_is_diffusers():
    import diffusers
    import torch

    scheduler = diffusers.DDIMScheduler(thresholding=True, dynamic_thresholding_ratio=0.8, sample_max_value=100.0)
    theirs = scheduler._threshold_sample(torch.from_numpy(3 * np.array(X)))
    wild = lambda x, t: Prediction(3 * x, x)  # noqa: E731
    np.testing.assert_allclose(dynamic_threshold(wild, SCHEDULE, 0.8)(X, TIME).x0, theirs.numpy(), rtol=1e-5)


def test_wrappers_compose_in_the_documented_order():
    """Guidance with interval and rescale, then a classifier, then a threshold: one compiled sampling run, in range."""
    guided = classifier_free(
        conditional(), COND, NULL, interval(5.0, SCHEDULE, 0.2, 8.0), std_rescale(0.7, SCHEDULE, V)
    )
    pulled = classifier_guidance(guided, lambda x, t: -jnp.sum(x**2, axis=(1, 2)), SCHEDULE, 0.5)
    for threshold in (static_threshold, dynamic_threshold):
        denoise = threshold(pulled, SCHEDULE)
        assert np.abs(denoise(X, TIME).x0).max() <= 1 + 1e-6
        out = solve(denoise, ddim(), SCHEDULE, np.linspace(1, 0, 6), X)
        assert np.isfinite(out).all()
        assert np.abs(out).max() <= 1 + 1e-5


def test_from_network_feeds_conditioning_and_scaled_input():
    """EDM: the network sees c_in x and c_noise = ln(sigma) / 4, and x0 = c_skip x + c_out F; table 1 of EDM."""
    schedule = SCHEDULES["edm"]()
    seen = {}

    def apply(x, i, cond):
        seen.update(x=x, i=i, cond=cond)
        return jnp.sin(x)

    sigma, t = schedule.sigma(TIME)[:, None, None], TIME
    x = X * (1 + sigma)
    out = condition(from_network(apply, schedule, PREDICTIONS["edm"](sigma_data=0.5)), {"a": 1})(x, t)
    n = np.sqrt(sigma**2 + 0.25)
    np.testing.assert_allclose(seen["x"], x / n, rtol=1e-5)
    np.testing.assert_allclose(seen["i"], np.log(sigma[:, 0, 0]) / 4, rtol=1e-4)
    assert seen["cond"] == {"a": 1}
    np.testing.assert_allclose(out.x0, 0.25 / n**2 * x + sigma * 0.5 / n * np.sin(x / n), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: static_threshold(None, SCHEDULE, 1.0, 1.0), "low < high"),
        (lambda: static_threshold(None, SCHEDULE, float("nan"), 1.0), "low < high"),
        (lambda: dynamic_threshold(None, SCHEDULE, 0.0), r"percentile in \(0, 1\]"),
        (lambda: dynamic_threshold(None, SCHEDULE, 99.5), r"percentile in \(0, 1\]"),
        (lambda: interval(2.0, SCHEDULE, 3.0, 1.0), "0 <= low < high"),
        (lambda: std_rescale(1.5, SCHEDULE, V), r"phi in \[0, 1\]"),
    ],
)
def test_errors_say_what_would_do(make, message):
    with pytest.raises(UserError, match=message):
        make()
