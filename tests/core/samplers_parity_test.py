"""Samplers against diffusers' schedulers and k-diffusion: one network, one noise sequence, every step to 1e-4."""

import functools
import importlib.metadata
import importlib.util
import sys
import types
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from samplers_exact import jit, keys, noises

from diffusion_jax.core.denoisers import condition, from_network
from diffusion_jax.core.grids import karras, leading, linspace, logsnr, trailing
from diffusion_jax.core.predictions import PREDICTIONS, Prediction
from diffusion_jax.core.samplers import (
    ddim,
    ddim_inversion,
    ddpm,
    dpmpp_2m,
    dpmpp_2m_sde,
    dpmpp_2s,
    dpmpp_3m,
    dpmpp_3m_sde,
    dpmpp_sde,
    euler,
    euler_ancestral,
    heun,
    integrate,
    plms,
    predictor_corrector,
    unipc,
)
from diffusion_jax.core.schedules import SCHEDULES, edm, linear, ve

pytestmark = pytest.mark.parity

T = 1000
SHAPE = (2, 3, 4)
X = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
BETAS = {"num_train_timesteps": T, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
SPACINGS = {"trailing": trailing(), "leading": leading()}
NAMES = {"eps": "epsilon", "v": "v_prediction"}


def network(np_like, x, i):
    """What the network says of x at index i, or at EDM's c_noise: any smooth function, of torch or of jax.numpy."""
    return np_like.tanh(1.3 * x) * np_like.cos(0.004 * i) + 0.25 * np_like.sin(2 * x + 0.01 * i)


def ours(sampler, schedule, times, x, prediction="eps", noise_keys=None, apply=None):
    """Our trajectory [N + 1, ...] with the network above."""
    apply = apply or (lambda x, i, cond: network(jnp, x, i[:, None, None]))
    denoise = condition(from_network(apply, schedule, PREDICTIONS[prediction]()), {})
    noise_keys = keys(len(x)) if noise_keys is None else noise_keys
    return np.asarray(
        jit(lambda x: integrate(denoise, sampler, schedule, times, x, noise_keys, trajectory=True))(jnp.asarray(x))
    )


def theirs(scheduler, x, step_index=None, learned=False):
    """The samples after every call of a diffusers scheduler that has its timesteps."""
    import torch

    sample, path = torch.from_numpy(x), []
    for t in scheduler.timesteps:
        scaled = scheduler.scale_model_input(sample, t) if hasattr(scheduler, "scale_model_input") else sample
        out = network(torch, scaled, t.float())
        if learned:
            out = torch.cat([out, torch.full_like(out, 2 * FRACTION - 1)], dim=1)
        sample = scheduler.step(out, t, sample).prev_sample
        path.append(sample.numpy())
    return np.stack(path)


def share_noise(monkeypatch, scheduler, noise):
    """Makes the scheduler draw our noise, in order."""
    import torch

    draws = iter(noise)
    module = sys.modules[type(scheduler).__module__]
    monkeypatch.setattr(module, "randn_tensor", lambda *args, **kwargs: torch.from_numpy(np.array(next(draws))))


def alpha_of(times):
    return np.asarray(linear().alpha(jnp.asarray(times)))


def assert_follows(path, reference, atol=1e-4):
    """At every step, within atol of the state, and of its scale where that has grown beyond 1."""
    assert path[1:].shape == reference.shape
    for ours, theirs in zip(path[1:], reference, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=atol * max(1.0, np.abs(theirs).max() / 2))


def grid_of(scheduler):
    """Our times for their timesteps, the data at the end."""
    return np.append((np.asarray(scheduler.timesteps, np.float64) + 1) / T, 0.0)


def make(name, steps, spacing="trailing", prediction="eps", **options):
    import diffusers

    scheduler = getattr(diffusers, name)(
        **BETAS, timestep_spacing=spacing, prediction_type=NAMES.get(prediction, prediction), **options
    )
    scheduler.set_timesteps(steps)
    return scheduler


settings = [
    pytest.mark.parametrize("prediction", ["eps", "v"]),
    pytest.mark.parametrize("spacing", ["trailing", "leading"]),
    pytest.mark.parametrize("steps", [5, 20]),
]


def every_setting(test):
    return functools.reduce(lambda f, mark: mark(f), settings, test)


@every_setting
@pytest.mark.parametrize("variance", ["small", "large"])
def test_ddpm(monkeypatch, steps, spacing, prediction, variance):
    scheduler = make("DDPMScheduler", steps, spacing, prediction, clip_sample=False, variance_type=f"fixed_{variance}")
    share_noise(monkeypatch, scheduler, noises(keys(2), steps, SHAPE[1:]))
    path = ours(ddpm(variance), linear(), SPACINGS[spacing](linear(), steps), X, prediction)
    reference = theirs(scheduler, X)
    if (variance, spacing) == ("large", "trailing"):  # there they noise the finished image, for its index is not 0
        path, reference = path[:-1], reference[:-1]
    assert_follows(path, reference)


FRACTION = 0.3


def test_ddpm_learned_variance(monkeypatch):
    steps = 10
    scheduler = make("DDPMScheduler", steps, clip_sample=False, variance_type="learned_range")
    share_noise(monkeypatch, scheduler, noises(keys(2), steps, SHAPE[1:]))
    denoise = from_network(lambda x, i, c: network(jnp, x, i[:, None, None]), linear(), PREDICTIONS["eps"]())
    learned = lambda x, t: denoise(x, t, {})._replace(fraction=jnp.full_like(x, FRACTION))  # noqa: E731
    times = trailing()(linear(), steps)
    path = integrate(learned, ddpm("learned"), linear(), times, jnp.asarray(X), keys(2), trajectory=True)
    assert_follows(np.asarray(path), theirs(scheduler, X, learned=True))


@every_setting
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim(monkeypatch, steps, spacing, prediction, eta):
    scheduler = make("DDIMScheduler", steps, spacing, prediction, clip_sample=False)
    scheduler.step = functools.partial(scheduler.step, eta=eta)
    share_noise(monkeypatch, scheduler, noises(keys(2), steps, SHAPE[1:]))
    path = ours(ddim(eta), linear(), SPACINGS[spacing](linear(), steps), X, prediction)
    assert_follows(path, theirs(scheduler, X))


@pytest.mark.parametrize("spacing", ["trailing", "leading"])
@pytest.mark.parametrize("steps", [5, 20])
def test_ddim_inversion(steps, spacing):
    scheduler = make("DDIMInverseScheduler", steps, spacing, clip_sample=False)
    times = SPACINGS[spacing](linear(), steps)[::-1]
    assert_follows(ours(ddim_inversion(), linear(), times, X), theirs(scheduler, X))


@pytest.mark.parametrize("steps", [2, 5, 20])
def test_plms(steps):
    """Of eps alone: of a network that predicts v they extrapolate v, where the paper extrapolates eps."""
    scheduler = make("PNDMScheduler", steps, "leading", skip_prk_steps=True, set_alpha_to_one=True)
    path = ours(plms(), linear(), leading()(linear(), steps), X)
    assert_follows(path, theirs(scheduler, X)[1:])  # its first call is the first half of the first step


@every_setting
@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler"])
def test_euler(monkeypatch, steps, spacing, prediction, name):
    """Theirs is x / alpha."""
    scheduler = make(name, steps, spacing, prediction)
    share_noise(monkeypatch, scheduler, noises(keys(2), steps, SHAPE[1:]))
    times = SPACINGS[spacing](linear(), steps)
    sampler = euler() if name == "EulerDiscreteScheduler" else euler_ancestral()
    path = ours(sampler, linear(), times, X, prediction)
    reference = theirs(scheduler, X / alpha_of(times[0])) * alpha_of(times[1:])[:, None, None, None]
    assert_follows(path, reference)


@every_setting
def test_heun(steps, spacing, prediction):
    scheduler = make("HeunDiscreteScheduler", steps, spacing, prediction)
    times = SPACINGS[spacing](linear(), steps)
    reference = theirs(scheduler, X / alpha_of(times[0]))
    ends = np.append(np.arange(1, len(reference) - 1, 2), len(reference) - 1)
    assert_follows(
        ours(heun(), linear(), times, X, prediction), reference[ends] * alpha_of(times[1:])[:, None, None, None]
    )


MULTISTEP = {  # our sampler, their options
    "2M": (dpmpp_2m(), {"solver_order": 2}),
    "2M heun": (dpmpp_2m(solver="heun"), {"solver_order": 2, "solver_type": "heun"}),
    "3M": (dpmpp_3m(reference=True), {"solver_order": 3, "solver_type": "heun"}),
    "2M SDE": (dpmpp_2m_sde(), {"solver_order": 2, "algorithm_type": "sde-dpmsolver++"}),
    "2M SDE heun": (
        dpmpp_2m_sde(solver="heun"),
        {"solver_order": 2, "algorithm_type": "sde-dpmsolver++", "solver_type": "heun"},
    ),
}


@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize("spacing", ["trailing", "karras"])
@pytest.mark.parametrize("steps", [5, 20])
@pytest.mark.parametrize("name", MULTISTEP)
def test_dpmpp_multistep(monkeypatch, name, steps, spacing, prediction):
    sampler, options = MULTISTEP[name]
    if spacing == "karras":
        options = {**options, "use_karras_sigmas": True}
    spacing = "trailing" if spacing == "karras" else spacing
    scheduler = make("DPMSolverMultistepScheduler", steps, spacing, prediction, **options)
    share_noise(monkeypatch, scheduler, noises(keys(2), steps, SHAPE[1:]))
    times = grid_of(scheduler)
    if (
        "use_karras_sigmas" in options
    ):  # their sigmas fall between their own integer timesteps: take those of the latter
        alpha, sigma = linear().level(jnp.asarray(times))
        import torch

        scheduler.sigmas = torch.from_numpy(np.array(sigma / alpha))
    assert_follows(ours(sampler, linear(), times, X, prediction), theirs(scheduler, X))


@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize("steps", [5, 20])
@pytest.mark.parametrize(("variant", "spacing"), [("bh1", "trailing"), ("bh2", "trailing"), ("bh2", "leading")])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc(steps, spacing, prediction, order, variant):
    options = {"solver_order": order, "solver_type": variant, "final_sigmas_type": "zero"}
    if variant == "bh1":  # theirs is NaN on the step to the data: end before it, where no step needs a lower order
        options |= {"final_sigmas_type": "sigma_min", "lower_order_final": False}
    scheduler = make("UniPCMultistepScheduler", steps, spacing, prediction, **options)
    times = grid_of(scheduler)
    times[-1] = 1 / T if variant == "bh1" else 0.0
    sampler = unipc(order, variant, taper=variant != "bh1")
    assert_follows(ours(sampler, linear(), times, X, prediction), theirs(scheduler, X))


@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize("steps", [3, 5, 20])
@pytest.mark.parametrize("order", [2, 3])
def test_unipc_tapers_where_the_grid_ends_short_of_the_data(steps, order, prediction):
    options = {"solver_order": order, "final_sigmas_type": "sigma_min"}
    scheduler = make("UniPCMultistepScheduler", steps, "linspace", prediction, **options)
    times = linspace(skip_first=True, last="t_min")(linear(), steps)
    assert_follows(ours(unipc(order), linear(), times, X, prediction), theirs(scheduler, X))


@pytest.mark.parametrize("steps", [5, 20])
@pytest.mark.parametrize("name", ["2M", "3M"])
def test_dpmpp_tapers_where_the_grid_ends_short_of_the_data(name, steps):
    """Below 15 steps alone."""
    sampler, options = MULTISTEP[name]
    scheduler = make("DPMSolverMultistepScheduler", steps, "linspace", final_sigmas_type="sigma_min", **options)
    times = linspace(skip_first=True, last="t_min")(linear(), steps)
    assert_follows(ours(sampler, linear(), times, X), theirs(scheduler, X))


@pytest.mark.parametrize("steps", [5, 20, 50])
def test_stable_diffusions_ddim_and_plms(steps):
    """steps_offset 1 and set_alpha_to_one False: from t = (981 + 1) / 1000 at 50 steps to 1 / 1000."""
    import diffusers

    times = leading(offset=1, last="t_min")(SCHEDULES["scaled_linear"](), steps)
    options = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
    for name, sampler, extra in (
        ("DDIMScheduler", ddim(), {"clip_sample": False}),
        ("PNDMScheduler", plms(), {"skip_prk_steps": True}),
    ):
        scheduler = getattr(diffusers, name)(**options, set_alpha_to_one=False, **extra)
        scheduler.set_timesteps(steps)
        reference = theirs(scheduler, X)[-steps:]
        assert_follows(ours(sampler, SCHEDULES["scaled_linear"](), times, X), reference)


@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize("steps", [4, 15])
def test_dpmpp_singlestep(steps, prediction):
    """Theirs evaluates at every timestep given; ours at the middles of lambda, which become timesteps of theirs."""
    import diffusers
    import torch

    times = trailing()(linear(), steps)
    plan = dpmpp_2s().plan(linear(), jnp.asarray(times, jnp.float32))
    alpha, sigma = linear().level(plan.t)
    options = {"prediction_type": NAMES[prediction], "final_sigmas_type": "zero"}
    scheduler = diffusers.DPMSolverSinglestepScheduler(**BETAS, **options)
    scheduler.set_timesteps(len(plan.t))
    assert scheduler.order_list == [1, 2] * (steps - 1) + [1]
    scheduler.set_begin_index(0)
    scheduler.timesteps = torch.from_numpy(np.array(plan.t)) * T - 1
    scheduler.sigmas = torch.from_numpy(np.append(sigma / alpha, np.float32(0)))
    reference = theirs(scheduler, X)
    ends = np.append(np.arange(1, len(reference), 2), len(reference) - 1)
    assert_follows(ours(dpmpp_2s(), linear(), times, X, prediction), reference[ends])


def test_flow_matching_euler():
    """Euler's method on the velocity is DDIM on the straight path."""
    import diffusers
    import torch

    schedule, steps = SCHEDULES["rectified_flow"](), 12
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=T)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps).tolist())
    sample, path = torch.from_numpy(X), []
    for t in scheduler.timesteps:
        sample = scheduler.step(network(torch, sample, t), t, sample).prev_sample
        path.append(sample.numpy())
    assert_follows(ours(ddim(), schedule, np.linspace(1, 0, steps + 1), X, "flow"), np.stack(path))


EDM = {
    "EDMEulerScheduler": (euler(), {}),
    "EDMDPMSolverMultistepScheduler": (dpmpp_2m(), {"solver_order": 2}),
    "EDMDPMSolverMultistepScheduler 3": (dpmpp_3m(reference=True), {"solver_order": 3, "solver_type": "heun"}),
}


@pytest.mark.parametrize("sigma_schedule", ["karras", "exponential"])
@pytest.mark.parametrize("steps", [6, 18])
@pytest.mark.parametrize("name", EDM)
def test_edm_schedulers(name, steps, sigma_schedule):
    """Preconditioning, sigma grid and step of EDM; x is compared in units of its standard deviation."""
    import diffusers

    sampler, options = EDM[name]
    scheduler = getattr(diffusers, name.split()[0])(sigma_schedule=sigma_schedule, **options)
    scheduler.set_timesteps(steps)
    schedule = edm()
    grid = karras(sigma_min=0.002) if sigma_schedule == "karras" else logsnr(sigma_min=0.002)
    times = grid(schedule, steps)
    sigma = np.asarray(schedule.sigma(jnp.asarray(times)))
    np.testing.assert_allclose(sigma, scheduler.sigmas, rtol=2e-5)
    unit = np.sqrt(1 + sigma[1:, None, None, None] ** 2)
    path = ours(sampler, schedule, times, 80 * X, "edm")
    assert_follows(path / np.concatenate([unit[:1], unit]), theirs(scheduler, 80 * X) / unit)


def test_predictor_corrector():
    """score-SDE's scheduler on a batch of one, where its norms are one example's."""
    import diffusers
    import torch

    steps, snr, correctors = 8, 0.15, 2
    scheduler = diffusers.ScoreSdeVeScheduler(num_train_timesteps=steps, snr=snr, sigma_min=0.01, sigma_max=50.0)
    scheduler.set_timesteps(steps)
    scheduler.set_sigmas(steps)
    schedule = ve(0.01, 50.0)
    sigma = scheduler.discrete_sigmas.flip(0).numpy()
    times = np.append(schedule.time(-2 * jnp.log(sigma)), 0.0)
    times[0] = 1.0
    score = lambda m, x: -m.tanh(x)  # noqa: E731
    sample, path = torch.from_numpy(50 * X[:1]), []
    z = [noises(keys(1), steps, SHAPE[1:], draw) for draw in range(correctors + 1)]
    draws = iter([z[d][n] for n in range(steps) for d in range(correctors + 1)])
    with pytest.MonkeyPatch.context() as patch:
        module = sys.modules[type(scheduler).__module__]
        patch.setattr(module, "randn_tensor", lambda *a, **k: torch.from_numpy(np.array(next(draws))))
        for n, t in enumerate(scheduler.timesteps):
            for _ in range(correctors):
                sample = scheduler.step_correct(score(torch, sample), sample).prev_sample
            out = scheduler.step_pred(score(torch, sample), t, sample)
            sample = out.prev_sample_mean if n == steps - 1 else out.prev_sample
            path.append(sample.numpy())

    def denoise(x, t):
        sigma = schedule.sigma(t)[:, None, None]
        return Prediction(x + sigma**2 * score(jnp, x), -sigma * score(jnp, x))

    run = jit(
        lambda x: integrate(denoise, predictor_corrector(snr, correctors), schedule, times, x, keys(1), trajectory=True)
    )
    assert_follows(np.asarray(run(jnp.asarray(50 * X[:1]))), np.stack(path), atol=3e-4)


@pytest.fixture(scope="module")
def k_sampling():
    """k_diffusion.sampling alone: its package imports far more than it needs."""
    files = {f.name: f.locate() for f in importlib.metadata.files("k-diffusion") if f.parent.name == "k_diffusion"}
    package = types.ModuleType("k_diffusion")
    package.__path__ = [str(Path(files["sampling.py"]).parent)]
    utils = types.ModuleType("k_diffusion.utils")
    utils.append_dims = lambda a, ndim: a[(...,) + (None,) * (ndim - a.ndim)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "k_diffusion", package)
        patch.setitem(sys.modules, "k_diffusion.utils", utils)
        patch.setattr(package, "utils", utils, raising=False)
        spec = importlib.util.spec_from_file_location("k_diffusion.sampling", files["sampling.py"])
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module


def denoised(np_like, x, sigma):
    """A smooth stand-in for a denoiser at noise level sigma."""
    return np_like.tanh(x / (1 + sigma)) + 0.2 * np_like.sin(x / (1 + sigma) + sigma / (1 + sigma))


K = {  # our sampler, their function and options, our noise draws in a step
    "euler": (euler(), "sample_euler", {}, ()),
    "euler churn": (
        euler(s_churn=8.0, s_min=0.05, s_max=50.0, s_noise=1.007),
        "sample_euler",
        {"s_churn": 8.0, "s_tmin": 0.05, "s_tmax": 50.0, "s_noise": 1.007},
        (0,),
    ),
    "heun": (heun(), "sample_heun", {}, ()),
    "heun churn": (
        heun(s_churn=8.0, s_min=0.05, s_max=50.0, s_noise=1.007),
        "sample_heun",
        {"s_churn": 8.0, "s_tmin": 0.05, "s_tmax": 50.0, "s_noise": 1.007},
        (0,),
    ),
    "euler_ancestral": (euler_ancestral(0.8, 1.01), "sample_euler_ancestral", {"eta": 0.8, "s_noise": 1.01}, (0,)),
    "dpmpp_2s": (dpmpp_2s(), "sample_dpmpp_2s_ancestral", {"eta": 0.0}, ()),
    "dpmpp_2s ancestral": (dpmpp_2s(eta=0.7), "sample_dpmpp_2s_ancestral", {"eta": 0.7}, (0,)),
    "dpmpp_sde": (
        dpmpp_sde(eta=0.9, r=0.4, s_noise=1.01),
        "sample_dpmpp_sde",
        {"eta": 0.9, "r": 0.4, "s_noise": 1.01},
        "path",
    ),
    "dpmpp_2m": (dpmpp_2m(), "sample_dpmpp_2m", {}, ()),
    "dpmpp_2m_sde": (dpmpp_2m_sde(0.8, s_noise=1.01), "sample_dpmpp_2m_sde", {"eta": 0.8, "s_noise": 1.01}, (0,)),
    "dpmpp_2m_sde heun": (dpmpp_2m_sde(solver="heun"), "sample_dpmpp_2m_sde", {"solver_type": "heun"}, (0,)),
    "dpmpp_3m_sde": (dpmpp_3m_sde(0.8, reference=True), "sample_dpmpp_3m_sde", {"eta": 0.8}, (0,)),
    "dpmpp_3m": (dpmpp_3m(reference=True), "sample_dpmpp_3m_sde", {"eta": 0.0}, ()),
}


@pytest.mark.parametrize("grid", ["karras", "logsnr"])
@pytest.mark.parametrize("steps", [15, 24])
@pytest.mark.parametrize("name", K)
def test_k_diffusion(monkeypatch, k_sampling, name, steps, grid):
    import torch

    sampler, function, options, draws = K[name]
    schedule = edm()
    times = {"karras": karras(), "logsnr": logsnr()}[grid](schedule, steps)
    sigmas = np.array(schedule.sigma(jnp.asarray(times, jnp.float32)))
    get = k_sampling.get_sigmas_karras if grid == "karras" else k_sampling.get_sigmas_exponential
    np.testing.assert_allclose(sigmas, get(steps, float(sigmas[-2]), 80.0), rtol=3e-5)

    z = [noises(keys(2), steps, SHAPE[1:], draw) for draw in (0, 1)]
    if draws == "path":
        plan = sampler.plan(schedule, jnp.asarray(times, jnp.float32))
        shared = np.append(np.asarray(plan.coefficients[-1])[1::2], 0.0)[:, None, None, None]
        both = shared * z[0] + np.sqrt(1 - shared**2) * z[1]
        sequence = iter([noise for n in range(steps) for noise in (z[0][n], both[n])])
    else:
        sequence = iter(z[0])
    draw = lambda *args: torch.from_numpy(np.array(next(sequence), np.float32))  # noqa: E731
    if "churn" in name:
        monkeypatch.setattr(torch, "randn_like", draw)
    elif draws:
        options = {**options, "noise_sampler": draw}
    elif function == "sample_dpmpp_3m_sde":
        options = {**options, "noise_sampler": lambda *a: None}

    states = []
    model = lambda x, sigma: denoised(torch, x, sigma[:, None, None])  # noqa: E731
    final = getattr(k_sampling, function)(
        model,
        torch.from_numpy(80 * X),
        torch.from_numpy(sigmas),
        callback=lambda info: states.append(info["x"].numpy().copy()),
        disable=True,
        **options,
    )

    def denoise(x, t):
        sigma = schedule.sigma(t)[:, None, None]
        x0 = denoised(jnp, x, sigma)
        return Prediction(x0, (x - x0) / sigma)

    run = jit(lambda x: integrate(denoise, sampler, schedule, times, x, keys(2), trajectory=True))
    path = np.asarray(run(jnp.asarray(80 * X)))
    unit = np.sqrt(1 + sigmas[:, None, None, None] ** 2)
    if "churn" in name:  # their callback sees x after the churn
        np.testing.assert_allclose(path[-1], final.numpy(), atol=1e-4)
    else:
        reference = np.stack([*states, final.numpy()])
        np.testing.assert_allclose(path / unit, reference / unit, atol=1e-4)
