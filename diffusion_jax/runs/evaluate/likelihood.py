"""Bits per dimension of real images under a diffusion model, as a score of `diffusion-jax evaluate`."""

import dataclasses
import functools
from collections.abc import Callable, Mapping

import jax
import numpy as np

from diffusion_jax import experiment
from diffusion_jax.errors import UserError
from diffusion_jax.models.likelihood import DRAWS, bits_per_dim_program, conventions, own_conditions
from diffusion_jax.runs.evaluate.real_images import Interrupted, RealImages
from diffusion_jax.runs.evaluate.results import Measured
from diffusion_jax.runs.workdir.restored import Trained
from diffusion_jax.train.interruptible import Abandoned, interruptible

BITS_PER_DIM = "bits_per_dim"

_METHODS = {"bound": "variational bound", "ode": "probability-flow ODE"}


@dataclasses.dataclass(frozen=True)
class Likelihood:
    """The method that computes bits per dimension."""

    method: str = "bound"
    steps: int = 0  # steps or random draws; 0: the method's default


def bits_per_dim(
    trained: Trained, real: RealImages, seed: int, likelihood: Likelihood, stopped: Callable[[], bool]
) -> Measured:
    """The mean over the real images, with its standard error and the parts that add up to it.

    Raises Interrupted once stopped() is true or a signal arrives, and UserError where a value is not finite.
    """
    program = bits_per_dim_program(trained.model, trained.how, trained.mesh, likelihood.method, likelihood.steps)
    batches: list[dict[str, np.ndarray]] = []
    done = 0
    for take, examples in real.batches("bits/dim"):
        cond = own_conditions(trained.model, examples)
        index = examples["index"].astype(np.int32)
        call = functools.partial(program, trained.params, trained.pretrained)
        try:
            parts = interruptible(functools.partial(_on_host, call, examples["x"], np.int32(seed), index, cond))
        except Abandoned:
            raise Interrupted(done, real.num) from None
        batches.append({name: np.asarray(a, np.float64)[:take] for name, a in parts.items()})
        done += take
        if stopped() and done < real.num:
            raise Interrupted(done, real.num)
    parts = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    total = parts.pop("total")
    if lost := int((~np.isfinite(total)).sum()):
        raise UserError(
            f"bits_per_dim of {lost} of {len(total)} images is not finite; for method ode give --likelihood_steps=200"
        )
    return {
        "label": f"bits/dim ({_METHODS[likelihood.method]})",
        "value": float(total.mean()),
        "standard_error": _standard_error(total),
        "parts": {name: float(a.mean()) for name, a in parts.items()},
        "standard_errors": {name: _standard_error(a) for name, a in parts.items()},
        "how": {
            "n": real.num,
            "method": likelihood.method,
            "steps": likelihood.steps or _default_steps(trained.model, likelihood.method),
            **conventions(trained.model, likelihood.method),
            "conditions": "each image's own",
            "real": real.record(),
        },
    }


def _standard_error(a: np.ndarray) -> float | None:
    """Of the mean of a [N]; it includes the noise of each image's random draws. None for one image."""
    return float(a.std(ddof=1) / np.sqrt(len(a))) if len(a) > 1 else None


def _on_host(program: Callable[..., Mapping[str, jax.Array]], *arguments: object) -> Mapping[str, np.ndarray]:
    return jax.device_get(program(*arguments))


def _default_steps(model: experiment.Model, method: str) -> int | str:
    return "adaptive" if method == "ode" else model.schedule.steps or DRAWS
