"""Optimizers and learning rates, from optax."""

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import optax
from jax import Array
from optax import contrib

from diffusion_jax.errors import UserError
from diffusion_jax.train.state import Params

DECAYS: dict[str, Callable[[float, int], optax.Schedule]] = {
    "constant": lambda rate, steps: optax.constant_schedule(rate),
    "cosine": lambda rate, steps: optax.cosine_decay_schedule(rate, max(steps, 1)),
}


@dataclasses.dataclass(frozen=True)
class LayerNames:
    """Names in the paths of parameters that tell Muon which of them are not simply inner matrices."""

    outer: tuple[str, ...] = ()  # in the paths of first and last layers, which Muon leaves to NAdam
    stacked: tuple[str, ...] = ()  # in the paths of parameters [layers, ...], whose first axis counts layers


@dataclasses.dataclass(frozen=True)
class AdamOptions:
    """Numbers that every optimizer takes."""

    learning_rate: optax.Schedule
    b1: float
    b2: float
    eps: float
    weight_decay: float
    mean_dtype: str = "float32"
    """Type in which the mean of gradients is kept, one of `MEAN_DTYPES`. Updates are computed in float32."""


MEAN_DTYPES = ("float32", "bfloat16")


def adam(options: AdamOptions, layers: LayerNames) -> optax.GradientTransformation:
    """Adam (arXiv:1412.6980), which has no weight decay. Raises UserError where one is given."""
    if options.weight_decay:
        raise UserError("optimizer.weight_decay needs optimizer.name='adamw' or 'muon'; adam has none")
    return optax.adam(options.learning_rate, options.b1, options.b2, options.eps, mu_dtype=options.mean_dtype)


def adamw(options: AdamOptions, layers: LayerNames) -> optax.GradientTransformation:
    """Adam with weight decay apart from the gradient: arXiv:1711.05101."""
    return optax.adamw(
        options.learning_rate,
        options.b1,
        options.b2,
        options.eps,
        mu_dtype=options.mean_dtype,
        weight_decay=options.weight_decay,
    )


def muon(options: AdamOptions, layers: LayerNames) -> optax.GradientTransformation:
    """Muon: steps along the orthogonalized momentum of each inner matrix, at the RMS of Adam's steps, 0.2 rate.

    arXiv:2502.16982. A convolution's kernel [*K, C, D] is a matrix of K C rows. All other parameters, and those of
    first and last layers, are NAdam's with the same b1, b2, eps and rate. A stacked parameter [layers, ...] counts as a
    matrix, or a vector, of each layer.
    """
    return contrib.muon(
        options.learning_rate,
        eps=options.eps,
        weight_decay=options.weight_decay,
        mu_dtype=options.mean_dtype,
        adam_b1=options.b1,
        adam_b2=options.b2,
        muon_weight_dimension_numbers=partial(_matrices, layers),
        consistent_rms=0.2,
    )


def _matrices(layers: LayerNames, params: Params) -> Params:
    """A tree like params: which axes of each parameter are rows and columns, and None for a parameter of NAdam's."""

    def dimensions(path: jax.tree_util.KeyPath, p: Array) -> contrib.MuonDimensionNumbers | None:
        name = jax.tree_util.keystr(path)
        first = int(any(part in name for part in layers.stacked))  # Muon takes the other axes for a batch
        if p.ndim - first < 2 or any(part in name for part in layers.outer):
            return None
        return contrib.MuonDimensionNumbers(tuple(range(first, p.ndim - 1)), (p.ndim - 1,))

    return jax.tree_util.tree_map_with_path(dimensions, params)


MakeOptimizer = Callable[[AdamOptions, LayerNames], optax.GradientTransformation]

OPTIMIZERS: dict[str, MakeOptimizer] = {"adam": adam, "adamw": adamw, "muon": muon}


def learning_rate(peak: float, *, warmup: int, decay: str, steps: int) -> optax.Schedule:
    """The rate by step: it rises over `warmup` steps, peak (n + 1) / warmup at step n, and then decays until `steps`.

    decay is a name of `DECAYS`; another one raises UserError.
    """
    if decay not in DECAYS:
        raise UserError(f"unknown optimizer.decay {decay!r}; choose from {', '.join(DECAYS)}")
    after = DECAYS[decay](peak, steps - warmup)
    if not warmup:
        return after
    return optax.join_schedules([optax.linear_schedule(peak / warmup, peak, max(warmup - 1, 1)), after], [warmup])


def optimizer(
    name: str, options: AdamOptions, *, clip: float, layers: LayerNames = LayerNames()
) -> optax.GradientTransformation:
    """The optimizer of that name, behind a clip of the gradient's global norm at `clip` (0: no clip).

    Raises UserError for a name that is not in `OPTIMIZERS`, and for options that the optimizer does not have.
    """
    if options.mean_dtype not in MEAN_DTYPES:
        raise UserError(f"optimizer.mean_dtype is one of {', '.join(MEAN_DTYPES)}; got {options.mean_dtype!r}")
    if name not in OPTIMIZERS:
        raise UserError(f"unknown optimizer.name {name!r}; choose from {', '.join(OPTIMIZERS)}")
    update = OPTIMIZERS[name](options, layers)
    return optax.chain(optax.clip_by_global_norm(clip), update) if clip else update
