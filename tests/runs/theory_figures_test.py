"""The mathematics of the figures that need no trained model, and the sizes that a network is drawn with."""

import io
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from diffusion_jax.core.schedules import DiscreteVP
from diffusion_jax.nets.dit import DiT
from diffusion_jax.nets.layer_sizes import sizes
from diffusion_jax.nets.unet import UNet
from diffusion_jax.runs.sample import theory_figures


def test_kl_of_two_gaussians_is_the_integral():
    x = np.linspace(-30, 30, 200_001)
    for first, second in ((theory_figures.FIRST, theory_figures.SECOND), ((0.3, 2.0), (-1.0, 0.5))):
        log_p, log_q = (-0.5 * ((x - m) / s) ** 2 - math.log(s * math.sqrt(2 * math.pi)) for m, s in (first, second))
        integral = np.trapezoid(np.exp(log_p) * (log_p - log_q), x)
        assert theory_figures.kl(first, second) == pytest.approx(integral, rel=1e-4)
    assert theory_figures.kl((0.5, 2.0), (0.5, 2.0)) == pytest.approx(0, abs=1e-7)


def test_a_term_of_the_bound_is_ddpm_s_weight_times_the_error_of_eps():
    """Eq. 12 of DDPM with its small variance: beta^2 / (2 beta~ (1 - beta) (1 - alpha_bar)) |eps - eps'|^2."""
    steps = 50
    beta = np.linspace(1e-4, 0.02, steps) * 1000 / steps
    alpha_bar = np.cumprod(1 - beta)
    small = beta[1:] * (1 - alpha_bar[:-1]) / (1 - alpha_bar[1:])
    weight = beta[1:] ** 2 / (2 * small * (1 - beta[1:]) * (1 - alpha_bar[1:]))
    t, bits = theory_figures.bound_terms(DiscreteVP(beta))
    np.testing.assert_allclose(t[::-1], np.arange(2, steps + 1) / steps, rtol=1e-5)
    np.testing.assert_allclose(bits[::-1], weight * 0.01 / math.log(2), rtol=2e-3)


def test_layers_are_those_of_the_network():
    network = UNet(3, num_classes=5, channels=8, multipliers=(1, 2), blocks=2, attention=(2,), groups=4)
    entries = {"label": jnp.zeros(1, jnp.int32)}
    layers = sizes(network, (8, 8, 3), entries)
    arguments = (jax.random.key(0), jnp.zeros((1, 8, 8, 3)), jnp.zeros(1), entries)
    params = jax.eval_shape(network.init, *arguments)["params"]
    top = [layer for layer in layers if len(layer.path) == 1]
    assert sum(layer.parameters for layer in top) == sum(a.size for a in jax.tree.leaves(params))
    shapes = {layer.path: layer.shape for layer in layers}
    assert shapes["down_0", "block_1"] == (8, 8, 8)
    assert shapes["down_0", "downsample"] == (4, 4, 8)
    assert shapes["down_1", "attention_0"] == (4, 4, 16)
    assert shapes["up_1", "upsample"] == (8, 8, 16)
    assert shapes["conv_out",] == (8, 8, 3)
    picture = Image.open(io.BytesIO(theory_figures.draw_unet(network, (8, 8, 3), entries, "tiny")))
    assert min(picture.size) > 300


def test_another_family_is_not_drawn_as_a_u_net():
    assert theory_figures.draw_unet(DiT(3), (8, 8, 3), {}, "dit") is None


def test_ddpm_s_network_has_the_paper_s_parameters():
    network, shape = theory_figures.default_unet()
    layers = sizes(network, shape, {})
    assert sum(layer.parameters for layer in layers if len(layer.path) == 1) == 35_746_307
