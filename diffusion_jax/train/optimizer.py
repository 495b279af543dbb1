"""Optimizers and learning rates; all of it optax."""

from collections.abc import Callable

import optax

from diffusion_jax.errors import UserError

DECAYS: dict[str, Callable[[float, int], optax.Schedule]] = {
    "constant": lambda rate, steps: optax.constant_schedule(rate),
    "cosine": lambda rate, steps: optax.cosine_decay_schedule(rate, max(steps, 1)),
}

OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "adam": lambda weight_decay, **kwargs: optax.adam(**kwargs),
    "adamw": lambda weight_decay, **kwargs: optax.adamw(weight_decay=weight_decay, **kwargs),
}


def learning_rate(peak: float, *, warmup: int, decay: str, steps: int) -> optax.Schedule:
    """Rises linearly to peak over warmup steps (step n has peak (n + 1) / warmup), then decays until `steps`."""
    if decay not in DECAYS:
        raise UserError(f"unknown optimizer.decay {decay!r}; choose from {', '.join(DECAYS)}")
    after = DECAYS[decay](peak, steps - warmup)
    if not warmup:
        return after
    return optax.join_schedules([optax.linear_schedule(peak / warmup, peak, max(warmup - 1, 1)), after], [warmup])


def optimizer(
    name: str, rate: optax.Schedule, *, b1: float, b2: float, eps: float, weight_decay: float, clip: float
) -> optax.GradientTransformation:
    """Clips the gradient's global norm at `clip` (0: not at all), then Adam or AdamW."""
    if name not in OPTIMIZERS:
        raise UserError(f"unknown optimizer.name {name!r}; choose from {', '.join(OPTIMIZERS)}")
    if weight_decay and name == "adam":
        raise UserError("optimizer.weight_decay needs optimizer.name='adamw'; adam has none")
    update = OPTIMIZERS[name](learning_rate=rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay)
    return optax.chain(optax.clip_by_global_norm(clip), update) if clip else update
