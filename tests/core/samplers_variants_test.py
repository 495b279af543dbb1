"""Samplers and denoisers as users call them: inside `jax.jit` and outside it, with times and scales that change."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized
from samplers_exact import keys
from samplers_program import PROBLEMS

from diffusion_jax.core import SAMPLERS, classifier_free, integrate
from diffusion_jax.core.grids import trailing
from diffusion_jax.core.schedules import cosine

SCHEDULE = cosine(20)
TIMES = trailing()(SCHEDULE, 4)
SEEDED = keys(8)
X = jax.random.normal(jax.random.key(3), (8, 6, 1))


def denoise(x, t):
    return PROBLEMS["mixture"].denoise(x, SCHEDULE.level(t))


class EverySamplerTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.parameters(*sorted(set(SAMPLERS) - {"ode"}))
    def test_known_and_traced_times_give_the_same_samples(self, name):
        """A sampler plans from times that it knows where they are numpy's, and from traced ones otherwise."""
        sampler = SAMPLERS[name]()
        known = self.variant(lambda x, keys: integrate(denoise, sampler, SCHEDULE, TIMES, x, keys))(X, SEEDED)
        traced = self.variant(lambda x, keys, times: integrate(denoise, sampler, SCHEDULE, times, x, keys))
        chex.assert_trees_all_close(known, traced(X, SEEDED, jnp.asarray(TIMES)), atol=1e-4)
        chex.assert_tree_all_finite(known)
        assert np.std(known) > 0.5


class GuidanceTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_a_scale_that_changes_with_time_is_the_number_that_it_is_there(self):
        cond, null = {"label": jnp.arange(8.0)}, {"label": jnp.zeros(8)}

        def conditional(x, t, cond):
            prediction = denoise(x, t)
            return prediction._replace(x0=prediction.x0 + cond["label"][:, None, None])

        t = np.linspace(0.1, 0.8, 8).astype(np.float32)
        changing = self.variant(lambda x: classifier_free(conditional, cond, null, lambda t: 1 + t)(x, t).x0)(X)
        for i in (0, 7):
            fixed = self.variant(lambda x, i=i: classifier_free(conditional, cond, null, 1 + float(t[i]))(x, t).x0)(X)
            np.testing.assert_allclose(changing[i], fixed[i], rtol=1e-5, atol=1e-5)


class OneCompilationTest(chex.TestCase):
    def test_other_noise_other_times_and_other_keys_are_the_same_program(self):
        chex.clear_trace_counter()
        sampler = SAMPLERS["dpmpp_2m"]()
        program = jax.jit(
            chex.assert_max_traces(lambda x, keys, times: integrate(denoise, sampler, SCHEDULE, times, x, keys), n=1)
        )
        first = program(X, SEEDED, jnp.asarray(TIMES))
        assert np.abs(program(2 * X, keys(8), jnp.asarray(TIMES) * 0.9) - first).max() > 0
