"""Figures of the theory, as PNG files: the KL divergence of two Gaussians, and sinusoidal embeddings of time."""

import math
from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from diffusion_jax.report.figures import encode, plain

_INK, _RED = "#1f3f66", "#c44e52"

Gaussian = tuple[float, float]
"""(mean, standard deviation)."""


def kl_png(
    first: Gaussian,
    second: Gaussian,
    values: tuple[float, float],
    closed_form: tuple[np.ndarray, Mapping[float, np.ndarray]],
    terms: Mapping[str, tuple[np.ndarray, np.ndarray]],
    error: float,
) -> bytes:
    """A PNG with three panels: two Gaussians p and q and what is integrated, the closed form, the terms of the bound.

    values are (KL(p || q), KL(q || p)) in nats; closed_form is (means [M], {standard deviation: KL to N(0, 1) [M]});
    terms are {schedule: (t [N], bits per dimension [N])} for that mean squared error of eps.
    """
    figure = Figure(figsize=(13, 4.2), dpi=100, layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    low = min(mean - 4 * std for mean, std in (first, second))
    high = max(mean + 4 * std for mean, std in (first, second))
    x = np.linspace(low, high, 601)
    p, q = (np.exp(-0.5 * ((x - m) / s) ** 2) / (s * math.sqrt(2 * math.pi)) for m, s in (first, second))
    integrand = p * _log_ratio(x, first, second)
    left.plot(x, p, color=_INK, lw=1.8, label=f"p = N({first[0]:g}, {first[1]:g}²)")
    left.plot(x, q, color=_RED, lw=1.8, label=f"q = N({second[0]:g}, {second[1]:g}²)")
    left.fill_between(x, integrand, color=_INK, alpha=0.25, lw=0, label="p log(p / q)")
    left.set(title=f"KL(p ‖ q) = {values[0]:.2f} nats, the shaded area;\nKL(q ‖ p) = {values[1]:.2f}", xlabel="x")
    left.set_xlim(low, high)
    left.legend(frameon=False, fontsize=9)

    means, curves = closed_form
    for i, (std, curve) in enumerate(curves.items()):
        middle.plot(means, curve, color=f"C{i}", lw=1.8, label=f"σ = {std:g}")  # noqa: RUF001
    middle.set(title="KL(N(μ, σ²) ‖ N(0, 1)) = ½ (σ² + μ² - 1 - log σ²)", xlabel="μ", ylabel="nats", ylim=(0, 6))
    middle.legend(frameon=False, fontsize=9)

    for i, (name, (t, bits)) in enumerate(terms.items()):
        shown = np.isfinite(bits) & (bits > 0)
        right.plot(t[shown], bits[shown], color=f"C{i % 10}", lw=3.0 - 1.6 * i / len(terms), label=name)
    right.set(title=f"Each term of the bound, where ε has the\nmean squared error {error:g} at every t", xlim=(0, 1))
    right.set(xlabel="time t  (0: data, 1: noise)", ylabel="bits per dimension", yscale="log")
    right.legend(frameon=False, fontsize=9)
    for axes in (left, middle, right):
        plain(axes)
    return encode(figure)


def _log_ratio(x: np.ndarray, first: Gaussian, second: Gaussian) -> np.ndarray:
    """log p(x) / q(x), also where both are 0 in floating point."""
    (m1, s1), (m2, s2) = first, second
    return 0.5 * ((x - m2) / s2) ** 2 - 0.5 * ((x - m1) / s1) ** 2 + math.log(s2 / s1)


def time_embedding_png(embedding: np.ndarray) -> bytes:
    """A PNG of the embeddings [T, F] of t = 0 .. T - 1, and of the cosine of the angle between those of two times."""
    count, features = embedding.shape
    figure = Figure(figsize=(11, 4), dpi=90, layout="constrained")
    left, right = figure.subplots(1, 2)
    shown = left.imshow(embedding.T, aspect="auto", cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
    left.set(title=f"{features} sines and cosines of the step", xlabel="step of the chain", ylabel="feature")
    figure.colorbar(shown, ax=left)
    unit = embedding / np.linalg.norm(embedding, axis=1, keepdims=True)
    for i, step in enumerate(np.linspace(0, count - 1, 4).astype(int)):
        right.plot(unit @ unit[step], color=f"C{i}", lw=1.4, label=f"step {step}")
    right.set(title="How much alike two steps are", xlabel="step of the chain", ylabel="cosine of the angle")
    right.set(xlim=(0, count - 1))
    right.set_ylim(-0.15, 1.02)
    right.legend(frameon=False, fontsize=9, loc="lower center", ncols=4, columnspacing=1.2)
    plain(right)
    return encode(figure)
