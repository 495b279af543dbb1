"""Losses, metrics and tiling of an autoencoder against quadrature, closed forms and float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.signal import convolve2d

from diffusion_jax.core import autoencoding
from diffusion_jax.core.autoencoding import adaptive_weight, decode_tiled, psnr, ssim
from diffusion_jax.errors import UserError


def normal(*shape, seed=0, scale=1.0):
    return np.asarray(scale * np.random.default_rng(seed).standard_normal(shape), np.float32)


# ---- the posterior


def test_kl_is_its_integral_and_sums_over_an_example():
    mean, logvar = np.array([[0.0, 1.5], [-2.0, 0.3]]), np.array([[0.0, -2.0], [0.7, 1.2]])
    z = np.linspace(-30, 30, 600_001)[:, None, None]
    log_q = -0.5 * ((z - mean) ** 2 / np.exp(logvar) + logvar)
    density = np.exp(log_q) / np.sqrt(2 * np.pi)
    exact = (density * (log_q + 0.5 * z**2)).sum(axis=0) * (z[1] - z[0]).item()
    got = autoencoding.kl_to_standard_normal(jnp.asarray(mean), jnp.asarray(logvar))
    np.testing.assert_allclose(got, exact.sum(axis=1), rtol=1e-5)


def test_a_sample_has_the_posteriors_mean_and_variance():
    mean, logvar = normal(3, 4), normal(3, 4, seed=1)
    # Two points of weight 1/2 at +-1 have the moments of N(0, 1) up to the third.
    low, high = (np.asarray(autoencoding.sample_posterior(mean, logvar, s * np.ones_like(mean))) for s in (-1, 1))
    np.testing.assert_allclose((low + high) / 2, mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose((high - low) ** 2 / 4, np.exp(logvar), rtol=1e-5)


# ---- GAN losses

REAL = np.array([[-200.0, -1.5], [0.25, 3.0]], np.float32)
FAKE = np.array([[200.0, 0.5], [-0.75, -4.0]], np.float32)


def test_gan_losses_are_their_formulas_in_float64():
    r, f = REAL.astype(np.float64), FAKE.astype(np.float64)
    hinge = (np.maximum(0, 1 - r) + np.maximum(0, 1 + f)) / 2
    np.testing.assert_allclose(autoencoding.hinge_discriminator(REAL, FAKE), hinge.mean(axis=1), rtol=1e-6)
    np.testing.assert_allclose(autoencoding.hinge_generator(FAKE), -f.mean(axis=1), rtol=1e-6)
    cross_entropy = (np.logaddexp(0, -r) + np.logaddexp(0, f)) / 2
    got = autoencoding.non_saturating_discriminator(REAL, FAKE)
    np.testing.assert_allclose(got, cross_entropy.mean(axis=1), rtol=1e-6)
    np.testing.assert_allclose(autoencoding.non_saturating_generator(FAKE), np.logaddexp(0, -f).mean(axis=1), rtol=1e-6)


def test_the_best_discriminator_of_known_densities_is_the_theorys():
    """At each x, with densities p and q: log(p / q) for the cross-entropy, sign(p - q) for the hinge."""
    p, q = np.array([0.7, 0.5, 0.1]), np.array([0.2, 0.4, 0.6])
    logits = jnp.linspace(-3, 3, 6001)[:, None]
    for loss, best in [
        (autoencoding.non_saturating_discriminator, np.log(p / q)),
        (autoencoding.hinge_discriminator, np.sign(p - q)),
    ]:
        # The loss is a sum of a term of real and a term of fake: p and q weight them.
        far = jnp.full_like(logits, 100.0)
        total = p * loss(logits, -far)[:, None] + q * loss(far, logits)[:, None]
        np.testing.assert_allclose(logits[np.argmin(total, axis=0), 0], best, atol=2e-3)


def test_the_generator_learns_from_a_sure_discriminator():
    for loss in (autoencoding.hinge_generator, autoencoding.non_saturating_generator):
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


# ---- metrics


def ssim_float64(x, y):
    """Wang et al. 2004 read afresh: a dense window in two dimensions, moments about the window's own mean."""
    y_axis, x_axis = np.mgrid[-5:6, -5:6]
    window = np.exp(-(x_axis**2 + y_axis**2) / (2 * 1.5**2))
    window /= window.sum()

    def blur(v):
        return convolve2d(v, window, mode="valid")

    values = []
    for c in range(x.shape[-1]):
        a, b = x[..., c].astype(np.float64), y[..., c].astype(np.float64)
        mean_a, mean_b = blur(a), blur(b)
        var_a, var_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
        covariance = blur(a * b) - mean_a * mean_b
        c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
        top = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
        values.append(top / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)))
    return np.mean(values)


def pictures():
    """[3, 17, 14, 3]: noise, a smooth picture with noise, a bright flat one, where E[x^2] - E[x]^2 cancels."""
    ramp = np.broadcast_to(np.linspace(-1, 1, 14)[:, None], (17, 14, 3))
    x = np.stack([normal(17, 14, 3).clip(-1, 1), ramp, np.full((17, 14, 3), 0.97)]).astype(np.float32)
    noise = normal(3, 17, 14, 3, seed=1) * np.array([0.5, 0.1, 0.01], np.float32)[:, None, None, None]
    return x, (x + noise).clip(-1, 1)


def test_ssim_is_the_papers_in_float64_for_each_image():
    x, y = pictures()
    expected = [ssim_float64(a, b) for a, b in zip(x, y, strict=True)]
    assert max(expected) - min(expected) > 0.1
    np.testing.assert_allclose(jax.jit(ssim)(x, y), expected, atol=2e-6)
    np.testing.assert_allclose(ssim(x, x), 1.0, atol=1e-6)


def test_ssim_of_images_smaller_than_its_window_is_refused():
    with pytest.raises(UserError, match="11 x 11 pixels; got images of 10 x 20"):
        ssim(jnp.zeros((1, 10, 20, 3)), jnp.zeros((1, 10, 20, 3)))


def test_psnr_is_that_of_eight_bit_images():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (2, 4, 5, 6, 3)).astype(np.float64)
    expected = 10 * np.log10(255**2 / ((x - y) ** 2).mean(axis=(1, 2, 3)))
    scaled = [(v / 127.5 - 1).astype(np.float32) for v in (x, y)]
    np.testing.assert_allclose(psnr(*scaled), expected, rtol=1e-5)
    assert np.isposinf(psnr(scaled[0], scaled[0])).all()


# ---- tiles


def local(z):
    """Every latent becomes 2 x 3 pixels of its own."""
    pixels = jnp.repeat(jnp.repeat(z, 2, axis=1), 3, axis=2)
    inside = jnp.arange(pixels.shape[1])[:, None] % 2 + 2.0 * (jnp.arange(pixels.shape[2]) % 3)
    return pixels[..., :2] ** 2 + pixels[..., 1:] * inside[..., None]


@pytest.mark.parametrize(
    ("side", "tile", "overlap"),
    [((8, 8), 5, 2), ((7, 13), 4, 1), ((4, 11), 5, 4), ((9, 6), 3, 0), ((12, 7), 7, 3)],
    ids=["square", "uneven", "short_side_and_triple_cover", "no_overlap", "one_column"],
)
def test_tiles_of_a_local_decoder_are_the_plain_decode_to_the_last_bit(side, tile, overlap):
    z = normal(2, *side, 3)
    seen = []

    def decode(z):
        seen.append(z.shape)
        return local(z)

    got = jax.jit(lambda z: decode_tiled(decode, z, tile, overlap))(z)
    np.testing.assert_array_equal(got, jax.jit(local)(z))
    # Compiled once, for a tile.
    assert set(seen) == {(2, min(tile, side[0]), min(tile, side[1]), 3)}


def test_one_tile_that_covers_everything_is_the_plain_decode():
    z = normal(2, 6, 8, 3)
    np.testing.assert_array_equal(decode_tiled(lambda z: z - z.mean(), z, 8, 2), z - z.mean())


def test_tiles_fade_linearly_into_each_other():
    """A decoder that paints a tile with its first latent: the seam is a straight line between the two."""

    def decode(z):
        return jnp.broadcast_to(z[:, :1, :1], (len(z), 2 * z.shape[1], 2 * z.shape[2], z.shape[-1]))

    z = np.arange(8, dtype=np.float32).reshape(1, 1, 8, 1)  # tiles [0, 5) and [3, 8): values 0 and 3
    got = np.asarray(decode_tiled(decode, z, 5, 2))
    row = np.interp(np.arange(16) + 0.5, [6, 10], [0, 3])
    np.testing.assert_allclose(got[0, :, :, 0], np.stack([row, row]), rtol=1e-6)
    np.testing.assert_array_equal(decode_tiled(decode, z.swapaxes(1, 2), 5, 2), got.swapaxes(1, 2))


@pytest.mark.parametrize("overlap", [4, -1])
def test_an_overlap_of_a_whole_tile_is_refused(overlap):
    with pytest.raises(UserError, match=f"overlap by 0 to 3; got {overlap}"):
        decode_tiled(local, jnp.zeros((1, 8, 8, 3)), 4, overlap)


def test_a_decoder_of_no_whole_factor_is_refused():
    with pytest.raises(UserError, match="made 3 x 3 of 4 x 4"):
        decode_tiled(lambda z: z[:, 1:, 1:], jnp.zeros((1, 8, 8, 3)), 4, 1)
