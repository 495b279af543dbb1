"""Bits per dimension of images under a diffusion model of pixels: one compiled program."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from diffusion_jax.build.model import Model
from diffusion_jax.build.sampling import Sampling, guided
from diffusion_jax.core import likelihood
from diffusion_jax.core.bound import variational_bound
from diffusion_jax.core.continuous_bound import continuous_bound
from diffusion_jax.core.denoisers import Condition, Denoiser
from diffusion_jax.core.grids import logsnr, trailing
from diffusion_jax.errors import UserError
from diffusion_jax.train import sharding
from diffusion_jax.train.state import Params

DRAWS = 64
"""Times at which the bound in continuous time is drawn for an image, unless asked for otherwise."""

Parts = dict[str, Array]
""""total" [B] and what it is the sum of, in bits per dimension."""

Measure = Callable[[Denoiser, Array, Array], Parts]
"""(denoise, images [B, H, W, C], keys [B]) -> parts."""


def bits_per_dim_program(model: Model, how: Sampling, mesh: Mesh, method: str, steps: int = 0) -> Any:
    """(params, frozen, images [B, H, W, C], seed, examples [B], cond) -> parts, bits/dim [B] by name; compiled.

    Image i's random draws depend on seed and examples[i], its place in the data set, alone. cond is what each image's
    own conditions are (`own_conditions`); there is no guidance, and no threshold. methods are those of `METHODS`; steps
    0 is all that the method knows. Raises UserError, before anything is traced, for what the model cannot do.
    """
    if method not in METHODS:
        raise UserError(f"bits_per_dim is found by method {' or '.join(METHODS)}; got {method!r}")
    if model.autoencoder is not None:
        raise UserError(
            "bits_per_dim is of models of pixels; this one is of an autoencoder's latents, which give images no density"
        )
    if steps < 0:
        raise UserError(f"--likelihood_steps is at least 0; got {steps}")
    measure = METHODS[method](model, steps)
    plain = dataclasses.replace(how, guidance=1.0, guidance_rescale=0.0, guidance_interval=(), threshold="none")
    guide = guided(model, plain)

    def program(
        params: Params, frozen: Mapping[str, Params], images: Array, seed: Array, examples: Array, cond: Condition
    ) -> Parts:
        keys = jax.vmap(lambda example: jax.random.fold_in(jax.random.key(seed), example))(examples)
        return measure(guide(params, frozen, cond), images, keys)

    split = sharding.batch_sharding(mesh)
    return jax.jit(program, in_shardings=(None, None, split, None, split, split), out_shardings=split)


def own_conditions(model: Model, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the model is told of each example of a batch; nothing of it is left out or noised."""
    return {name: np.asarray(a) for name, a in model.entries(batch).items()}


def bound(model: Model, steps: int) -> Measure:
    """L_vlb: of the whole chain, or of its sub-chain of so many steps; in continuous time from so many draws of it."""
    schedule = model.schedule
    if schedule.steps is None:
        return _in_continuous_time(model, steps or DRAWS)
    times = trailing()(schedule, steps) if steps else None
    if steps == 1 or schedule.steps == 1:
        raise UserError("the bound is of a chain of 2 steps or more")
    variance = "learned" if model.parameterization.learned_variance else "small"

    def measure(denoise: Denoiser, images: Array, keys: Array) -> Parts:
        found = variational_bound(denoise, schedule, images, keys, variance=variance, times=times)
        diffusion = jnp.sum(found.steps, axis=0)
        return {"total": found.total, "prior": found.prior, "diffusion": diffusion, "decoder": found.decoder}

    return measure


def _in_continuous_time(model: Model, draws: int) -> Measure:
    def measure(denoise: Denoiser, images: Array, keys: Array) -> Parts:
        def noise(keys: Array) -> Array:
            return jax.vmap(lambda key: jax.random.normal(key, images.shape[1:]))(keys)

        def one(k: Array) -> Parts:
            own = jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, k), 3), out_axes=1)(keys)
            # Stratified: the k-th time of an image is uniform in the k-th part of (0, 1].
            u = (k + 1 - jax.vmap(jax.random.uniform)(own[0])) / draws
            found = continuous_bound(denoise, model.schedule, images, u, noise(own[1]), noise(own[2]))
            parts = {"prior": found.prior, "diffusion": found.diffusion, "decoder": found.reconstruction}
            return {"total": found.total, **parts}

        return jax.tree.map(lambda a: jnp.mean(a, axis=0), jax.lax.map(one, jnp.arange(draws)))

    return measure


def ode(model: Model, steps: int) -> Measure:
    """The density of dequantised images by the probability-flow ODE, its trace by one Rademacher vector an image.

    In so many steps of Runge-Kutta's method of order 4, evenly spaced in log-SNR below sigma / alpha = 80, or
    adaptively.
    """
    schedule = model.schedule
    if not schedule.t_min:
        raise UserError("the ODE needs a schedule that starts at the image itself; for a learned one give method bound")
    times: Any = logsnr(sigma_max=80.0)(schedule, steps + 1)[-2::-1] if steps else np.array([schedule.t_min, 1.0])
    solver = likelihood.fixed("rk4") if steps else likelihood.adaptive()
    dims = int(np.prod(model.shape))

    def measure(denoise: Denoiser, images: Array, keys: Array) -> Parts:
        within, trace = jax.vmap(jax.random.split, out_axes=1)(keys)
        x = likelihood.dequantize(images, within)
        divergence = likelihood.hutchinson(trace)
        log_prob = likelihood.log_likelihood(denoise, schedule, times, x, divergence, solver)
        return {"total": likelihood.bits_per_dim(log_prob, dims)}

    return measure


METHODS: dict[str, Callable[[Model, int], Measure]] = {"bound": bound, "ode": ode}
