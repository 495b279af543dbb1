"""Denoisers: what a sampler sees of a model. `from_network` makes one, and wrappers turn a denoiser into another.

Wrappers are applied in this order. First the condition is closed over, by `condition` or by guidance:
`classifier_free`, or `autoguidance` of a conditioned model. Both take an `interval` as their scale and a `std_rescale`.
Then comes `classifier_guidance`. A threshold is the last, so that the sampler sees a guided x0 within the data's range.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax import Array

from diffusion_jax.core.arguments import check_output
from diffusion_jax.core.predictions import Parameterization, Prediction, eps_from_x0
from diffusion_jax.core.schedules import Schedule
from diffusion_jax.errors import UserError

Denoiser = Callable[[Array, Array], Prediction]
"""(x [B, ...], t [B]) -> Prediction."""

Condition = Mapping[str, Array]
"""Named conditions, each with a leading axis B."""

ConditionalDenoiser = Callable[[Array, Array, Condition], Prediction]
"""(x [B, ...], t [B], condition) -> Prediction."""

Scale = float | Callable[[Array], Array]
"""A guidance scale: a number, or t [B] -> the scale of each example [B]."""

Rescale = Callable[[Prediction, Prediction, Array, Array], Prediction]
"""(guided prediction, conditional prediction, x, t) -> the rescaled prediction."""

_FLAT = 1e-6  # a standard deviation below this share of the largest value is rounding


def from_network(
    apply: Callable[[Array, Array, Condition], Array], schedule: Schedule, parameterization: Parameterization
) -> ConditionalDenoiser:
    """The denoiser of a network that was trained for this schedule and prediction.

    apply(network input [B, ...], conditioning [B], cond) is the network's output. The network of a chain was trained
    from t = 1 / T on. Below that time it is given 1 / T, while x keeps its level.
    """
    first = 0.0 if schedule.steps is None else 1 / schedule.steps

    def denoise(x: Array, t: Array, cond: Condition) -> Prediction:
        level = schedule.level(t)
        conditioning = schedule.conditioning(jnp.maximum(t, first))
        out = apply(parameterization.network_input(x, level), conditioning, cond)
        check_output(out, x, learned_variance=parameterization.learned_variance)
        return parameterization.to_prediction(out, x, level)

    return denoise


def condition(denoise: ConditionalDenoiser, cond: Condition) -> Denoiser:
    """The denoiser with its condition closed over."""
    return lambda x, t: denoise(x, t, cond)


def classifier_free(
    denoise: ConditionalDenoiser, cond: Condition, null: Condition, scale: Scale, rescale: Rescale | None = None
) -> Denoiser:
    """Classifier-free guidance: eps = eps(null) + scale (eps(cond) - eps(null)); arXiv:2207.12598.

    scale is the paper's 1 + w (eq. 6): 0 ignores the condition, 1 is the conditional model with one evaluation, and a
    larger scale sharpens. x0 is combined with the same weights, so that x = alpha x0 + sigma eps still holds; a learned
    variance is that of the conditional model. Both evaluations are one call on a batch of 2 B, in which the two of an
    example are neighbours, so that a sharded batch stays on its devices. Where scale is a function of t and 1 for the
    whole batch, only the conditional evaluation runs. rescale is applied last. Raises UserError where cond and null
    have other entries.
    """
    if set(cond) != set(null):
        raise UserError(
            f"classifier-free guidance needs a null condition for each of {sorted(cond)}; got one for {sorted(null)}"
        )

    def interleave(a: Array, b: Array) -> Array:
        return jnp.stack([a, b], axis=1).reshape(-1, *a.shape[1:])

    def pair(x: Array, t: Array) -> tuple[Prediction, Prediction]:
        both = denoise(interleave(x, x), interleave(t, t), jax.tree.map(interleave, dict(cond), dict(null)))
        return jax.tree.map(lambda a: a[0::2], both), jax.tree.map(lambda a: a[1::2], both)

    return _guided(condition(denoise, cond), pair, scale, rescale)


def autoguidance(denoise: Denoiser, weak: Denoiser, scale: Scale, rescale: Rescale | None = None) -> Denoiser:
    """Guidance away from a weaker model of the same condition: weak + scale (D - weak), eq. 3 of arXiv:2406.02507.

    It takes two evaluations, one of each denoiser; for a scale of 1 only that of denoise.
    """
    return _guided(denoise, lambda x, t: (denoise(x, t), weak(x, t)), scale, rescale)


def _guided(
    positive: Denoiser,
    pair: Callable[[Array, Array], tuple[Prediction, Prediction]],
    scale: Scale,
    rescale: Rescale | None,
) -> Denoiser:
    """negative + scale (positive - negative), then rescaled; pair(x, t) gives (positive, negative)."""

    def mixed(x: Array, t: Array, scale: Array | float) -> Prediction:
        strong, weak = pair(x, t)
        scale = jnp.reshape(scale, jnp.shape(scale) + (1,) * (x.ndim - jnp.ndim(scale)))
        mix = lambda a, b: jnp.where(scale == 1, a, b + scale * (a - b))  # noqa: E731
        guided = strong._replace(x0=mix(strong.x0, weak.x0), eps=mix(strong.eps, weak.eps))
        return guided if rescale is None else rescale(guided, strong, x, t)

    if callable(scale):
        function = scale

        def denoise(x: Array, t: Array) -> Prediction:
            scale = function(t)
            return jax.lax.cond(jnp.any(scale != 1), mixed, lambda x, t, _: positive(x, t), x, t, scale)

        return denoise
    number = scale
    return positive if number == 1 else lambda x, t: mixed(x, t, number)


def interval(scale: float, schedule: Schedule, low: float, high: float) -> Scale:
    """The scale where low < sigma / alpha <= high, and 1 elsewhere: eq. 5 of arXiv:2404.07724.

    Raises UserError unless 0 <= low < high.
    """
    if not 0 <= low < high:
        raise UserError(f"a guidance interval of noise levels sigma / alpha needs 0 <= low < high; got ({low}, {high}]")

    def at(t: Array) -> Array:
        noise = jnp.exp(-0.5 * schedule.logsnr(t))
        return jnp.where((low < noise) & (noise <= high), scale, 1.0)

    return at


def std_rescale(phi: float, schedule: Schedule, output: Parameterization) -> Rescale:
    """Guidance rescale: moves the deviation of the guided output towards that of the conditional output, by phi.

    out' = phi out std(cond) / std(out) + (1 - phi) out, with the standard deviations of each example and with out in
    the space of the network's prediction: eq. 15 and 16 of arXiv:2305.08891. A constant output stays as it is. Raises
    UserError unless phi is in [0, 1].
    """
    if not 0 <= phi <= 1:
        raise UserError(f"guidance rescale takes phi in [0, 1]; got {phi}")

    def rescale(guided: Prediction, unguided: Prediction, x: Array, t: Array) -> Prediction:
        level = schedule.level(t)
        out, reference = (output.target(p.x0, p.eps, level) for p in (guided, unguided))
        axes = tuple(range(1, x.ndim))
        std, wanted = (jnp.std(a, axis=axes, keepdims=True) for a in (out, reference))
        # The standard deviation of a constant is not 0 but rounding.
        flat = std <= _FLAT * jnp.max(jnp.abs(out), axis=axes, keepdims=True)
        ratio = jnp.where(flat, 1.0, wanted / jnp.where(flat, 1.0, std))
        out = out * (phi * ratio + 1 - phi)
        if output.learned_variance:  # the other half of the output, which x0 and eps do not depend on
            out = jnp.concatenate([out, jnp.zeros_like(out)], axis=-1)
        x0, eps, _ = output.to_prediction(out, x, level)
        return guided._replace(x0=x0, eps=eps)

    return rescale


def classifier_guidance(
    denoise: Denoiser, log_prob: Callable[[Array, Array], Array], schedule: Schedule, scale: float
) -> Denoiser:
    """Classifier guidance: eps - scale sigma grad log p(y | x_t), algorithm 2 of ADM (arXiv:2105.05233).

    log_prob(x, t) [B] is the classifier's log-probability of each example's y. It is differentiated here. x0 changes so
    that x = alpha x0 + sigma eps still holds. Where alpha = 0, x0 does not change.
    """

    def guided(x: Array, t: Array) -> Prediction:
        prediction = denoise(x, t)
        gradient = jax.grad(lambda x: jnp.sum(log_prob(x, t)))(x)
        alpha, sigma = schedule.level(t).like(x)
        shift = jnp.where(alpha > 0, sigma**2 / jnp.where(alpha > 0, alpha, 1.0), 0.0)
        return prediction._replace(
            x0=prediction.x0 + scale * shift * gradient, eps=prediction.eps - scale * sigma * gradient
        )

    return guided


def static_threshold(denoise: Denoiser, schedule: Schedule, low: float = -1.0, high: float = 1.0) -> Denoiser:
    """Clips x0 to the data's range [low, high] and changes eps accordingly, as DDPM's sampler does (arXiv:2006.11239).

    Raises UserError unless low < high.
    """
    if not low < high:
        raise UserError(f"a threshold needs low < high; got [{low}, {high}]")
    return _with_x0(denoise, schedule, lambda x0: jnp.clip(x0, low, high))


def dynamic_threshold(denoise: Denoiser, schedule: Schedule, percentile: float = 0.995) -> Denoiser:
    """Clips x0 to [-s, s], divides it by s, and changes eps accordingly: section 2.3 of Imagen (arXiv:2205.11487).

    s is that percentile of |x0| in each example, and at least 1, for data in [-1, 1]. percentile is a fraction in
    (0, 1]; another one raises UserError.
    """
    if not 0 < percentile <= 1:
        raise UserError(f"dynamic thresholding takes a percentile in (0, 1]; got {percentile}")

    def threshold(x0: Array) -> Array:
        s = jnp.quantile(jnp.abs(x0), percentile, axis=tuple(range(1, x0.ndim)), keepdims=True)
        s = jnp.maximum(s, 1.0)
        return jnp.clip(x0, -s, s) / s

    return _with_x0(denoise, schedule, threshold)


def _with_x0(denoise: Denoiser, schedule: Schedule, change: Callable[[Array], Array]) -> Denoiser:
    """The denoiser with x0 changed, and eps so that x = alpha x0 + sigma eps."""

    def changed(x: Array, t: Array) -> Prediction:
        prediction = denoise(x, t)
        x0 = change(prediction.x0)
        return prediction._replace(x0=x0, eps=eps_from_x0(x0, x, schedule.level(t)))

    return changed
