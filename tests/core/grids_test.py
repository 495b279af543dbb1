"""Time grids: ends, order, parity with DDIM's code, EDM's formula and diffusers."""

import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.core.grids import GRIDS, karras, leading, linspace, logsnr, quadratic, trailing, uniform
from diffusion_jax.core.schedules import SCHEDULES, cosine, edm, linear, zero_snr
from diffusion_jax.errors import UserError

CASES = [
    (grid, schedule)
    for grid in GRIDS
    for schedule in SCHEDULES
    if not (grid == "leading" and SCHEDULES[schedule]().steps is None)
]

OF_A_CHAIN = ("trailing", "leading", "linspace", "quadratic")


@pytest.mark.parametrize(("grid", "schedule"), CASES)
@pytest.mark.parametrize("steps", [1, 2, 7, 50])
def test_falls_from_noise_to_data(grid, schedule, steps):
    options = {"sigma_max": 80.0} if grid in ("karras", "logsnr") else {}
    schedule = SCHEDULES[schedule]()
    times = GRIDS[grid](**options)(schedule, steps)
    assert isinstance(times, np.ndarray)
    assert times.shape == (steps + 1,)
    assert times[-1] == 0
    assert (np.diff(times.astype(np.float32)) < 0).all()
    assert times[0] == 1 or (grid == "leading" and times[0] <= 1)
    levels = np.asarray(schedule.sigma(jnp.asarray(times, jnp.float32)))
    assert (np.diff(levels) < 0).all()


@pytest.mark.parametrize("grid", ["uniform", "trailing", "leading"])
@pytest.mark.parametrize("total", [1, 10, 1000])
def test_as_many_steps_as_the_chain_are_its_own_times_exactly(grid, total):
    times = GRIDS[grid]()(linear(total), total)
    index = np.append(np.arange(total)[::-1] + 1, 0)
    np.testing.assert_allclose(times, index / total, rtol=0, atol=1e-15)
    # In float32, as the sampler sees them, they hit the table's own entries.
    own = np.append(1.0, np.cumprod(1 - np.linspace(1e-4, 0.02, total)))[index]
    np.testing.assert_allclose(linear(total).alpha(jnp.asarray(times, jnp.float32)) ** 2, own, rtol=2e-5)


def test_uniform_is_the_same_on_every_schedule():
    for schedule in (linear(), edm(), cosine(50)):
        np.testing.assert_array_equal(uniform()(schedule, 4), [1, 0.75, 0.5, 0.25, 0])


@pytest.mark.parity
@pytest.mark.parametrize("spacing", ["trailing", "leading"])
def test_indices_of_diffusers(spacing):
    import diffusers

    scheduler = diffusers.DDIMScheduler(timestep_spacing=spacing)
    for steps in [*range(1, 120), 150, 200, 250, 333, 400, 500, 666, 999, 1000]:
        scheduler.set_timesteps(steps)
        index = GRIDS[spacing]()(linear(), steps)[:-1] * 1000 - 1
        theirs = np.asarray(scheduler.timesteps)[:steps]  # with trailing they have one too many now and then
        exact = np.arange(steps, 0, -1) * 1000 / steps
        tie = np.abs(exact % 1 - 0.5) < 1e-6  # where their sum of strides rounds either way
        assert np.abs(index - theirs)[~tie if spacing == "trailing" else slice(None)].max() < 1e-9
        assert np.abs(index - theirs).max() < 1 + 1e-9


# scheduler: its own options, what our grids are called that have its times
DIFFUSERS = {
    "DDIMScheduler": ({"set_alpha_to_one": False}, False),
    "DDPMScheduler": ({}, False),
    "PNDMScheduler": ({"skip_prk_steps": True}, False),
    "EulerDiscreteScheduler": ({"final_sigmas_type": "sigma_min"}, False),
    "HeunDiscreteScheduler": ({}, False),
    "DPMSolverMultistepScheduler": ({"final_sigmas_type": "sigma_min"}, True),
    "UniPCMultistepScheduler": ({"final_sigmas_type": "sigma_min"}, True),
}


@pytest.mark.parity
@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("name", DIFFUSERS)
def test_timesteps_of_diffusers(name, spacing, offset):
    """What the module's docstring says is said so; and where sigmas end above 0, at the level of t_min."""
    import diffusers

    options, skip_first = DIFFUSERS[name]
    if name in ("DDIMScheduler", "PNDMScheduler", "DDPMScheduler"):  # these want whole betas of their own
        options = {**options, "beta_schedule": "linear"}
    elif offset and spacing != "leading":
        pytest.skip("steps_offset moves the spacing leading alone")
    scheduler = getattr(diffusers, name)(
        num_train_timesteps=1000, timestep_spacing=spacing, steps_offset=offset, **options
    )
    grid = {
        "leading": leading(offset, skip_first),
        "trailing": trailing(),
        "linspace": linspace(skip_first, whole=name not in ("EulerDiscreteScheduler", "HeunDiscreteScheduler")),
    }[spacing]
    for steps in (2, 3, 7, 20, 50, 333):
        scheduler.set_timesteps(steps)
        theirs = np.asarray(scheduler.timesteps, np.float64)
        theirs = theirs[np.append(True, np.diff(theirs) != 0)]  # Heun's and PNDM's have some of them twice
        np.testing.assert_allclose(grid(linear(), steps)[:-1] * 1000 - 1, theirs, rtol=0, atol=1e-4)
        if "final_sigmas_type" in options:
            schedule = linear(1000, 1e-4, 0.02)
            level = schedule.level(jnp.float32(trailing(last="t_min")(schedule, steps)[-1]))
            np.testing.assert_allclose(level.sigma / level.alpha, scheduler.sigmas[-1], rtol=1e-4)
    if "set_alpha_to_one" in options:
        np.testing.assert_allclose(scheduler.final_alpha_cumprod, linear().alpha(jnp.float32(1e-3)) ** 2, rtol=1e-5)


@pytest.mark.parametrize(
    ("grid", "index"),
    [
        (leading(offset=1), [751, 501, 251, 1]),  # Stable Diffusion's PLMS
        (leading(offset=1, skip_first=True), [801, 601, 401, 201]),
        (leading(skip_first=True), [800, 600, 400, 200]),
        (linspace(), [999, 666, 333, 0]),
        (linspace(skip_first=True), [999, 749, 500, 250]),  # 749.25, 499.5 to the even 500, 249.75
        (linspace(skip_first=True, whole=False), [999, 749.25, 499.5, 249.75]),
        (trailing(), [999, 749, 499, 249]),
    ],
)
def test_indices_of_four_steps_of_a_thousand(grid, index):
    np.testing.assert_allclose(grid(linear(), 4) * 1000 - 1, [*index, -1], atol=1e-9)


@pytest.mark.parametrize("make", [trailing, lambda last: leading(1, last=last), lambda last: linspace(True, last=last)])
def test_a_grid_may_end_at_the_first_noise_level(make):
    whole, short = make("data")(linear(), 6), make("t_min")(linear(), 6)
    np.testing.assert_array_equal(short[:-1], whole[:-1])
    assert (whole[-1], short[-1]) == (0, 1e-3)


def test_linspace_on_continuous_time_is_score_sdes():
    np.testing.assert_allclose(linspace()(SCHEDULES["vp"](), 4)[:-1], np.linspace(1, 1e-3, 4), rtol=1e-12)
    assert linspace(skip_first=True, last="t_min")(SCHEDULES["vp"](), 4)[-1] == 1e-3
    assert linspace()(linear(), 1)[0] == linspace()(edm(), 1)[0] == 1


@pytest.mark.parametrize("name", ["linear", "cosine", "scaled_linear", "vp", "edm", "ve"])
@pytest.mark.parametrize("grid", ["karras", "logsnr", "linspace", "trailing"])
def test_a_thousand_steps_fall_in_float32_too(name, grid):
    times = GRIDS[grid]()(SCHEDULES[name](), 1000)
    assert (np.diff(times.astype(np.float32)) < 0).all()


@pytest.mark.parametrize("steps", [5, 10, 20, 50])
def test_quadratic_is_ddims_code_but_for_repeated_indices(steps):
    """seq = linspace(0, sqrt(0.8 T), S)^2 as integers; its repeats near 0 move apart by one."""
    seq = (np.linspace(0, np.sqrt(1000 * 0.8), steps) ** 2).astype(int)
    index = np.round(quadratic(end=0.8)(linear(), steps)[:-1] * 1000 - 1).astype(int)[::-1]
    apart = np.maximum(seq, np.arange(steps))
    np.testing.assert_array_equal(index, apart)
    assert (np.diff(index) > 0).all()
    assert (index != seq).sum() <= 4


def test_quadratic_on_continuous_time():
    np.testing.assert_allclose(quadratic()(edm(), 4), [1, 9 / 16, 1 / 4, 1 / 16, 0])
    assert len(np.unique(quadratic()(linear(20), 20))) == 21


@pytest.mark.parametrize("rho", [1.0, 7.0])
@pytest.mark.parametrize("name", ["edm", "vp", "linear", "ve"])
def test_karras_is_edms_equation_5(rho, name):
    schedule, steps = SCHEDULES[name](), 12
    times = jnp.asarray(karras(rho, 0.05, 10.0)(schedule, steps), jnp.float32)
    alpha, sigma = schedule.level(times)
    i = np.arange(steps)
    low, high = 0.05 ** (1 / rho), 10.0 ** (1 / rho)
    expected = (high + i / (steps - 1) * (low - high)) ** rho
    np.testing.assert_allclose((sigma / alpha)[1:-1], expected[1:], rtol=2e-4)  # the first time is 1 in any case


def test_karras_takes_the_schedules_own_ends():
    times = karras()(edm(), 10)
    sigma = np.asarray(edm().sigma(jnp.asarray(times, jnp.float32)))
    np.testing.assert_allclose(sigma[[0, -2]], [80.0, 0.002], rtol=1e-3)
    assert karras()(linear(), 10)[-2] == pytest.approx(1e-3, rel=1e-3)  # the first step of the chain
    np.testing.assert_array_equal(karras(sigma_max=1e9)(edm(), 10), times)


@pytest.mark.parametrize("name", ["edm", "vp", "cosine", "linear", "ve"])
def test_logsnr_has_equal_steps_of_it(name):
    schedule = SCHEDULES[name]()
    times = jnp.asarray(logsnr(sigma_max=50.0)(schedule, 9), jnp.float32)
    steps = np.diff(np.asarray(schedule.logsnr(times))[1:-1])
    np.testing.assert_allclose(steps, steps[0], rtol=5e-3)


def test_grids_are_computed_before_the_program_even_inside_jit():
    import jax

    seen = []
    jax.jit(lambda x: (seen.append(karras()(linear(), 4)), x)[1])(1.0)
    np.testing.assert_array_equal(seen[0], karras()(linear(), 4))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        *((lambda g=g: GRIDS[g]()(linear(), 0), "at least 1 step; got 0") for g in GRIDS),
        *((lambda g=g: GRIDS[g]()(linear(10), 11), "at most that many; got 11") for g in OF_A_CHAIN),
        (lambda: leading()(edm(), 5), "needs a discrete schedule"),
        (lambda: quadratic(end=0.0), r"end in \(0, 1\]"),
        (lambda: quadratic(end=0.5)(linear(10), 6), "5 steps at most; got 6"),
        (lambda: karras(rho=0.0), "rho > 0"),
        (lambda: karras(sigma_min=2.0, sigma_max=1.0), "sigma_min < sigma_max"),
        (lambda: karras()(zero_snr()(linear()), 5), r"karras\(sigma_max=80.0\)"),
        (lambda: logsnr()(SCHEDULES["rectified_flow"](), 5), r"logsnr\(sigma_max=80.0\)"),
        (lambda: trailing()(linear(), -3), "got -3"),
        (lambda: karras()(linear(1), 2), "2 steps over the noise levels .* 0.01 to 0.01, .* take 1 step"),
        (lambda: logsnr()(linear(1), 2), "there are none"),
        (lambda: karras(sigma_min=100.0)(SCHEDULES["scaled_linear"](), 3), "0.02917 to 14.61"),
        (lambda: karras(sigma_max=0.01)(SCHEDULES["scaled_linear"](), 3), "there are none"),
        (lambda: leading(offset=-1), "offset >= 0"),
        (lambda: leading(offset=12)(linear(100), 9), "takes offset up to 11"),
        (lambda: leading(skip_first=True)(linear(10), 10), "leaves one out, so sampling takes at most 9; got 10"),
        (lambda: linspace(last="first"), "last 'data' or 't_min'; got 'first'"),
        (lambda: leading(last="t_min")(linear(), 5), "at the schedule's t_min, 0.001"),
        (lambda: trailing(last="t_min")(linear(10), 10), "use fewer steps, an offset or skip_first=True"),
    ],
)
def test_errors_say_what_would_do(make, message):
    with pytest.raises(UserError, match=message):
        make()
