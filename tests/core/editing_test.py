"""Editing against Gaussian data, whose optimal denoiser, probability flow and conditionals are known."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from samplers_exact import VE, VP, Flow, Gaussian, Rotated, jit, keys

from diffusion_jax.core import editing
from diffusion_jax.core.predictions import Prediction
from diffusion_jax.core.samplers import SAMPLERS, integrate, sample
from diffusion_jax.core.schedules import SCHEDULES
from diffusion_jax.errors import UserError

TIMES = np.linspace(1.0, 0.0, 101)


class TestFromStrength:
    @pytest.mark.parametrize("strength", [0.6, 0.595, 0.001, 1e-9, 1.0])
    def test_starts_at_strength_and_goes_down_the_grid(self, strength):
        times = editing.from_strength(TIMES, strength)
        assert times[0] == strength
        np.testing.assert_array_equal(times[1:], [*TIMES[(strength - 1e-6 > TIMES) & (TIMES > 0)], 0.0])

    def test_a_grid_that_misses_the_noisy_end_is_led_there(self):
        np.testing.assert_allclose(editing.from_strength(TIMES[20:], 1.0), [1.0, *TIMES[20:]])
        np.testing.assert_allclose(editing.from_strength(TIMES[20:], 0.9), [0.9, *TIMES[20:]])

    def test_a_grid_that_ends_above_it_ends_at_the_data(self):
        np.testing.assert_array_equal(editing.from_strength(TIMES[:-1], 0.005), [0.005, 0.0])

    @pytest.mark.parametrize(("strength", "second"), [(0.6001 - 1e-6, 0.59), (0.6001 + 1e-6, 0.6)])
    def test_no_first_step_is_shorter_than_a_hundredth_of_the_grids(self, strength, second):
        assert editing.from_strength(TIMES, strength)[1] == pytest.approx(second)

    @pytest.mark.parametrize("strength", [0.0, -0.1, 1.1, float("nan")])
    def test_refuses_others(self, strength):
        with pytest.raises(UserError, match="strength is in"):
            editing.from_strength(TIMES, strength)


STRENGTHS = np.array([0.001, 0.01, 0.05, 0.1, 0.2, 0.3])
"""Below the last time of a grid of 3 steps."""


class TestStrength:
    """What an edit of an image far from Gaussian data becomes, by the exact denoiser."""

    data, image = Gaussian(), 2.0

    def edited(self, name, strengths, steps, seeds=16):
        """The edits [K, B] of one image by strengths [K] that leave equally many steps."""
        grid, schedule, sampler = np.linspace(1, 0, steps + 1), VP(), SAMPLERS[name]()
        times = np.stack([editing.from_strength(grid, s) for s in strengths]).astype(np.float32)
        x0 = jnp.full((seeds, 1), self.image)

        def one(times):
            denoise = self.data.denoiser(schedule)
            return editing.sample_from(denoise, sampler, schedule, times, jnp.arange(seeds), x0)[:, 0]

        return np.asarray(jit(jax.vmap(one))(jnp.asarray(times)))

    @pytest.mark.parametrize("name", sorted(set(SAMPLERS) - {"predictor_corrector", "ode"}))
    def test_one_step_from_strength_is_the_mean_of_what_was_diffused(self, name):
        """E[x_0 | x_t] at t = strength, so 0.001, 0.05 and 0.3 at 3 steps differ; every sampler's step to the data."""
        out = self.edited(name, STRENGTHS, steps=3)
        alpha, sigma = (np.asarray(a)[:, None] for a in VP().level(jnp.asarray(STRENGTHS)))
        shrink = alpha * self.data.std**2 / (alpha**2 * self.data.std**2 + sigma**2)
        x_t = alpha * self.image + sigma * np.asarray(integrate_nothing(jnp.arange(16), (1,)))[:, 0]
        np.testing.assert_allclose(out, self.data.mean + shrink * (x_t - alpha * self.data.mean), atol=2e-4)

    def test_an_adaptive_sampler_follows_the_flow_from_strength(self):
        out = self.edited("ode", [0.05, 0.2, 0.3], steps=3)
        for strength, edits in zip([0.05, 0.2, 0.3], out, strict=True):
            alpha, sigma = VP().level(jnp.float32(strength))
            x_t = alpha * self.image + sigma * integrate_nothing(jnp.arange(16), (1,))[:, 0]
            np.testing.assert_allclose(edits, self.data.flow(VP(), strength, 0.0, x_t), atol=2e-3)

    @pytest.mark.parametrize("name", ["ddim", "ddpm", "dpmpp_2m"])
    def test_more_strength_leads_the_mean_further_without_jumps(self, name):
        """At 3 steps, across the grid's times: from the image to the data, in steps as small as those of strength."""
        self.check_monotone(name, steps=3, count=10, rise=0.02)  # the deviation of a mean is 0.5 / sqrt(512) = 0.022

    @pytest.mark.slow
    @pytest.mark.parametrize("steps", [1, 2, 5, 10])
    @pytest.mark.parametrize("name", sorted(SAMPLERS))
    def test_every_sampler_at_any_number_of_steps(self, name, steps):
        if name != "predictor_corrector":  # whose correctors' step depends on the noise they draw
            # A multistep method gains an order with the step more that it takes above a time of the grid: a jump of its
            # error, at most 0.041 of the 1.7 from image to data.
            self.check_monotone(name, steps, count=6 if steps > 1 else 30, rise=0.05)

    def check_monotone(self, name, steps, count, rise):
        """Means over the same seeds, at `count` strengths between each two times of the grid."""
        parts = [(n + np.linspace(0.02, 0.98, count)) / steps for n in range(steps)]
        seeds = 512
        means = np.concatenate([self.edited(name, part, steps, seeds).mean(1) for part in parts])
        strengths = np.concatenate(parts)
        assert means[0] == pytest.approx(self.image, abs=0.2 / steps)
        falls = -np.diff(means)
        assert falls.min() > -rise
        assert means[0] - means[-1] > 1.0
        assert (falls / np.diff(strengths)).max() < 15


class TestInvert:
    def test_ddim_leads_back_to_the_image_to_first_order(self):
        """Half the step leaves half of the error, whatever the seeds."""
        data, schedule = Rotated(), VP()
        x0 = jnp.asarray(np.random.default_rng(0).normal(size=(4, 2)), jnp.float32)
        errors = []
        for steps in (40, 80, 160):
            times = jnp.linspace(0.8, 0.0, steps + 1)

            def there_and_back(x0, times=times):
                denoise = data.denoiser(schedule)
                x = editing.invert(denoise, schedule, times, x0)
                return integrate(denoise, SAMPLERS["ddim"](), schedule, times, x, editing.step_keys(jnp.arange(4)))

            errors.append(float(jnp.abs(jit(there_and_back)(x0) - x0).max()))
        assert errors[0] < 0.2
        assert 1.7 < errors[0] / errors[1] < 2.4
        assert 1.7 < errors[1] / errors[2] < 2.4


class TestSampleFrom:
    def test_is_the_exact_flow_of_the_diffused_image(self):
        """Along the flow a Gaussian's deviations from its mean scale by its marginal's std."""
        data, schedule, times = Gaussian(), VP(), np.linspace(0.5, 0.0, 401)
        x0 = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)), jnp.float32)
        seeds = jnp.arange(4)
        heun = SAMPLERS["heun"]()
        out = jit(lambda x0: editing.sample_from(data.denoiser(schedule), heun, schedule, times, seeds, x0))(x0)
        # The start is x0 diffused with the seeds' own noise, which is that of a sample from nothing.
        prior = integrate_nothing(seeds, (3,))
        alpha, sigma = schedule.level(jnp.float32(0.5))
        np.testing.assert_allclose(out, data.flow(schedule, 0.5, 0.0, alpha * x0 + sigma * prior), atol=1e-3)

    def test_of_the_whole_grid_forgets_the_image_where_the_schedule_ends_without_signal(self):
        data, schedule, ddpm = Gaussian(), Flow(), SAMPLERS["ddpm"]()
        denoise, seeds = data.denoiser(schedule), jnp.arange(5)
        edited = jit(lambda x0: editing.sample_from(denoise, ddpm, schedule, TIMES, seeds, x0))(jnp.ones((5, 2)))
        drawn = jit(lambda: sample(denoise, ddpm, schedule, jnp.asarray(TIMES), seeds, (2,)))()
        np.testing.assert_allclose(edited, drawn, atol=1e-5)

    def test_little_strength_changes_little(self):
        schedule, x0 = VP(), jnp.full((8, 2), 0.7)
        times = editing.from_strength(np.linspace(1, 0, 1001), 0.01)
        denoise = Gaussian().denoiser(schedule)
        out = editing.sample_from(denoise, SAMPLERS["ddim"](), schedule, times, jnp.arange(8), x0)
        sigma = float(schedule.sigma(jnp.float32(0.01)))
        assert 0 < np.abs(out - x0).max() < 5 * sigma


def integrate_nothing(seeds, shape):
    """The noise that `sample` starts from."""
    standing = SAMPLERS["euler"]()._replace(update=lambda denoise, x, t, coefficients, noise: x)
    return sample(None, standing, VP(), jnp.asarray([1.0, 0.0]), seeds, shape)


def walk_of_figure_3(steps, resample, jump):
    """The indices of a chain that RePaint visits, from noise at steps - 1 to the data at -1; appendix B."""
    climbs = {index: resample - 1 for index in range(0, steps - jump, jump)}
    walk = [steps - 1]
    while walk[-1] >= 0:
        walk.append(walk[-1] - 1)
        if climbs.get(walk[-1]):
            climbs[walk[-1]] -= 1
            walk += [walk[-1] + k for k in range(1, jump + 1)]
    return walk


class TestRepaint:
    data = Rotated(parts=(Gaussian(mean=-0.2, std=0.9), Gaussian(mean=0.3, std=0.2)), angle=0.7)

    def paint(self, resample, name="ddpm", steps=50, n=4000, known=1.0, schedule=None, jump=1):
        schedule = schedule or VP()
        sampler = editing.repaint(SAMPLERS[name](), jnp.array([known, 0.0]), jnp.array([False, True]), resample, jump)
        x = schedule.prior_std * jax.random.normal(jax.random.key(9), (n, 2))
        times = np.linspace(1, 0, steps + 1)
        return np.asarray(
            jit(lambda x, k: integrate(self.data.denoiser(schedule), sampler, schedule, times, x, k))(x, keys(n))
        )

    def conditional(self, known=1.0):
        mean, cov = self.data.mean, self.data.covariance
        return mean[1] + cov[0, 1] / cov[0, 0] * (known - mean[0]), cov[1, 1] - cov[0, 1] ** 2 / cov[0, 0]

    @pytest.mark.parametrize("name", ["ddpm", "ddim", "euler", "euler_ancestral"])
    @pytest.mark.parametrize("resample", [1, 3])
    def test_the_known_part_comes_back_exactly(self, name, resample):
        assert (self.paint(resample, name, steps=5, n=16, known=0.25)[:, 0] == np.float32(0.25)).all()

    @pytest.mark.parametrize("schedule", [VP(), VE()], ids=["vp", "ve"])
    def test_resampling_makes_the_unknown_part_fit_the_known(self, schedule):
        """It tends to the conditional of the data; without resampling the known part is hardly heeded."""
        mean, variance = self.conditional()
        alone, once, often = self.data.mean[1], *(self.paint(n, schedule=schedule)[:, 1] for n in (1, 12))
        assert abs(mean - alone) > 0.5  # there is something to heed
        assert abs(often.mean() - mean) < 0.12 * abs(mean - alone)
        assert abs(often.mean() - mean) < 0.5 * abs(once.mean() - mean)
        assert often.var() < 2.0 * variance + 0.05

    def test_a_jump_goes_forward_and_back_as_in_the_papers_figure(self):
        """Figure 3 of arXiv:2201.09865 by hand: six steps, jumps of 2, each taken twice."""
        taken, again = editing.resampled_steps(6, resample=2, jump=2)
        # From index 5 (noise) to 0 and the data, -1; up from 2 to 4 and from 0 to 2, once each.
        down = [(5, 4), (4, 3), (3, 2), "up", (4, 3), (3, 2), (2, 1), (1, 0), "up", (2, 1), (1, 0), (0, -1)]
        assert [5 - step for step in taken] == [pair[0] for pair in down if pair != "up"]
        np.testing.assert_array_equal(np.flatnonzero(again), [2, 6])

    @pytest.mark.parametrize(
        ("steps", "resample", "jump"), [(250, 10, 10), (50, 4, 1), (9, 3, 4), (7, 2, 6), (1, 5, 1)]
    )
    def test_the_sequence_of_jumps_is_the_papers(self, steps, resample, jump):
        taken, again = editing.resampled_steps(steps, resample, jump)
        walk = walk_of_figure_3(steps, resample, jump)
        down = [(a, b) for a, b in itertools.pairwise(walk) if b < a]
        np.testing.assert_array_equal(steps - 1 - taken, [a for a, _ in down])
        assert again.sum() * jump == sum(b > a for a, b in itertools.pairwise(walk))

    def test_the_network_is_told_the_times_of_that_sequence(self):
        times, sampler = np.linspace(1, 0, 10), SAMPLERS["ddim"]()
        plan = editing.repaint(sampler, jnp.zeros(1), jnp.ones(1, bool), 3, 4).plan(VP(), times)
        walk = walk_of_figure_3(9, 3, 4)
        told = [(a + 1) / 9 for a, b in itertools.pairwise(walk) if b < a]
        np.testing.assert_allclose(plan.t, told, atol=1e-6)
        assert (np.diff(plan.step) >= 0).all()  # which a trajectory counts on

    @pytest.mark.parametrize(("resample", "jump"), [(3, 1), (3, 3), (2, 7)])
    def test_jumps_have_the_moments_of_algorithm_1(self, resample, jump):
        """All of it is affine in Gaussians: mean and covariance follow the walk in closed form."""
        steps, n, known = 8, 20000, 1.0
        out = self.paint(resample, steps=steps, n=n, known=known, jump=jump)
        walk = walk_of_figure_3(steps, resample, jump)
        level = lambda i: [float(a) for a in VP().level(jnp.float32((i + 1) / steps))]  # noqa: E731
        mean, cov = np.zeros(2), np.eye(2)
        for i, k in itertools.pairwise(walk):
            (alpha_t, sigma_t), (alpha_s, sigma_s) = level(i), level(k)
            if k > i:  # q(x_k | x_i), k = i + 1
                ratio = alpha_s / alpha_t
                mean, cov = ratio * mean, ratio**2 * cov + (sigma_s**2 - ratio**2 * sigma_t**2) * np.eye(2)
                continue
            total = alpha_t**2 * self.data.covariance + sigma_t**2 * np.eye(2)
            gain = alpha_t * self.data.covariance @ np.linalg.inv(total)  # x0 = m + gain (x - alpha m)
            ratio = alpha_t / alpha_s
            beta = sigma_t**2 - ratio**2 * sigma_s**2
            a, b = ratio * sigma_s**2 / sigma_t**2, alpha_s * beta / sigma_t**2
            matrix = a * np.eye(2) + b * gain
            mean = matrix @ mean + b * (self.data.mean - alpha_t * gain @ self.data.mean)
            cov = matrix @ cov @ matrix.T + beta * sigma_s**2 / sigma_t**2 * np.eye(2)
            mean[0] = alpha_s * known
            cov[0, :], cov[:, 0] = 0.0, 0.0
            cov[0, 0] = sigma_s**2
        np.testing.assert_array_equal(out[:, 0], known)
        assert out[:, 1].mean() == pytest.approx(mean[1], abs=5 * np.sqrt(cov[1, 1] / n))
        assert out[:, 1].var() == pytest.approx(cov[1, 1], rel=5 * np.sqrt(2 / n))

    def test_refuses_jumps_longer_than_the_edit(self):
        with pytest.raises(UserError, match="a jump of 5 steps needs more than 5 of them; this edit takes 5"):
            self.paint(2, steps=5, n=2, jump=5)
        with pytest.raises(UserError, match="resample and jump are at least 1; got 2 and 0"):
            self.paint(2, steps=5, n=2, jump=0)

    def test_turns_of_a_step_draw_noise_of_their_own(self):
        """With everything known but to a denoiser that says nothing, what is left of each turn is its noise."""
        a, b = (self.paint(n, steps=2, n=64)[:, 1] for n in (2, 3))
        assert np.abs(a - b).max() > 1e-2

    def test_refuses_samplers_that_remember_or_look_twice(self):
        for name in ("heun", "dpmpp_2m", "plms", "ode"):
            with pytest.raises(UserError, match="choose ddpm, ddim"):
                self.paint(1, name, n=2)

    def test_refuses_resample_below_one(self):
        with pytest.raises(UserError, match="resample and jump are at least 1"):
            self.paint(0, n=2)


class TestWindows:
    @pytest.mark.parametrize(("length", "size", "stride"), [(8, 8, 4), (9, 8, 4), (20, 8, 4), (21, 8, 8), (16, 8, 3)])
    def test_cover_everything_and_stay_inside(self, length, size, stride):
        starts = editing.windows(length, size, stride)
        covered = np.zeros(length, bool)
        for start in starts:
            covered[start : start + size] = True
        assert covered.all()
        assert starts[-1] + size == length
        assert (np.diff(starts) > 0).all()

    def test_refuses_gaps_and_canvases_smaller_than_a_window(self):
        with pytest.raises(UserError, match="leave gaps"):
            editing.windows(20, 8, 9)
        with pytest.raises(UserError, match="do not fit"):
            editing.windows(7, 8, 4)

    def test_a_denoiser_that_sees_one_pixel_is_unchanged(self):
        schedule = SCHEDULES["cosine"]()
        denoise = Gaussian().denoiser(schedule)
        x = jax.random.normal(jax.random.key(0), (3, 8, 13, 2))
        t = jnp.array([0.2, 0.5, 0.9])
        merged = editing.in_windows(denoise, (4, 6), (2, 3))(x, t)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), merged[:2], denoise(x, t)[:2])

    def test_predictions_are_averaged_by_weights_that_fall_to_the_edges(self):
        """Windows that predict their own number: in the overlap the mean moves from one to the other."""
        numbers = jnp.array([1.0, 3.0])  # windows [0, 4) and [2, 6) of a line of 6

        def denoise(x, t):
            value = jnp.broadcast_to(numbers[:, None, None], x.shape)
            return Prediction(value, -value)

        merged = editing.in_windows(denoise, (4,), (2,))(jnp.zeros((1, 6, 1)), jnp.zeros(1))
        np.testing.assert_allclose(
            merged.x0[0, :, 0], [1, 1, (2 * 1 + 1 * 3) / 3, (1 * 1 + 2 * 3) / 3, 3, 3], rtol=1e-6
        )
        np.testing.assert_allclose(merged.eps, -merged.x0)
