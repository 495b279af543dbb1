"""The losses of generator and discriminator against closed forms and float64."""

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.core import adversarial
from diffusion_jax.core.adversarial import adaptive_weight


def normal(*shape, seed=0, scale=1.0):
    return np.asarray(scale * np.random.default_rng(seed).standard_normal(shape), np.float32)


REAL = np.array([[-200.0, -1.5], [0.25, 3.0]], np.float32)
FAKE = np.array([[200.0, 0.5], [-0.75, -4.0]], np.float32)


def test_gan_losses_are_their_formulas_in_float64():
    r, f = REAL.astype(np.float64), FAKE.astype(np.float64)
    hinge = (np.maximum(0, 1 - r) + np.maximum(0, 1 + f)) / 2
    np.testing.assert_allclose(adversarial.hinge_discriminator(REAL, FAKE), hinge.mean(axis=1), rtol=1e-6)
    np.testing.assert_allclose(adversarial.hinge_generator(FAKE), -f.mean(axis=1), rtol=1e-6)
    cross_entropy = (np.logaddexp(0, -r) + np.logaddexp(0, f)) / 2
    got = adversarial.non_saturating_discriminator(REAL, FAKE)
    np.testing.assert_allclose(got, cross_entropy.mean(axis=1), rtol=1e-6)
    np.testing.assert_allclose(adversarial.non_saturating_generator(FAKE), np.logaddexp(0, -f).mean(axis=1), rtol=1e-6)


def test_the_best_discriminator_of_known_densities_is_the_theorys():
    """At each x, with densities p and q: log(p / q) for the cross-entropy, sign(p - q) for the hinge."""
    p, q = np.array([0.7, 0.5, 0.1]), np.array([0.2, 0.4, 0.6])
    logits = jnp.linspace(-3, 3, 6001)[:, None]
    for loss, best in [
        (adversarial.non_saturating_discriminator, np.log(p / q)),
        (adversarial.hinge_discriminator, np.sign(p - q)),
    ]:
        # The loss is a sum of a term of real and a term of fake: p and q weight them.
        far = jnp.full_like(logits, 100.0)
        total = p * loss(logits, -far)[:, None] + q * loss(far, logits)[:, None]
        np.testing.assert_allclose(logits[np.argmin(total, axis=0), 0], best, atol=2e-3)


def test_the_generator_learns_from_a_sure_discriminator():
    for loss in (adversarial.hinge_generator, adversarial.non_saturating_generator):
        np.testing.assert_allclose(jax.grad(lambda f, loss=loss: loss(f).sum())(np.full((1, 1), -200.0)), -1.0)


class TestAdaptiveWeight:
    def test_it_makes_both_gradients_equally_long(self):
        reconstruction, gan = normal(3, 3, 4, 3, scale=7), normal(3, 3, 4, 3, seed=1, scale=0.5)
        weighted = adaptive_weight(reconstruction, gan) * np.linalg.norm(gan)
        np.testing.assert_allclose(weighted, np.linalg.norm(reconstruction), rtol=1e-4)

    def test_it_is_bounded_and_the_small_term_is_1e_4(self):
        one = jnp.ones((1, 1))
        np.testing.assert_allclose(adaptive_weight(0.5 * one, 0 * one), 5e3, rtol=1e-6)
        assert adaptive_weight(2 * one, 0 * one) == 1e4
        assert adaptive_weight(0 * one, one) == 0

    def test_it_is_a_constant_to_gradients(self):
        by_both = jax.grad(adaptive_weight, (0, 1))(normal(4), normal(4, seed=1))
        assert not np.any(by_both)
