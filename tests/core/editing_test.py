"""Editing against Gaussian data, whose optimal denoiser, probability flow and conditionals are known."""

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
    def test_keeps_what_is_at_or_below_it(self):
        np.testing.assert_allclose(editing.from_strength(TIMES, 0.6), TIMES[40:])
        np.testing.assert_allclose(editing.from_strength(TIMES, 1.0), TIMES)

    def test_between_two_times_it_adds_the_more_noise(self):
        assert editing.from_strength(TIMES, 0.595)[0] == pytest.approx(0.6)

    def test_leaves_at_least_one_step(self):
        np.testing.assert_allclose(editing.from_strength(TIMES, 1e-9), TIMES[-2:])

    @pytest.mark.parametrize("strength", [0.0, -0.1, 1.1])
    def test_refuses_others(self, strength):
        with pytest.raises(UserError, match="strength is in"):
            editing.from_strength(TIMES, strength)


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


class TestRepaint:
    data = Rotated(parts=(Gaussian(mean=-0.2, std=0.9), Gaussian(mean=0.3, std=0.2)), angle=0.7)

    def paint(self, resample, name="ddpm", steps=50, n=4000, known=1.0, schedule=None):
        schedule = schedule or VP()
        sampler = editing.repaint(
            SAMPLERS[name](), jnp.array([known, 0.0]), jnp.array([False, True]), resample=resample
        )
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

    def test_turns_of_a_step_draw_noise_of_their_own(self):
        """With everything known but to a denoiser that says nothing, what is left of each turn is its noise."""
        a, b = (self.paint(n, steps=2, n=64)[:, 1] for n in (2, 3))
        assert np.abs(a - b).max() > 1e-2

    def test_refuses_samplers_that_remember_or_look_twice(self):
        for name in ("heun", "dpmpp_2m", "plms"):
            with pytest.raises(UserError, match="choose ddpm, ddim"):
                self.paint(1, name, n=2)

    def test_refuses_resample_below_one(self):
        with pytest.raises(UserError, match="resample is at least 1"):
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
