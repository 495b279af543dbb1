"""Optimizers and learning rates; all of it optax."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import optax
from optax import contrib

from diffusion_jax.errors import UserError

DECAYS: dict[str, Callable[[float, int], optax.Schedule]] = {
    "constant": lambda rate, steps: optax.constant_schedule(rate),
    "cosine": lambda rate, steps: optax.cosine_decay_schedule(rate, max(steps, 1)),
}


def muon(outer: Sequence[str] = (), stacked: Sequence[str] = (), **options: Any) -> optax.GradientTransformation:
    """Muon (arXiv:2502.16982): the momentum of each inner matrix made orthogonal, at the RMS of Adam's steps, 0.2 rate.

    A convolution's kernel [*K, C, D] is a matrix of K C rows. All other parameters, and those of first and last layers,
    which have one of `outer` in their paths, are NAdam's with b1, b2 and eps at the same rate. Parameters with one of
    `stacked` in their paths are [layers, ...]: each layer's is a matrix, or a vector, of its own.
    """
    b1, b2 = options.pop("b1"), options.pop("b2")
    matrices = partial(_matrices, outer, stacked)
    return contrib.muon(adam_b1=b1, adam_b2=b2, muon_weight_dimension_numbers=matrices, consistent_rms=0.2, **options)


def _matrices(outer: Sequence[str], stacked: Sequence[str], params: Any) -> Any:
    """How each parameter is a matrix to Muon; None for one that is NAdam's."""

    def dimensions(path: tuple[Any, ...], p: Any) -> contrib.MuonDimensionNumbers | None:
        name = jax.tree_util.keystr(path)
        first = int(any(part in name for part in stacked))  # axes left out are a batch to Muon
        if p.ndim - first < 2 or any(part in name for part in outer):
            return None
        return contrib.MuonDimensionNumbers(tuple(range(first, p.ndim - 1)), (p.ndim - 1,))

    return jax.tree_util.tree_map_with_path(dimensions, params)


OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "adam": lambda outer, stacked, weight_decay, **kwargs: optax.adam(**kwargs),  # Adam; takes no weight_decay
    # Adam with weight_decay apart from the gradient
    "adamw": lambda outer, stacked, weight_decay, **kwargs: optax.adamw(weight_decay=weight_decay, **kwargs),
    "muon": muon,
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
    name: str,
    rate: optax.Schedule,
    *,
    b1: float,
    b2: float,
    eps: float,
    weight_decay: float,
    clip: float,
    outer: Sequence[str] = (),
    stacked: Sequence[str] = (),
) -> optax.GradientTransformation:
    """Clips the gradient's global norm at `clip` (0: not at all), then Adam, AdamW or `muon`.

    outer and stacked are as `muon` says; the others have no use for them.
    """
    if name not in OPTIMIZERS:
        raise UserError(f"unknown optimizer.name {name!r}; choose from {', '.join(OPTIMIZERS)}")
    if name == "adam" and weight_decay:
        raise UserError("optimizer.weight_decay needs optimizer.name='adamw' or 'muon'; adam has none")
    options = dict(learning_rate=rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay)
    update = OPTIMIZERS[name](outer=outer, stacked=stacked, **options)
    return optax.chain(optax.clip_by_global_norm(clip), update) if clip else update
