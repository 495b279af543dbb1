"""Figures that need no trained model: the KL divergence of two Gaussians, time embeddings, a network with its sizes."""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffusion_jax.core import bound, process
from diffusion_jax.core.schedules import Schedule
from diffusion_jax.nets.layer_sizes import sizes
from diffusion_jax.nets.layers import time_embedding
from diffusion_jax.nets.network import Network
from diffusion_jax.nets.unet import UNet
from diffusion_jax.report import network_figure, theory_figures
from diffusion_jax.report.network_figure import Layer

FIRST, SECOND = (0.0, 1.0), (1.5, 0.6)
"""(mean, standard deviation) of the two Gaussians whose divergence is drawn."""

_ERROR = 0.01  # mean squared error of eps, in the terms of the bound
_STEPS = 1000  # of a continuous schedule, and of the times that are embedded
_FEATURES = 64


def draw_kl(schedules: Mapping[str, Schedule]) -> bytes:
    """A PNG of the divergence of `FIRST` and `SECOND`, of its closed form, and of the terms of the bound by time."""
    terms = {name: bound_terms(schedule) for name, schedule in schedules.items()}
    means = np.linspace(-3, 3, 121)
    curves = {std: kl((means, std), (0.0, 1.0)) for std in (0.5, 1.0, 2.0)}
    values = (float(kl(FIRST, SECOND)), float(kl(SECOND, FIRST)))
    return theory_figures.kl_png(FIRST, SECOND, values, (means, curves), terms, _ERROR)


def kl(first: tuple[np.ndarray | float, float], second: tuple[float, float]) -> np.ndarray:
    """KL(N(mean1, std1^2) || N(mean2, std2^2)) in nats, by `core.bound.normal_kl`."""
    (mean1, std1), (mean2, std2) = first, second
    found = bound.normal_kl(jnp.asarray(mean1), jnp.float32(2 * math.log(std1)), mean2, 2 * math.log(std2))
    return np.asarray(found)


def bound_terms(schedule: Schedule) -> tuple[np.ndarray, np.ndarray]:
    """(t, term) [N] each: KL(q(x_s | x_t, x_0) || p(x_s | x_t)) in bits per dimension, the last step left out.

    p has the posterior's variance, and its mean is off by what an error of eps of mean square `_ERROR` makes of it.
    """
    times = np.linspace(1, 0, (schedule.steps or _STEPS) + 1, dtype=np.float32)
    levels = schedule.level(jnp.asarray(times))
    t, s = (jax.tree.map(lambda a, part=part: a[part], levels) for part in (slice(None, -2), slice(1, -1)))
    _, of_x0, variance = process.posterior(s, t)
    # An error e of eps is one of sigma / alpha e of x0; gap is that of the means.
    gap = of_x0 * t.sigma / t.alpha * math.sqrt(_ERROR)
    nats = bound.normal_kl(jnp.zeros_like(gap), jnp.log(variance), gap, jnp.log(variance))
    return times[:-2], np.asarray(nats) / math.log(2)


def draw_time_embedding() -> bytes:
    """A PNG of the sinusoids of t = 0 .. 999, and of how much alike those of two times are."""
    t = np.arange(_STEPS)
    return theory_figures.time_embedding_png(np.asarray(time_embedding(jnp.asarray(t), _FEATURES)))


def draw_unet(network: Network, x_shape: tuple[int, ...], entries: Mapping[str, Array], title: str) -> bytes | None:
    """A PNG of a U-Net with its sizes; None where the network is of another family."""
    if not isinstance(network, UNet):
        return None
    layers = [Layer(each.path, each.kind, each.shape, each.parameters) for each in sizes(network, x_shape, entries)]
    return network_figure.unet_png(layers, title)


def default_unet() -> tuple[UNet, tuple[int, ...]]:
    """(DDPM's CIFAR-10 network, the shape of its images)."""
    return UNet(3), (32, 32, 3)
